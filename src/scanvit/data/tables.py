"""CSV files that say something of each image or patient of a source: read row by row, from inside the source or from beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from ..core.errors import SourcesError
from .archives.base import Archive

_MOST_BYTES = 1 << 28


def table_rows(source: str, archive: Archive, file: str, columns: Sequence[str], *, beside: bool = False) -> Iterator[list[str]]:
    """The stripped values of ``columns`` in each row that has a value in the first, which is a path or the end of one, or a patient.

    ``file``: a path inside the source or the end of it; where ``beside``, it may also be a file in the folder where the source lies, as public sets
    often have it. Raises SourcesError for a file that cannot be used.
    """
    try:
        reader = csv.DictReader(io.StringIO(_bytes_of(source, archive, file, beside).decode("utf-8-sig"), newline=""))
        known = reader.fieldnames or []
        if missing := next((column for column in columns if column not in known), None):
            raise SourcesError(f"{file} of {source} has no column {missing!r}.", hint=f"Its columns: {', '.join(map(str, known))[:200]}")
        for row in reader:
            key, *values = ((row[column] or "").strip() for column in columns)
            if key := key.lstrip("./"):
                yield [key, *values]
    except (UnicodeDecodeError, csv.Error) as cause:
        raise SourcesError(f"{file} of {source} is no UTF-8 CSV file: {cause}.", hint="Mend the file.") from None


def path_ends(path: str) -> list[str]:
    """The path itself, then without its first folder, and so on down to the file's name."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _bytes_of(source: str, archive: Archive, file: str, beside: bool) -> bytes:
    found = [member.path for member in archive.members() if file in path_ends(member.path)]
    if len(found) == 1:
        return next(data for _, data in archive.read({found[0]}))
    neighbour = archive.path.parent / file
    if beside and not found and neighbour.is_file() and neighbour.resolve().is_relative_to(archive.path.parent.resolve()):
        if neighbour.stat().st_size > _MOST_BYTES:
            raise SourcesError(f"{neighbour} is too large for a table: {neighbour.stat().st_size:,} bytes.", hint="Leave out what is not needed.")
        return neighbour.read_bytes()
    what = f"holds {len(found)} files" if found else f"has {'neither inside nor beside it a' if beside else 'no'} file"
    raise SourcesError(f"{source} {what} {file!r}.", hint="Mend the name of the table in the sources file.")
