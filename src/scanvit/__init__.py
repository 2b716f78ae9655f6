"""scanvit: medical image classification with Vision Transformers, from raw scans to a judged model.

    import scanvit

    module = scanvit.load_model("runs/reference")  # a run, a checkpoint.pth, or a state dict in the reference's layout

Everything else is reached by its room: `scanvit.data`, `scanvit.model`, `scanvit.training`, `scanvit.evaluation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanvit.model.checkpoint import load_model

__all__ = ["__version__", "load_model"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load_model` on first use: importing the package alone must not import torch."""
    if name == "load_model":
        from scanvit.model.checkpoint import load_model

        return load_model
    raise AttributeError(f"module 'scanvit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
