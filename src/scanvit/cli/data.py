"""``scanvit data``: images to a pack, the audit of a pack, and phantom images to try everything on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import printable
from .objects import ls, mount, pull, push

if TYPE_CHECKING:
    from rich.table import Table

    from ..data.audit import Gate
    from ..data.prepare import PrepareSummary

_EPILOG = """\b
Examples:
  scanvit data phantom -o phantoms
  scanvit data prepare phantoms -o packs/phantoms
  scanvit data prepare chest.zip -o packs/chest --image-size 128
  scanvit data prepare examples/real/sources.yaml --root /data -o packs/real
  scanvit data audit packs/real --acknowledge G4="one hospital a class: for development only"
"""
_EXAMPLES = 3
_COLOURS = {"pass": "green", "fail": "red", "acknowledged": "yellow"}


@click.group(epilog=_EPILOG)
def data() -> None:
    """Make and audit packs of decoded images."""


for _command in (pull, push, mount, ls):
    data.add_command(_command)


@data.command()
@click.argument("sources", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="PACK", help="The pack to write.")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="What the paths in SOURCES are relative to.  [default: its folder]")
@click.option("--image-size", type=click.IntRange(8, 4096), metavar="PX", help="Height and width in the pack.  [default: 64]")
@click.option("--channels", type=click.Choice(["1", "3"]), help="1: gray, 3: RGB.  [default: 1]")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of the split.  [default: 42]")
@click.option("--max-quarantine-share", type=click.FloatRange(0, 1), metavar="SHARE", help="Unreadable images allowed.  [default: 0.05]")
@click.option("--workers", type=click.IntRange(1), help="Decoding processes.  [default: one a core]")
@click.option("--overwrite", is_flag=True, help="Replace PACK when the new one is complete.")
def prepare(sources: Path, out: Path, root: Path | None, workers: int | None, overwrite: bool, **settings: Any) -> None:
    """Decode images into a pack, split by patient.

    SOURCES is a sources file (.yaml) or directly a folder, a zip or tar archive with one folder a class, or a MedMNIST .npz.
    Interrupted, the same command goes on where it stopped.
    """
    from ..data.prepare import prepare as prepare_pack

    given = {key: value for key, value in settings.items() if value is not None}
    if "image_size" in given:
        given["image_size_px"] = given.pop("image_size")
    if "channels" in given:
        given["channels"] = int(given["channels"])
    with stage_progress() as progress:
        summary = prepare_pack(sources, out, root=root, settings=given, workers=workers, overwrite=overwrite, progress=progress)
    show_summary(summary, shown_path=out)


@data.command()
@click.argument("pack", type=click.Path(path_type=Path))
@click.option("--acknowledge", multiple=True, metavar='GATE="REASON"', help="Accept a failed gate, with a reason that every run and report will carry.")
def audit(pack: Path, acknowledge: tuple[str, ...]) -> None:
    """Judge a pack, gate by gate. Exit code 3 where a gate fails that nobody acknowledged."""
    from ..core.errors import AuditError, ConfigError
    from ..data.audit import audit as audit_pack

    reasons = {}
    for entry in acknowledge:
        gate, _, reason = entry.partition("=")
        if not gate.strip() or not reason.strip():
            raise ConfigError(f"--acknowledge {entry!r} is not of the form GATE=REASON.", hint='For example: --acknowledge G4="one hospital a class"')
        reasons[gate.strip()] = reason.strip()
    gates = audit_pack(pack, acknowledge=reasons)
    _console().print(_gate_table(gates))
    if failed := [gate.gate for gate in gates if gate.verdict == "fail"]:
        raise AuditError(
            f"{'Gate' if len(failed) == 1 else 'Gates'} {', '.join(failed)} of {pack} failed.",
            hint=f'Mend the sources and prepare again, or take responsibility: scanvit data audit {pack} --acknowledge {failed[0]}="REASON"',
        )


@data.command()
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The folder to draw into.")
@click.option("--patients-per-class", type=click.IntRange(1), default=60, show_default=True, help="In each of the nine classes.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the drawing.")
@click.option("--flaws/--no-flaws", default=True, show_default=True, help="Put some broken and duplicated files among them.")
def phantom(out: Path, patients_per_class: int, seed: int, flaws: bool) -> None:
    """Draw phantom X-rays and B-scans of nine classes, to try everything without patients."""
    from ..data.phantoms import draw_phantoms

    with stage_progress() as progress:
        on_images = partial(progress, "Drawing")
        summary = draw_phantoms(out, patients_per_class=patients_per_class, seed=seed, flaws=flaws, progress=on_images)
    click.echo(f"{summary.images:,} images of {summary.patients:,} phantom patients in {out}")
    click.echo(f"\nNext: scanvit data prepare {out} -o packs/phantoms")


@contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function to call with (stage, done, total): a bar on a terminal, a plain line at each tenth elsewhere. Shown on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = _console(stderr=True)
    if not console.is_terminal:
        yield _PlainLines()
        return
    with Progress(TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield show


class _PlainLines:
    def __init__(self) -> None:
        self._shown: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 10
        if tenth > self._shown.get(stage, 0):
            self._shown[stage] = tenth
            click.echo(f"{stage.lower()}: {done:,} of {total:,}", err=True)


def show_summary(summary: PrepareSummary, *, shown_path: Path, next_command: bool = True) -> None:
    console = _console()
    console.print(_count_table(summary))
    quarantined = sum(map(len, summary.quarantined.values()))
    console.print(f"{summary.images_in:,} images in, {quarantined:,} in the quarantine, {summary.ignored:,} other files ignored")
    for reason, entries in sorted(summary.quarantined.items()):
        console.print(f"  {reason}: {len(entries):,}", style="yellow")
        for entry in entries[:_EXAMPLES]:
            console.print(f"    {printable(f'{entry.source}: {entry.path}: {entry.detail}')}")
    for warning in summary.warnings:
        console.print(f"warning: {printable(warning)}", style="yellow")
    console.print(_gate_table(summary.gates))
    if any(gate.verdict == "fail" for gate in summary.gates):
        console.print("A gate that failed goes with every run and report made from this pack.", style="yellow")
    reused = f", {summary.reused:,} images decoded by an earlier run" if summary.reused else ""
    console.print(f"{shown_path} in {summary.time_s:.1f} s{reused}\nfingerprint {summary.fingerprint}")
    if next_command:
        console.print(f"\nNext: scanvit train tiny --pack {shown_path}")


def _count_table(summary: PrepareSummary) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Images by class and split", title_justify="left", show_footer=True)
    table.add_column("class", footer="all")
    for split, counts in summary.counts.items():
        table.add_column(split, justify="right", footer=f"{sum(counts.values()):,}")
    table.add_column("all", justify="right", footer=f"{sum(sum(counts.values()) for counts in summary.counts.values()):,}")
    for name in next(iter(summary.counts.values())):
        row = [counts[name] for counts in summary.counts.values()]
        table.add_row(Text(name), *(f"{count:,}" for count in row), f"{sum(row):,}")
    table.add_section()
    table.add_row("patients", *(f"{count:,}" for count in summary.patients.values()), f"{sum(summary.patients.values()):,}", style="dim")
    return table


def _gate_table(gates: Any) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Audit", title_justify="left")
    for name in ("gate", "verdict", "finding"):
        table.add_column(name, overflow="fold")
    gate: Gate
    for gate in gates:
        finding = Text(f"{gate.title}: {printable(gate.detail)}")
        if gate.reason:
            finding.append(f" Acknowledged: {printable(gate.reason)}", style="yellow")
        table.add_row(gate.gate, Text(gate.verdict, style=_COLOURS[gate.verdict]), finding)
    return table


def _console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    # Names from outside are no markup.
    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)
