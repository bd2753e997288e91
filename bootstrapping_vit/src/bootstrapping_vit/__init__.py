"""Bootstrapping ViTs (Zhang et al., CVPR 2022, arXiv 2112.03552): a ViT and an agent CNN trained together."""

__version__ = "0.1.0"
