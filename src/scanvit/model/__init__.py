"""The network: stem, transformer, and the files that hold its weights."""

from __future__ import annotations

from .checkpoint import Classifier, load_model, save_checkpoint
from .vit import VisionTransformer

__all__ = ["Classifier", "VisionTransformer", "load_model", "save_checkpoint"]
