"""The audit: every gate in turn, what was acknowledged, and the two files in the pack that say so. It reads the pack alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from ...core.errors import ConfigError, PackCorruptError
from ...storage.atomic import write_json, write_text
from ..pack import Pack
from .balance import gate_balance
from .confounding import gate_confounding, gate_files
from .gate import Gate
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


def run_gates(pack: Pack, *, acknowledged: Mapping[str, str] | None = None, progress: Progress | None = None) -> list[Gate]:
    """Every gate's verdict. A failed gate with a reason in ``acknowledged`` becomes acknowledged. The same pack gives the same gates."""
    view, reasons = AuditView(pack), acknowledged or {}
    gates = []
    for number, (name, judge) in enumerate(GATES.items()):
        if progress:
            progress("Auditing", number, len(GATES))
        gate = judge(view)
        gates.append(replace(gate, verdict="acknowledged", reason=reasons[name]) if gate.verdict == "fail" and name in reasons else gate)
    if progress:
        progress("Auditing", len(GATES), len(GATES))
    return gates


def audit(path: Path | str, *, acknowledge: Mapping[str, str] | None = None, progress: Progress | None = None) -> list[Gate]:
    """Judge a pack anew and write its audit.json and audit.html.

    Reasons given earlier are kept as long as the pack is the same (its fingerprint), new ones are added. Raises ConfigError for a gate that
    there is not; then nothing is written.
    """
    if unknown := sorted(set(acknowledge or {}) - set(GATES)):
        raise ConfigError(f"There is no gate {unknown[0]!r}.", hint=f"Gates: {', '.join(GATES)}.")
    pack = Pack.open(path)
    gates = run_gates(pack, acknowledged=_earlier_reasons(pack) | dict(acknowledge or {}), progress=progress)
    write_audit(pack, gates)
    return gates


def write_audit(pack: Pack, gates: list[Gate]) -> None:
    """The page first: whoever finds the new verdicts finds the page that shows them."""
    write_text(pack.path / "audit.html", render_audit(pack, gates))
    write_json(pack.path / "audit.json", {"format": FORMAT, "fingerprint": pack.fingerprint, "gates": [asdict(gate) for gate in gates]})


def _earlier_reasons(pack: Pack) -> dict[str, str]:
    try:
        return pack.acknowledged()
    except PackCorruptError:
        return {}  # a damaged audit.json is written anew; what it acknowledged has to be said again
