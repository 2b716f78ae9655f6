"""What a gate of the audit says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["pass", "fail", "acknowledged", "not applicable"]
CHANCE = 0.05
"""By which a share or a skill may grow before it counts as worse: they come from samples. Counts grow by 1 at least."""
_NAMED_CAUSES = 1000


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
    causes: Mapping[str, float] = field(default_factory=dict)
    """Of a failed gate: each thing that is wrong, and how bad it is (more is worse)."""
    reason: str | None = None
    """Of an acknowledged gate, in the words of the person who did so."""
    accepted: Mapping[str, float] = field(default_factory=dict)
    """Of an acknowledged gate: the causes for which the reason was given."""


def causes_of(names: Sequence[str]) -> dict[str, float]:
    """Causes that are there or not. Very many are one: then any change of them is a new cause."""
    if len(names) <= _NAMED_CAUSES:
        return dict.fromkeys(names, 1.0)
    digest = hashlib.sha256("\n".join(sorted(names)).encode("utf-8", "backslashreplace")).hexdigest()
    return {f"{len(names)} findings, SHA-256 {digest}": 1.0}


def new_causes(gate: Gate, accepted: Mapping[str, float]) -> list[str]:
    """The causes that were not accepted, or are worse by more than ``CHANCE``."""
    return [cause for cause, badness in gate.causes.items() if cause not in accepted or badness > accepted[cause] + CHANCE]
