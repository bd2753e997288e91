"""Measured results beside the paper's: tables, figures and one HTML file."""
