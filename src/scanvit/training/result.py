"""What a finished run hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class FitResult:
    run_dir: Path
    best_epoch: int
    best_val_loss: float
    tracking_uri: str | None
    """None where the run is not tracked."""
    tracked: bool
    """Whether everything reached the tracking server; if not, ``scanvit track sync`` sends the rest."""
