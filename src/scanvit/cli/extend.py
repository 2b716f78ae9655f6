"""``scanvit data extend``."""

from __future__ import annotations

from pathlib import Path

import click

_EPILOG = """\b
Example, the third tenth of what final_eval holds of a class:
  scanvit data extend packs/nine --class lung-viral-pneumonia --slice 3/10 -o packs/nine-3
"""


@click.command(epilog=_EPILOG)
@click.argument("pack", type=click.Path(path_type=Path))
@click.option("--class", "class_name", required=True, metavar="CLASS", help="Whose pool to take from.")
@click.option("--slice", "part", required=True, metavar="K/N", help="Which part of the pool: 3/10 is the third tenth. Each can be taken once.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="PACK2", help="The pack to write.")
@click.option("--overwrite", is_flag=True, help="Replace PACK2 when the new one is complete.")
def extend(pack: Path, class_name: str, part: str, out: Path, overwrite: bool) -> None:
    """Add a slice of new data for retraining.

    Moves a part of the patients whom PACK has set aside in final_eval for CLASS into train, val and test of PACK2. Everybody else stays:
    the test images of PACK are test images of PACK2, so that runs on both can be compared.
    """
    from ..data.extend import extend as extend_pack
    from ..data.extend import parse_slice
    from .pack_tables import show_counts, show_gates

    summary = extend_pack(pack, out, class_name=class_name, part=parse_slice(part), overwrite=overwrite)
    show_counts(summary.counts, summary.patients)
    gained = ", ".join(f"{split} {images:+,}" for split, images in summary.moved.items())
    click.echo(f"slice {part} of {class_name}: {summary.moved_patients:,} patients moved ({gained} images), {summary.left_patients:,} left in the pool")
    show_gates(summary.gates, pack=out)
    click.echo(f"{out} in {summary.time_s:.1f} s\nfingerprint {summary.fingerprint}")
    click.echo(f"\nNext: scanvit train modern --pack {out} --run-dir RUN2\nthen: scanvit evaluate RUN2 and scanvit compare RUN RUN2")
