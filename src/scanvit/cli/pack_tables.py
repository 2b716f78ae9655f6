"""What commands that make or judge a pack show of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import printable

if TYPE_CHECKING:
    from rich.table import Table

    from ..data.audit import Gate
    from ..data.prepare import PrepareSummary

_EXAMPLES = 3
_COLOURS = {"pass": "green", "fail": "red", "acknowledged": "yellow", "not applicable": "dim"}


def show_summary(summary: PrepareSummary, *, shown_path: Path, next_command: bool = True) -> None:
    console = _console()
    show_counts(summary.counts, summary.patients)
    quarantined = sum(map(len, summary.quarantined.values()))
    console.print(
        f"{summary.images_in:,} images in, {quarantined:,} in the quarantine, {summary.ignored:,} other {'file' if summary.ignored == 1 else 'files'} ignored"
    )
    for reason, entries in sorted(summary.quarantined.items()):
        console.print(f"  {reason}: {len(entries):,}", style="yellow")
        for entry in entries[:_EXAMPLES]:
            console.print(f"    {printable(f'{entry.source}: {entry.path}: {entry.detail}')}")
    for warning in summary.warnings:
        console.print(f"warning: {printable(warning)}", style="yellow")
    show_gates(summary.gates, pack=shown_path)
    reused = f", {summary.reused:,} images decoded by an earlier run" if summary.reused else ""
    console.print(f"{shown_path} in {summary.time_s:.1f} s{reused}\nfingerprint {summary.fingerprint}")
    if next_command:
        console.print(f"\nNext: scanvit train modern --pack {shown_path}")


def show_gates(gates: Sequence[Gate], *, pack: Path | None = None) -> None:
    """``pack``: given where it was just written, so that what failed is new."""
    console = _console()
    console.print(_gate_table(gates))
    if pack and any(gate.verdict == "fail" for gate in gates):
        console.print(f"A gate that failed goes with every run and report made from this pack. Pictures: {pack / 'audit.html'}", style="yellow")


def show_counts(images: Mapping[str, Mapping[str, int]], patients: Mapping[str, int]) -> None:
    """``images``: {split: {class: images}}; ``patients``: {split: patients}."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Images by class and split", title_justify="left", show_footer=True)
    table.add_column("class", footer="all")
    for split, counts in images.items():
        table.add_column(split, justify="right", footer=f"{sum(counts.values()):,}")
    table.add_column("all", justify="right", footer=f"{sum(sum(counts.values()) for counts in images.values()):,}")
    for name in next(iter(images.values())):
        row = [counts[name] for counts in images.values()]
        table.add_row(Text(name), *(f"{count:,}" for count in row), f"{sum(row):,}")
    table.add_section()
    table.add_row("patients", *(f"{count:,}" for count in patients.values()), f"{sum(patients.values()):,}", style="dim")
    _console().print(table)


def _gate_table(gates: Sequence[Gate]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Audit", title_justify="left")
    for name in ("gate", "verdict", "finding"):
        table.add_column(name, overflow="fold")
    for gate in gates:
        finding = Text(f"{gate.title}: {printable(gate.detail)}")
        if gate.reason:
            finding.append(f" Acknowledged: {printable(gate.reason)}", style="yellow")
        table.add_row(gate.gate, Text(gate.verdict, style=_COLOURS[gate.verdict]), finding)
    return table


def _console() -> Any:
    from rich.console import Console

    # Names from outside are no markup.
    return Console(highlight=False, markup=False, soft_wrap=True)
