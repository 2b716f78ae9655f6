"""Predictions of any model: a table with a row an image and a probability a class, scored like a run's own.

Columns: ``image_id`` as in the pack's manifest; for every class of the pack a probability, all under the class's name, all under ``prob_CLASS`` or all
under ``prob_k`` (k counts the classes from 0, in the pack's order). ``patient_id`` and ``target`` (a class's name or number) are taken from the
manifest where the table does not hold them, ``patient_id`` for all rows where one has none. Other columns are not read. Where class names are
numbers, the same column or target may mean two classes: such a table is refused, but for those that scanvit wrote. So is one that holds two of these
schemes with other values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.errors import DataError, RunExistsError
from ..storage.atomic import write_text
from .evaluate import COSTS, report_path
from .predictions import Predictions, written_classes
from .report import render_report
from .scores import Scores
from .scoring import Detail, score_on_pack

if TYPE_CHECKING:
    import pyarrow as pa

    from ..data.pack import Pack

_SUM_TOLERANCE = 1e-3
"""Rows are made to sum to one where they are nearer than this; probabilities are often rounded to three or four digits."""
_LEAST = 1e-12
"""A probability of 0 would make the log loss infinite."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Foreign:
    predictions: Predictions
    notes: list[str]


def read_foreign(table: Path, pack: Pack, split: str) -> Foreign:
    """The predictions of the images of ``split``, in the pack's order.

    Raises DataError for a table that cannot be read, lacks a column or an image, holds one twice or one that the pack does not know, or whose
    probabilities are none.
    """
    rows = _read_table(table)
    wanted = pack.rows(split, "image_id", "patient_id", "source")
    image_ids = wanted["image_id"].to_pylist()
    if not image_ids:
        raise DataError(f"The split {split!r} of {pack.path} has no images.", hint="Choose another with --split.")
    order, outside = _align(table, rows, pack, image_ids, split)
    rows = rows.take(order)
    columns, numbered = _class_columns(table, rows, pack.class_names)
    probs = _probabilities(table, rows, columns, image_ids)
    truth = pack.targets(split)
    targets = _targets(table, rows, pack.class_names, truth, image_ids, numbered=numbered)
    notes = [f"Scored from the predictions in {table.name}: nothing is known of the model but its probabilities."]
    if outside:
        notes.append(f"{outside:,} rows of the table are of images in other splits than {split}, and were not read.")
    if changed := int((targets != truth).sum()):
        notes.append(f"{changed:,} targets of the table are not those of the pack; the table's were used.")
    patients = wanted["patient_id"].to_pylist()
    if "patient_id" in rows.column_names:
        told = [str(own).strip() if own is not None and own == own else "" for own in rows["patient_id"].to_pylist()]  # NaN is not itself
        if untold := told.count(""):  # by both, one patient would have two names and count twice
            notes.append(f"{untold:,} rows of the table have no patient_id; the pack's was used for all.")
        else:
            patients = told
    predictions = Predictions(
        image_ids=image_ids,
        patient_ids=patients,
        sources=wanted["source"].to_pylist(),
        targets=targets,
        logits=np.log(np.maximum(probs, _LEAST)),
        class_names=list(pack.class_names),
        fingerprint=pack.fingerprint,
    )
    return Foreign(predictions=predictions, notes=notes)


def _read_table(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError(f"There is no table {path}.", hint="Give a .parquet or .csv file of predictions.")
    try:
        if path.suffix.lower() == ".csv":  # an image_id of digits alone is no number
            texts = csv.ConvertOptions(column_types={"image_id": pa.string(), "patient_id": pa.string(), "target": pa.string()})
            rows = csv.read_csv(path, convert_options=texts)
        else:
            rows = pq.read_table(path)
    except (pa.ArrowException, OSError, ValueError) as cause:
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise DataError(f"{path} is no table that can be read: {first.rstrip('.')}.", hint="Give a .parquet or .csv file of predictions.") from None
    if twice := next((name for name in rows.column_names if rows.column_names.count(name) > 1), None):
        raise DataError(f"{path} has {rows.column_names.count(twice)} columns named {twice!r}.", hint="Keep one of them: which is meant cannot be told.")
    return rows


def _align(path: Path, rows: pa.Table, pack: Pack, image_ids: Sequence[str], split: str) -> tuple[npt.NDArray[np.int64], int]:
    """The table's row of each image, and how many rows are of other splits."""
    if "image_id" not in rows.column_names:
        raise DataError(f"{path} has no column image_id.", hint=f"Its columns: {', '.join(rows.column_names)[:200]}.")
    given = [str(value) for value in rows["image_id"].to_pylist()]
    place = {image: row for row, image in enumerate(given)}
    if len(place) < len(given):
        twice = next(image for row, image in enumerate(given) if place[image] != row)
        raise DataError(f"{path} has {len(given) - len(place):,} rows too many: the image {twice!r} stands in it twice.", hint="Keep one row an image.")
    if unknown := set(place) - set(pack.columns("image_id")["image_id"].to_pylist()):
        raise DataError(f"{path} has {_some(unknown)} that {pack.path} does not know.", hint="Take image_id from the pack's manifest.parquet.")
    if missing := [image for image in image_ids if image not in place]:
        raise DataError(
            f"{path} lacks {_some(missing)} of the {len(image_ids):,} in the split {split}.",
            hint="A model is judged on every image of a split: left-out ones are seldom the easy ones.",
        )
    return np.array([place[image] for image in image_ids], np.int64), len(place) - len(image_ids)


def _class_columns(path: Path, rows: pa.Table, class_names: Sequence[str]) -> tuple[list[str], bool]:
    """The column of each class, by one scheme for all, and whether that counts the classes."""
    numbered = [f"prob_{k}" for k in range(len(class_names))]
    own = written_classes(rows)
    if own is not None:
        if own != list(class_names):
            raise DataError(
                f"{path} was written for the classes {', '.join(own)}; the pack has {', '.join(class_names)}.", hint="Give the pack of those images."
            )
        return numbered, True
    schemes = [list(class_names), [f"prob_{name}" for name in class_names], numbered]
    held = [[column for column in scheme if column in rows.column_names] for scheme in schemes]
    whole = [scheme for scheme, columns in zip(schemes, held, strict=True) if columns == scheme]
    if not whole:
        best = max(range(len(schemes)), key=lambda number: len(held[number]))
        lacking = next(k for k, column in enumerate(schemes[best]) if column not in rows.column_names)
        raise DataError(
            f"{path} has no column for the class {class_names[lacking]!r}.",
            hint=f"Name it {schemes[best][lacking]!r}, like the others. Classes: {', '.join(class_names)}.",
        )
    for other in whole[1:]:
        for name, *pair in zip(class_names, whole[0], other, strict=True):
            if pair[0] != pair[1] and rows[pair[0]].to_pylist() != rows[pair[1]].to_pylist():
                raise DataError(
                    f"{path} can be read in two ways: the class {name!r} may be the column {pair[0]!r} or {pair[1]!r}.",
                    hint="They hold different values. Name a column for each class like the class, and leave out all other columns that begin with prob_.",
                )
    return whole[0], whole[0] == numbered


def _probabilities(path: Path, rows: pa.Table, names: Sequence[str], image_ids: Sequence[str]) -> npt.NDArray[np.float64]:
    columns = []
    for found in names:
        try:
            columns.append(np.asarray(rows[found].to_numpy(), np.float64))
        except (ValueError, TypeError):
            raise DataError(f"The column {found!r} of {path} does not hold numbers.", hint="Write probabilities from 0 to 1.") from None
    probs = np.stack(columns, axis=1)
    wrong = np.flatnonzero(~(np.isfinite(probs) & (probs >= 0) & (probs <= 1 + _SUM_TOLERANCE)).all(axis=1))
    if len(wrong):
        values = ", ".join(f"{value:g}" for value in probs[wrong[0]])
        raise DataError(
            f"{path} has {len(wrong):,} rows with numbers that are no probabilities; the first is {image_ids[wrong[0]]!r}: {values}.",
            hint="Each must lie from 0 to 1. Of logits, write the softmax.",
        )
    sums = probs.sum(axis=1)
    off = np.flatnonzero(np.abs(sums - 1) > _SUM_TOLERANCE)
    if len(off):
        raise DataError(
            f"The probabilities of {len(off):,} rows of {path} do not sum to one; of {image_ids[off[0]]!r} they sum to {sums[off[0]]:.4g}.",
            hint="Every image is of exactly one class here: write the softmax over all of them.",
        )
    scaled: npt.NDArray[np.float64] = probs / sums[:, None]
    return scaled


def _targets(
    path: Path, rows: pa.Table, class_names: Sequence[str], truth: npt.NDArray[np.int64], image_ids: Sequence[str], *, numbered: bool
) -> npt.NDArray[np.int64]:
    if "target" not in rows.column_names:
        return truth
    by_number, by_name = {str(k): k for k in range(len(class_names))}, {name: k for k, name in enumerate(class_names)}
    values: list[Any] = rows["target"].to_pylist()
    told = {str(value) for value in values}
    unclear = sorted(value for value in told & set(by_number) if by_name.get(value, by_number[value]) != by_number[value])
    if unclear and not (numbered and told <= set(by_number)):
        raise DataError(
            f"The target {unclear[0]!r} in {path} may be the class of that name, or the class {class_names[by_number[unclear[0]]]!r} with that number.",
            hint="Leave the column target out: the pack knows the class of each image.",
        )
    number_of = by_name | by_number if numbered else by_number | by_name
    given = [number_of.get(str(value), -1) for value in values]
    if -1 in given:
        row = given.index(-1)
        raise DataError(f"The target of {image_ids[row]!r} in {path} is {values[row]!r}, which is no class.", hint=f"Classes: {', '.join(class_names)}.")
    return np.array(given, np.int64)


def _some(images: set[str] | list[str]) -> str:
    """ "2 images (a, b)"."""
    shown = sorted(images)[:_SHOWN]
    return f"{len(images):,} image{'s' if len(images) > 1 else ''} ({', '.join(shown)}{', ...' if len(images) > _SHOWN else ''})"


def evaluate_table(table: Path, pack: Path, out: Path, *, split: str = "test", draws: int = 2000, seed: int = 0, detail: Detail | None = None) -> Scores:
    """Score a table of predictions; write predictions-SPLIT.parquet, scores-SPLIT.json and the report into the folder ``out``.

    Raises DataError, ConfigError, PackError, and RunExistsError where ``out`` is a run's own folder.
    """
    from ..data.pack import Pack

    if (out / "checkpoint.pth").exists():
        raise RunExistsError(f"{out} is a run: its own scores would be overwritten.", hint="Give another folder: -o DIR")
    if out.exists() and not out.is_dir():
        raise RunExistsError(f"{out} is a file: the scores need a folder.", hint="Give one: -o DIR")
    opened = Pack.open(pack)
    opened.verify([split])
    foreign = read_foreign(table, opened, split)
    about: dict[str, Any] = {"run": out.resolve().name, "experiment": "", "split": split, "audit": opened.findings(), "cost": dict.fromkeys(COSTS)}
    scores = score_on_pack(foreign.predictions, opened, about=about, detail=detail or Detail(), draws=draws, seed=seed)
    scores = replace(scores, notes=foreign.notes)
    rendered = render_report(scores, foreign.predictions, pack=opened, run_dir=out, experiment={}, cases=[], originals={})
    out.mkdir(parents=True, exist_ok=True)
    foreign.predictions.save(out / f"predictions-{split}.parquet")
    scores.save(out)
    write_text(report_path(out, split), rendered.report)
    return scores
