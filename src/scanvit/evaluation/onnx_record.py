"""What scanvit writes beside the graph of an .onnx file: names, metadata, version. Needs nothing but the standard library."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from ..core.errors import ConfigError

FORMAT = 1
"""Of the metadata."""
INPUT, OUTPUTS = "pixels", ("logits", "probabilities", "outlier_score")
"""The last one where a detector was fitted."""
_PREFIX = "scanvit."


def metadata(values: dict[str, Any]) -> dict[str, str]:
    """One entry a key, as JSON, so that every program that reads ONNX can read them."""
    return {_PREFIX + key: json.dumps(value, allow_nan=False) for key, value in values.items()}


def read_metadata(properties: dict[str, str]) -> dict[str, Any]:
    """Raises ValueError for what is no JSON."""
    return {key.removeprefix(_PREFIX): json.loads(value) for key, value in properties.items() if key.startswith(_PREFIX)}


def require(*packages: str) -> None:
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"ONNX needs {', '.join(missing)}, not installed here.", hint="Install the extra: pip install 'scanvit[onnx]'")
