"""AST and VAST: the size table, the model configuration and the factory. Importing this does not import torch."""

from vast.models.variants import SIZES, ModelConfig, Size, create_model

__all__ = ["SIZES", "ModelConfig", "Size", "create_model"]
