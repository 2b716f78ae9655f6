"""Lists of image files, read a line at a time: plain paths, paths that end with NUL, or a CSV file with a reading beside each path."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import IO

from ..core.errors import DataError

_MOST_CHARACTERS = 1 << 20
"""Of one path: a list without line ends is no list."""


def read_list(file: str, *, null: bool = False, column: str | None = None) -> Iterator[tuple[str, str | None]]:
    """(path, None), or (path, reading) of a CSV file with the columns ``path`` and ``column``. ``file``: - is standard input. Raises DataError."""
    try:
        with nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb") as stream:
            if column is None:
                yield from ((path, None) for path in _split(stream, b"\0" if null else b"\n", file) if path)
            else:
                yield from _rows(stream, file, column)
    except OSError as error:
        raise DataError(f"The list {file!r} cannot be read: {error.strerror or error}.", hint="Check the path and its permissions.") from None


def _split(stream: IO[bytes], end: bytes, file: str) -> Iterator[str]:
    rest = b""
    while part := stream.read(1 << 16):
        *whole, rest = (rest + part).split(end)
        for path in whole:
            yield _text(path, end)
        if len(rest) > _MOST_CHARACTERS:
            raise DataError(f"The list {file!r} has a path of more than {_MOST_CHARACTERS:,} characters.", hint="One path a line, or --null.")
    yield _text(rest, end)


def _text(path: bytes, end: bytes) -> str:
    return (path.rstrip(b"\r") if end == b"\n" else path).decode(sys.getfilesystemencoding(), "surrogateescape")


def _rows(stream: IO[bytes], file: str, column: str) -> Iterator[tuple[str, str]]:
    lines = (line.decode("utf-8-sig" if number == 0 else "utf-8", "surrogateescape") for number, line in enumerate(stream))
    rows = csv.DictReader(lines)
    try:
        missing = [name for name in ("path", column) if name not in (rows.fieldnames or ())]
        if missing:
            raise DataError(f"The list {file!r} has no column {missing[0]!r}, but {list(rows.fieldnames or ())!r:.200}.", hint="Its first line names them.")
        for row in rows:
            if not row["path"] or row[column] is None:
                raise DataError(f"Line {rows.line_num} of {file!r} has no path, or no {column!r}.", hint="Mend the line.")
            yield row["path"], row[column].strip()
    except csv.Error as error:
        raise DataError(f"Line {rows.line_num} of {file!r} is no CSV: {error}.", hint="Write it with one path and one reading a line.") from None
