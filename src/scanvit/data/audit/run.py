"""The audit: every gate in turn, what was acknowledged, and the two files in the pack that say so. It reads the pack alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, PackCorruptError
from ...storage.atomic import write_json, write_text
from ...storage.scratch import scratch_in
from ..pack import Pack
from .balance import gate_balance
from .confounding import gate_confounding, gate_files
from .gate import Gate, new_causes
from .leakage import gate_identical_pixels, gate_near_duplicates, gate_patients
from .page import render_audit
from .view import AuditView

FORMAT = 1
GATES: Mapping[str, Callable[[AuditView], Gate]] = {
    "G1": gate_patients,
    "G2": gate_identical_pixels,
    "G3": gate_near_duplicates,
    "G4": gate_confounding,
    "G5": gate_files,
    "G6": gate_balance,
}
"""In the order in which they are shown."""
Progress = Callable[[str, int, int], None]
_NAMED = 3


def run_gates(
    pack: Pack, *, reasons: Mapping[str, str] | None = None, acknowledged: Mapping[str, Mapping[str, Any]] | None = None, progress: Progress | None = None
) -> list[Gate]:
    """Every gate's verdict. The same pack gives the same gates.

    A failed gate with a reason in ``reasons`` becomes acknowledged; so does one that was acknowledged before (``acknowledged``:
    ``Pack.acknowledged``, of this pack or of its parent) where nothing is new: each cause was accepted, and none is worse.
    """
    view = AuditView(pack)
    gates = []
    for number, (name, judge) in enumerate(GATES.items()):
        if progress:
            progress("Auditing", number, len(GATES))
        gate = judge(view)
        if gate.verdict == "fail" and name in (reasons or {}):
            gate = replace(gate, verdict="acknowledged", reason=(reasons or {})[name], accepted=gate.causes)
        elif gate.verdict == "fail" and name in (acknowledged or {}):
            gate = _carried(gate, (acknowledged or {})[name])
        gates.append(gate)
    if progress:
        progress("Auditing", len(GATES), len(GATES))
    return gates


def audit(path: Path | str, *, acknowledge: Mapping[str, str] | None = None, progress: Progress | None = None) -> list[Gate]:
    """Judge a pack anew and write its audit.json and audit.html.

    Reasons given earlier are kept as long as the pack is the same (its fingerprint) and the finding is, new ones are added. Raises ConfigError for a gate that
    there is not; then nothing is written.
    """
    if unknown := sorted(set(acknowledge or {}) - set(GATES)):
        raise ConfigError(f"There is no gate {unknown[0]!r}.", hint=f"Gates: {', '.join(GATES)}.")
    pack = Pack.open(path)
    with scratch_in(pack.path):
        gates = run_gates(pack, reasons=acknowledge, acknowledged=_acknowledged(pack), progress=progress)
    write_audit(pack, gates)
    return gates


def write_audit(pack: Pack, gates: list[Gate]) -> None:
    """The page first: whoever finds the new verdicts finds the page that shows them."""
    write_text(pack.path / "audit.html", render_audit(pack, gates))
    write_json(pack.path / "audit.json", {"format": FORMAT, "fingerprint": pack.fingerprint, "gates": [asdict(gate) for gate in gates]})


def _carried(gate: Gate, earlier: Mapping[str, Any]) -> Gate:
    """The failed gate, acknowledged where the reason given earlier covers it."""
    accepted, reason = dict(earlier.get("accepted") or {}), str(earlier["reason"])
    new = new_causes(gate, accepted)
    if gate.detail == earlier.get("detail"):  # word for word what was acknowledged, also before causes were recorded
        return replace(gate, verdict="acknowledged", reason=reason, accepted=accepted or gate.causes)
    if not new:
        return replace(gate, verdict="acknowledged", reason=reason, accepted=accepted)
    shown = "; ".join(new[:_NAMED]) + ("; and others" if len(new) > _NAMED else "")
    return replace(gate, detail=f"{gate.detail} New, or worse, since it was acknowledged ({reason}): {shown}.")


def _acknowledged(pack: Pack) -> dict[str, dict[str, Any]]:
    try:
        return pack.acknowledged()
    except PackCorruptError:
        return {}  # a damaged audit.json is written anew; what it acknowledged has to be said again
