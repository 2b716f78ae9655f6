"""The manifest: one row for every image of a pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # unique: the first 20 digits of the file's SHA-256
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),  # source:patient; from DICOM: source:pseudonym
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),  # inside the source; of a frame: file#0001 and so on
        pa.field("sha256", pa.string(), nullable=False),  # of the file's bytes; of a frame: of the text "file's SHA-256#frame"
        pa.field("perceptual_hash", pa.string(), nullable=False),  # 64 hexadecimal digits, data.hashing
        pa.field("width_px", pa.int32(), nullable=False),  # before resizing
        pa.field("height_px", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),  # JPEG, PNG, NPZ or DICOM
        pa.field("row", pa.int64(), nullable=False),  # in the array of its split
    ]
)


def write_manifest(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """One row group of plain columns, without the writer's version or a clock: the same rows give the same bytes."""
    table = pa.table({field.name: pa.array(columns[field.name], type=field.type) for field in SCHEMA}, schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", store_schema=False)
