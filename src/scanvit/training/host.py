"""What a program that runs ``fit`` inside processes of its own, such as a cluster, puts in the place of fit's own parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .progress import Progress

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.strategies import Strategy

Request = Literal["go on", "save", "stop"]
"""save: write a checkpoint soon and go on. stop: write one and end."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that has just been written to the run folder of rank zero."""

    epoch: int
    """Finished epochs."""
    step: int
    metrics: Mapping[str, float] | None
    """Of the epoch that has just ended; None inside an epoch."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """Every process of a run gets one. The processes and their process group are the host's; ``fit`` starts none."""

    strategy: Strategy
    plugins: tuple[Any, ...]
    """Lightning's, with the cluster environment that knows the ranks."""
    prepare: Callable[[L.Trainer], L.Trainer]
    progress: Progress
    """Told of every step on every rank."""
    threads: int
    """CPU threads of this process where ``trainer.threads`` is auto."""
    ships: bool
    """Whether rank zero copies the events to the tracking server; if not, the host does so later."""
    on_checkpoint: Callable[[Saved], None]
    """Called on all ranks at the same points: it may be a barrier."""
    has_room: Callable[[bool], bool]
    """Whether rank zero may hand over another checkpoint now, asked with whether it is one inside an epoch. A refused one stays in the run folder."""
    request: Callable[[], Request]
    """Asked of every rank after every step; what one rank is told, all do."""
