"""DearKD (Chen et al., CVPR 2022, arXiv 2204.12997): early distillation from a CNN with convolutional attention."""

__version__ = "0.1.0"
