"""First readings by people, to judge the network as a second reader: a CSV file with the columns ``image_id`` and ``reading``, a class's name."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..core.errors import DataError

if TYPE_CHECKING:
    from .predictions import Predictions

_COLUMNS = ("image_id", "reading")
_HINT = "It needs a header with image_id and reading, and a row an image: image_id as in predictions-SPLIT.parquet, reading a class's name."


@dataclass(frozen=True, eq=False, kw_only=True)
class Readings:
    rows: list[int]
    """Of the predictions: the images that were read."""
    classes: npt.NDArray[np.int64]
    """What each was read as."""


def read_readings(path: Path, predictions: Predictions) -> Readings:
    """Of the images that the predictions hold; readings of others are not looked at.

    Raises DataError for a file that cannot be read, an unknown class, an image that was read twice, or no reading of any of the images.
    """
    places = {image_id: row for row, image_id in enumerate(predictions.image_ids)}
    found: dict[int, int] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            if missing := [name for name in _COLUMNS if name not in (table.fieldnames or ())]:
                raise DataError(f"{path} has no column {missing[0]!r}.", hint=_HINT)
            for values in table:
                row, reading = places.get(str(values["image_id"])), values["reading"]
                if row is None:
                    continue
                if reading not in predictions.class_names:
                    raise DataError(f"{path}, line {table.line_num}: {reading!r} is no class.", hint=f"Classes: {', '.join(predictions.class_names)}.")
                if row in found:
                    raise DataError(f"{path}, line {table.line_num}: {values['image_id']!r} was read before.", hint="Keep one reading an image.")
                found[row] = predictions.class_names.index(reading)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.", hint=_HINT) from None
    if not found:
        raise DataError(f"{path} holds no reading of any image that is judged.", hint=_HINT)
    rows = sorted(found)
    return Readings(rows=rows, classes=np.array([found[row] for row in rows], np.int64))
