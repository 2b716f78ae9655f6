"""``scanvit predict``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from . import printable


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
def predict(run: Path, images: tuple[Path, ...]) -> None:
    """Name the class of JPEG, PNG or DICOM images, as JSON lines in the order given; of a volume, a line a frame.

    RUN is a run folder or a checkpoint file. A file that is no usable image gets a line with its error, and the command ends with exit
    code 4; where no file is usable, with 23.
    """
    from ..core.errors import ImageError, PartialError
    from ..evaluation.predict import predict_files

    errors = []
    for result in predict_files(run, images):
        click.echo(json.dumps(result.to_dict()))
        if result.error:
            errors.append(result.error)
            if len(images) > 1:
                click.echo(printable(result.error.message), err=True)
    if errors and len(images) == 1:
        raise errors[0]
    if len(errors) == len(images):
        raise ImageError(f"None of the {len(images)} files is a usable image.", hint="Give JPEG, PNG or DICOM files.")
    if errors:
        raise PartialError(f"{len(errors)} of {len(images)} files could not be used.", hint="Their lines on stdout hold 'error' in place of a prediction.")
