"""environment.json of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_environment(run_dir: Path) -> dict[str, Any]:
    """Empty where it is missing or damaged: it describes, and nothing depends on it."""
    try:
        values = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
