"""ViTutor core: data, models, the training loop and the reports that every paper package shares."""

__version__ = "0.1.0"
