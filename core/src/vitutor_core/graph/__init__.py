"""The DVC graph, derived from the recipes of the installed papers. Imports nothing heavy."""
