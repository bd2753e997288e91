"""DRLoc (Liu et al., NeurIPS 2021, arXiv 2106.03746): a dense relative localisation loss for any backbone."""

__version__ = "0.1.0"
