"""``scanvit predict``."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from . import printable

if TYPE_CHECKING:
    from ..core.errors import ImageError
    from ..data.image_stream import Source
    from ..evaluation.engine import Engine
    from ..evaluation.predict import FilePrediction

_HELP = """Name the class of images: JPEG, PNG or DICOM files, folders of them, patterns, or one image on standard input.

RUN is a run folder, a checkpoint.pth, an address of MLflow, or what 'scanvit export' wrote (.onnx, .safetensors). A folder means all images in it and
below; a pattern in quotes ('scans/**/*.dcm') is unfolded here, however many files it means; - is the bytes of one image on standard input.

Results come in the order of the files, a line each; of a volume, a line a frame. A file that is no usable image gets a line with its error, and the
command ends with exit code 4; where no file is usable, with 23.

\b
  scanvit predict runs/mine film.png
  scanvit predict runs/mine/model.onnx scans/ 'more/**/*.dcm' --format csv -o answers.csv
  scanvit predict runs/mine --from-list readings.csv --first-reading label
  find scans -print0 | scanvit predict runs/mine --from-list - -0
  curl -s https://example.org/film.png | scanvit predict runs/mine -
"""
_MOST_REPORTED = 20


@click.command(help=_HELP)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("paths", nargs=-1, metavar="[PATH|-]...")
@click.option("--from-list", type=click.Path(allow_dash=True, dir_okay=False), metavar="FILE", help="A list of paths, one a line; - is standard input.")
@click.option("-0", "--null", is_flag=True, help="The paths of the list end with NUL, as of find -print0.")
@click.option("--first-reading", metavar="COLUMN", help="The list is a CSV file with a column 'path' and this one: what was said first.")
@click.option("--format", "format_", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True, help="Of the results.")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Where they go, whole or not at all.  [default: stdout]")
@click.option("--workers", type=click.IntRange(0), help="Processes that decode files.  [default: one for every core]")
@click.option("--threads", type=click.IntRange(1), help="Threads of the network.  [default: what the engine chooses]")
def predict(run: Path, paths: tuple[str, ...], **options: Any) -> None:
    from ..core.runtime import usable_cores
    from ..evaluation.engines import note_on_calibration, open_engine
    from ..evaluation.predict import predict_files

    from_list, null, first_reading = options["from_list"], options["null"], options["first_reading"]
    if not paths and not from_list:
        raise click.UsageError("Give images: files, folders, patterns, - or --from-list FILE.")
    if (first_reading or null) and not from_list:
        raise click.UsageError(f"{'--first-reading' if first_reading else '--null'} says what is in a list: give --from-list FILE.")
    if first_reading and null:
        raise click.UsageError("A list of first readings is a CSV file, and has no NUL: leave one of --null and --first-reading out.")
    if from_list == "-" and "-" in paths:
        raise click.UsageError("Standard input is an image or a list, not both.")
    engine = open_engine(run, threads=options["threads"], callers=options["threads"] or usable_cores())
    if note := note_on_calibration(engine):
        click.echo(note, err=True)
    workers = usable_cores() if options["workers"] is None else options["workers"]
    sources = _sources(paths, from_list, null=null, first_reading=first_reading)
    tally = _Tally()
    with _output(options["out"]) as (stream, shows), shows() as told:
        write = _csv_writer(stream, engine, with_reading=first_reading is not None) if options["format_"] == "csv" else _line_writer(stream)
        for result in predict_files(engine, sources, workers=workers):
            write(result)
            tally.add(result)
            told("Reading", tally.images, None)
    tally.close()


def _sources(paths: Iterable[str], from_list: str | None, *, null: bool, first_reading: str | None) -> Iterator[Source]:
    from ..data.files import expand
    from ..data.image_stream import MOST_BYTES, Source

    for path in paths:
        if path == "-":
            yield Source("-", data=sys.stdin.buffer.read(MOST_BYTES + 1))
        else:
            yield from map(Source, expand([path]))
    if from_list:
        from ..data.path_list import read_list

        for path, said in read_list(from_list, null=null, column=first_reading):
            yield from (Source(found, said) for found in expand([path]))


@contextmanager
def _output(out: Path | None) -> Iterator[tuple[IO[str], Any]]:
    """Where lines go, and how progress is shown: not between lines on a terminal."""
    from ..storage.atomic import atomic_file
    from .progress import stage_progress

    @contextmanager
    def silent() -> Iterator[Callable[[str, int, int | None], None]]:
        yield lambda stage, done, total: None

    if out is None:
        with _any_name(sys.stdout):
            yield sys.stdout, silent if sys.stdout.isatty() else stage_progress
        return
    with atomic_file(out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
        yield text, stage_progress
        text.detach()


@contextmanager
def _any_name(stream: IO[str]) -> Iterator[None]:
    """File names are bytes: those that are no UTF-8 are written as they are."""
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="surrogateescape")
    try:
        yield
    finally:
        stream.reconfigure(errors=before)


def _line_writer(stream: IO[str]) -> Callable[[FilePrediction], None]:
    return lambda result: print(json.dumps(result.to_dict()), file=stream)


def _csv_writer(stream: IO[str], engine: Engine, *, with_reading: bool) -> Callable[[FilePrediction], None]:
    """A row an image. Sets of classes are JSON lists, since a class's name may hold any character."""
    import csv

    calibration = engine.calibration
    thresholds = list(dict.fromkeys(threshold.title for threshold in calibration.thresholds)) if calibration else []
    columns = ["image", "prediction", "probability", *(f"probability of {name}" for name in engine.class_names)]
    columns += [f"called at {name}" for name in thresholds] + (["conformal_set"] if calibration else [])
    columns += ["outlier_score", "outlier"] if calibration and calibration.outliers else []
    columns += (["first_reading", "agreement"] if with_reading else []) + ["error"]
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n", extrasaction="ignore")
    writer.writeheader()

    def write(result: FilePrediction) -> None:
        said = result.to_dict()
        row = said | {f"probability of {name}": share for name, share in said.get("probabilities", {}).items()}
        for name, called in said.get("operating_points", {}).items():
            row[f"called at {name}"] = json.dumps([of for of, reached in called.items() if reached])
        if "conformal_set" in said:
            row["conformal_set"] = json.dumps(said["conformal_set"])
        writer.writerow({name: _no_formula(cell) for name, cell in row.items()})

    return write


def _no_formula(cell: Any) -> Any:
    """A spreadsheet computes what begins so, and a file's name may say anything: OWASP, "CSV Injection"."""
    return f"'{cell}" if isinstance(cell, str) and len(cell) > 1 and cell[0] in "=+-@\t\r" else cell


class _Tally:
    """Counts, and what the command ends with. Memory does not grow with what is counted."""

    def __init__(self) -> None:
        self.images = self.bad = self.unknown = 0
        self._first: ImageError | None = None
        self._untold: list[str] = []
        """That of a first file is held back: where it is the only one, the command ends with it."""

    def add(self, result: FilePrediction) -> None:
        self.images += 1
        self.unknown += result.judgement.get("agreement") == "unknown class"
        if result.error:
            self.bad += 1
            self._first = self._first or result.error
            if self.bad <= _MOST_REPORTED:
                self._untold.append(result.error.message)
        if self.images > 1:
            for message in self._untold:
                click.echo(printable(message), err=True)
            self._untold.clear()

    def close(self) -> None:
        from ..core.errors import ImageError, PartialError

        if self.unknown:
            click.echo(f"{self.unknown:,} first readings name no class of the network.", err=True)
        if not self.images:
            raise ImageError("No image was found.", hint="Give JPEG, PNG or DICOM files, or folders that hold some.")
        if self.bad and self.images == 1:
            raise self._first or ImageError("The image cannot be used.")
        if self.bad == self.images:
            raise ImageError(f"None of the {self.images:,} files is a usable image.", hint="Give JPEG, PNG or DICOM files.")
        if self.bad:
            raise PartialError(f"{self.bad:,} of {self.images:,} images could not be used.", hint="Their results hold 'error' in place of a prediction.")
