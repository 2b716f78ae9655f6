"""The manifest: one row for every image of a pack. Behind the columns of SCHEMA stand those that the sources were asked to keep (``data.attributes``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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


ROW_GROUP_IMAGES = 1 << 16
"""Rows that are held at a time while a manifest is written."""


def schema_with(attributes: Sequence[str]) -> pa.Schema:
    """Attributes are strings, '' where an image has none."""
    return pa.schema([*SCHEMA, *(pa.field(name, pa.string(), nullable=False) for name in attributes)])


def attributes_of(schema: pa.Schema) -> list[str] | None:
    """The names behind the columns of SCHEMA; None for a table that is no manifest."""
    names: list[str] = schema.names[len(SCHEMA) :]
    return names if schema.equals(schema_with(names)) and len({*schema.names}) == len(schema) else None


def write_manifest(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """A manifest whose columns fit into memory at once."""
    with manifest_writer(path, [name for name in columns if name not in SCHEMA.names]) as write:
        write(columns)


@contextmanager
def manifest_writer(path: Path, attributes: Sequence[str] = ()) -> Iterator[Callable[[Mapping[str, Sequence[Any]]], None]]:
    """A function that appends rows, best ROW_GROUP_IMAGES at a time.

    Row groups of plain columns, without the writer's version or a clock: the same rows in the same pieces give the same bytes.
    """
    schema = schema_with(attributes)
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:

        def write(columns: Mapping[str, Sequence[Any]]) -> None:
            arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=ROW_GROUP_IMAGES)

        yield write
