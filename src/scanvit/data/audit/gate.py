"""What a gate of the audit says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["pass", "fail", "acknowledged", "not applicable"]


@dataclass(frozen=True)
class Picture:
    """One image of the pack."""

    image_id: str
    split: str
    row: int
    """In the array of its split."""
    note: str
    """Its class, and what else tells it from its neighbours."""


@dataclass(frozen=True)
class Example:
    caption: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class Gate:
    gate: str
    """G1 to G6."""
    title: str
    """What holds where the gate passes."""
    verdict: Verdict
    figure: float | None
    """What is held against ``threshold``; its unit stands in ``figure_name``. None where the gate is not applicable."""
    figure_name: str
    threshold: float
    """The gate fails from this figure on. A gate may have a second criterion, which ``detail`` tells."""
    detail: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that was measured: plain data."""
    examples: tuple[Example, ...] = ()
    reason: str | None = None
    """Of an acknowledged gate, in the words of the person who did so."""
