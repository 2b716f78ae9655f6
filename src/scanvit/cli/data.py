"""``scanvit data``: images to a pack, the audit of a pack, and phantom images to try everything on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from . import fetch as archives
from . import printable
from .extend import extend
from .objects import ls, mount, pull, push
from .pack_tables import show_gates, show_summary
from .progress import stage_progress

_EPILOG = """\b
Examples:
  scanvit data sources
  scanvit data fetch oct2017 -o archives
  scanvit data phantom -o phantoms
  scanvit data prepare phantoms -o packs/phantoms
  scanvit data prepare chest.zip -o packs/chest --image-size 128
  scanvit data prepare examples/real/sources.yaml --root /data -o packs/real
  scanvit data prepare grown.yaml --keep packs/real -o packs/grown
  scanvit data extend packs/real --class lung-viral-pneumonia --slice 3/10 -o packs/real-3
  scanvit data audit packs/real --acknowledge G4="one hospital a class: for development only"
"""


@click.group(epilog=_EPILOG)
def data() -> None:
    """Fetch archives; make and audit packs of decoded images."""


for _command in (archives.sources, archives.fetch, ls, pull, push, mount, extend):
    data.add_command(_command)


_PREPARE = """\b
Examples:
  scanvit data prepare chest.zip -o packs/chest --image-size 128       # one folder a class
  scanvit data prepare sources.yaml --root archives -o packs/mine      # several archives: docs/data.md says what the file holds
  scanvit data prepare sources.yaml --root archives -o packs/mine --near-duplicates move --overwrite
  scanvit data prepare grown.yaml --root archives --keep packs/mine -o packs/grown
"""
_AUDIT = """\b
Gates:
  G1  a patient in two splits, or patients unknown    G4  class and source go together; the border tells the class
  G2  the same pixels in two splits                   G5  resolution, aspect or file format tells the class
  G3  near duplicates in two splits                   G6  empty or tiny classes, splits that differ
\b
Examples:
  scanvit data audit packs/mine
  scanvit data audit packs/mine --acknowledge G4="one hospital a class: for development only" --acknowledge G6="a demonstration"
"""


@data.command(epilog=_PREPARE)
@click.argument("sources", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="PACK", help="The pack to write.")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="What the paths in a sources file are relative to.  [default: its folder]")
@click.option("--image-size", type=click.IntRange(8, 4096), metavar="PX", help="Height and width in the pack.  [default: 64]")
@click.option("--channels", type=click.Choice(["1", "3"]), help="1: gray, 3: RGB.  [default: 1]")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of the split.  [default: 42]")
@click.option("--max-quarantine-share", type=click.FloatRange(0, 1), metavar="SHARE", help="Unreadable images allowed.  [default: 0.05]")
@click.option(
    "--near-duplicates",
    type=click.Choice(["keep", "drop", "move"]),
    help="Nearly the same image under several patients: keep all, drop all but the first, or move these patients into one split.  [default: keep]",
)
@click.option("--workers", type=click.IntRange(1), help="Decoding processes.  [default: one a core]")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="ray: decode on a Ray cluster (RAY_ADDRESS).")
@click.option("--keep", type=click.Path(path_type=Path), metavar="PACK", help="An earlier pack: its patients stay in their splits.")
@click.option("--overwrite", is_flag=True, help="Replace PACK when the new one is complete.")
def prepare(sources: Path, out: Path, **options: Any) -> None:
    """Decode images into a pack, split by patient.

    SOURCES is a sources file (.yaml) or directly a folder, a zip or tar archive with one folder a class, or a MedMNIST .npz.
    Interrupted, the same command goes on where it stopped.
    """
    from ..data.prepare import prepare as prepare_pack

    how = {name: options.pop(name) for name in ("root", "workers", "engine", "keep", "overwrite")}
    settings = {key: value for key, value in options.items() if value is not None}
    if "image_size" in settings:
        settings["image_size_px"] = settings.pop("image_size")
    if "channels" in settings:
        settings["channels"] = int(settings["channels"])
    with stage_progress() as progress:
        summary = prepare_pack(sources, out, settings=settings, progress=progress, **how)
    show_summary(summary, shown_path=out)


@data.command(epilog=_AUDIT)
@click.argument("pack", type=click.Path(path_type=Path))
@click.option("--acknowledge", multiple=True, metavar='GATE="REASON"', help="Accept a failed gate, with a reason that every run and report will carry.")
def audit(pack: Path, acknowledge: tuple[str, ...]) -> None:
    """Judge a pack, gate by gate.

    Writes audit.json and audit.html, a page with pictures, into PACK. Exit code 3 where a gate fails that nobody acknowledged.
    """
    from ..core.errors import AuditError, ConfigError
    from ..data.audit import audit as audit_pack

    reasons = {}
    for entry in acknowledge:
        gate, _, reason = entry.partition("=")
        if not gate.strip() or not reason.strip():
            raise ConfigError(f"--acknowledge {entry!r} is not of the form GATE=REASON.", hint='For example: --acknowledge G4="one hospital a class"')
        reasons[gate.strip()] = reason.strip()
    with stage_progress() as progress:
        gates = audit_pack(pack, acknowledge=reasons, progress=progress)
    show_gates(gates)
    for found in gates:
        if found.gate in reasons and found.verdict != "acknowledged":
            click.echo(f"{found.gate} did not fail: there is nothing to acknowledge, and the reason given for it is not kept.")
    click.echo(f"page  {printable(str(pack / 'audit.html'))}")
    if failed := [gate.gate for gate in gates if gate.verdict == "fail"]:
        answer = " ".join(f'--acknowledge {gate}="REASON"' for gate in failed)
        raise AuditError(
            f"{'Gate' if len(failed) == 1 else 'Gates'} {', '.join(failed)} of {pack} failed.",
            hint=f"Look at {pack / 'audit.html'}, mend the sources and prepare again; or take responsibility: scanvit data audit {pack} {answer}",
        )


@data.command()
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The folder to draw into.")
@click.option("--patients-per-class", type=click.IntRange(1), default=60, show_default=True, help="In each of the nine classes.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the drawing.")
@click.option("--flaws/--no-flaws", default=True, show_default=True, help="Put some broken and duplicated files among them.")
def phantom(out: Path, patients_per_class: int, seed: int, flaws: bool) -> None:
    """Draw phantom images, to try everything without patients.

    X-rays and B-scans of nine classes, drawn by chance and not made from anybody.
    """
    from ..data.phantoms.folder import draw_phantoms

    with stage_progress() as progress:
        on_images = partial(progress, "Drawing")
        summary = draw_phantoms(out, patients_per_class=patients_per_class, seed=seed, flaws=flaws, progress=on_images)
    click.echo(f"{summary.images:,} images of {summary.patients:,} phantom patients in {out}")
    click.echo(f"\nNext: scanvit data prepare {out} -o packs/phantoms")
