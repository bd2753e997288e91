"""MAE-Lite (Wang et al., ICML 2023, arXiv 2205.14443): distilled masked pre-training of lightweight ViTs."""

__version__ = "0.1.0"
