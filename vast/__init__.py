"""VAST, the Video Affine-Shift Transformer: models, data and training; no Ray, no MLflow, no command line."""

__version__ = "0.1.0"
