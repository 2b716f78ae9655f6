"""Weights as safetensors: numbers alone, with the checkpoint's record as JSON in the header. Nothing in such a file can run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import CheckpointError
from ..storage.atomic import write_bytes

SUFFIX = ".safetensors"
_KEY = "scanvit"
_HINT = "Write it again: scanvit export RUN --format safetensors"


def write_safetensors(path: Path, weights: Mapping[str, Tensor], record: dict[str, Any]) -> None:
    """Whole or not at all. ``record``: the fields of a checkpoint beside its weights, plain data."""
    from safetensors.torch import save

    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    write_bytes(path, save(tensors, metadata={_KEY: json.dumps(record, allow_nan=False), "format": "pt"}))


def read_safetensors(path: Path) -> dict[str, Any]:
    """What ``torch.load`` gives of a checkpoint.pth: the record, and ``state_dict``. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[_KEY])
            if not isinstance(record, dict):
                raise TypeError
            return record | {"state_dict": {key: file.get_tensor(key) for key in file.keys()}}  # noqa: SIM118 no dict
    except KeyError:
        raise CheckpointError(f"{path} holds weights, but not what classes and pixels they are for.", hint=_HINT) from None
    except (OSError, SafetensorError, ValueError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a safetensors file ({reason}).", hint=_HINT) from None
