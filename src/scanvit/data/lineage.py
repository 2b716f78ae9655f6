"""Where a pack comes from: the steps that led from the first pack of its line to it, oldest first, in the settings of dataset.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import PackCorruptError
from .pack import Pack


def lineage(pack: Pack) -> list[dict[str, Any]]:
    """Each step: {"step": "keep", "parent": fingerprint} or {"step": "extend", "class", "slice": k, "of": n, "parent": fingerprint}."""
    steps = pack.settings.get("lineage", [])
    if not isinstance(steps, list) or not all(map(_is_step, steps)):
        raise PackCorruptError(f"{pack.path / 'dataset.json'} is damaged: its lineage is {steps!r:.80}.", hint="Prepare the pack again.")
    return [dict(step) for step in steps]


def child_settings(parent: Pack, settings: Mapping[str, Any], **step: Any) -> dict[str, Any]:
    """``settings`` with the lineage of a pack that is made from ``parent`` by ``step``."""
    return dict(settings) | {"lineage": [*lineage(parent), step | {"parent": parent.fingerprint}]}


def _is_step(step: Any) -> bool:
    kinds = {"parent": str, "step": str} | ({"class": str, "slice": int, "of": int} if isinstance(step, dict) and step.get("step") == "extend" else {})
    return isinstance(step, dict) and all(isinstance(step.get(name), kind) for name, kind in kinds.items())
