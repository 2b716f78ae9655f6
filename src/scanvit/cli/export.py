"""``scanvit export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..evaluation.export import Exported, Format

_EXAMPLES = """Write a trained network as one file for other programs.

RUN is a run folder, a checkpoint.pth, or an address of MLflow. The file holds all that is needed to use it: class names, what happens to the pixels,
temperature, thresholds, the outlier detector, the fingerprint of the pack and the findings of its audit.

Before the file appears, it is asked about the whole test split of the run's pack: every probability must be the network's within 0.0001. int8 is
smaller and faster and may differ; how much accuracy it costs is measured, and too much is refused.

\b
  scanvit export runs/mine                         # runs/mine/model.onnx
  scanvit export runs/mine --quantize int8 --max-drop 0.005
  scanvit export runs/mine --format safetensors -o model.safetensors
  scanvit predict runs/mine/model.onnx images/
"""


@click.command(help=_EXAMPLES)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=click.Choice(["onnx", "torch", "safetensors"]), default="onnx", show_default=True, help="Of the file.")
@click.option("--quantize", type=click.Choice(["int8"]), help="Weights and activations of 8 bits, with ranges from val (onnx).")
@click.option("--max-drop", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Share of test images that int8 may newly get wrong.")
@click.option("--pack", type=click.Path(path_type=Path), help="Where the run's pack is now, if it was moved.")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="[default: model.onnx in the run, model-int8.onnx, model.pt2, ...]")
def export(run: Path, format_: Format, quantize: str | None, max_drop: float, pack: Path | None, out: Path | None) -> None:
    from ..core.errors import ConfigError
    from ..evaluation.export import SUFFIXES
    from ..evaluation.export import export as export_model

    if out is None:
        if not run.is_dir():
            raise ConfigError(f"{run} is no run folder, so the export has no place of its own.", hint="Say where it goes: -o FILE")
        out = run / f"model{'-int8' if quantize else ''}{SUFFIXES[format_]}"
    if out.suffix != SUFFIXES[format_]:
        raise ConfigError(f"{out} does not end with {SUFFIXES[format_]}, by which a {format_} file is known.", hint=f"-o {out.stem}{SUFFIXES[format_]}")
    _show(export_model(run, out, format=format_, quantize="int8" if quantize else None, max_drop=max_drop, pack=pack))


def _show(made: Exported) -> None:
    from .progress import size_text

    check, drop = made.check, made.check.drop
    why = "has no test images" if made.pack_found else "is out of reach"
    where = f"the {check.images:,} images of the test split" if check.where == "test" else f"{check.images} generated images, as the run's pack {why}"
    click.echo(f"{made.path}  {size_text(made.size_bytes)}" + (f", opset {made.opset}" if made.opset else ""))
    click.echo(f"checked  on {where}: no probability differs by more than {check.difference:.1e} from the network's")
    if drop is not None and drop.value is not None:
        between = f" (95 % interval {100 * drop.low:.2f} to {100 * drop.high:.2f})" if drop.low is not None and drop.high is not None else f". {drop.note}"
        click.echo(f"cost     {100 * drop.value:.2f} points of accuracy{between}")
    if made.calibration == "none":
        click.echo("The probabilities are not calibrated: nothing was fitted on val. Give the run's pack: --pack PACK", err=True)
    if made.calibration == "outdated":
        click.echo("What was fitted on val is of an earlier version of scanvit. To have it fitted anew, give the run's pack: --pack PACK", err=True)
    if made.path.suffix != ".pt2":
        click.echo(f"next     scanvit predict {made.path} IMAGES, or scanvit serve {made.path}")
