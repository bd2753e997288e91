"""Co-advise (Ren et al., CVPR 2022, arXiv 2106.12378): two teachers of opposite inductive bias, a token for each."""

__version__ = "0.1.0"
