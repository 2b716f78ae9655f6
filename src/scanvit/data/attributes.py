"""What a pack may know of an image besides its class and patient: sex, age band, view, scanner, and columns of a CSV file.

They say for whom a network works (``evaluation.subgroups``), so they have few values: what tells single people apart stays out. Ages are kept
in bands of ten years, from 90 on as one (the rule of HIPAA's safe harbour, 45 CFR 164.514(b)(2)(i)(C)); dates and columns with many values are refused.
Of DICOM files nothing else than the four elements of ``DICOM_TAGS`` is read, and a value in an unexpected form is left out.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from ..core.errors import SourcesError
from .archives.base import Archive
from .dicom.frames import dicom_texts

if TYPE_CHECKING:
    from .selection import Candidate
    from .sources import Source

DICOM_TAGS = {"sex": "PatientSex", "age_band": "PatientAge", "view": "ViewPosition", "scanner": "ManufacturerModelName"}
MOST_VALUES = 50
"""Different values of an attribute. More are no groups, and may tell people apart."""
_OLDEST = 90
_LONGEST = 64
_MOST_TABLE_BYTES = 1 << 28
_SEXES = {"f": "F", "female": "F", "w": "F", "woman": "F", "m": "M", "male": "M", "man": "M", "o": "O", "other": "O"}
_DATE = re.compile(r"(1[89]|20)[0-9]{2}[-/. ]?[01]?[0-9][-/. ]?[0-3]?[0-9]|[0-3]?[0-9][-/.][0-3]?[0-9][-/.](1[89]|20)?[0-9]{2}")
_AGE = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?) ?([DWMY]?)")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0, "": 1.0}


def attribute_names(sources: Iterable[Source]) -> list[str]:
    """Of all sources, sorted."""
    return sorted({name for source in sources for name in (*source.dicom_tags, *(source.metadata.columns if source.metadata else ()))})


def code_of(name: str, codes: dict[str, int], value: str) -> int:
    """The number of a value, a new one for a new value. Raises SourcesError where they become too many."""
    if value not in codes and len(codes) > MOST_VALUES:
        raise SourcesError(
            f"The column {name!r} has more than {MOST_VALUES} different values: it forms no groups, and may tell people apart.",
            hint="Leave it out, or bring its values together in the table.",
        )
    return codes.setdefault(value, len(codes))


def dicom_attributes(data: bytes, tags: Iterable[str]) -> dict[str, str]:
    """Of the attributes ``tags``, those that the file states in their form. Raises ImageError."""
    names = [name for name in tags if name in DICOM_TAGS]
    texts = dicom_texts(data, [DICOM_TAGS[name] for name in names])
    found = {name: clean(name, texts[DICOM_TAGS[name]]) for name in names}
    found |= {name: "" for name in ("view",) if name in found and not re.fullmatch(r"[A-Z0-9_ ]{1,16}", found[name])}
    return {name: value for name, value in found.items() if value}


def clean(name: str, value: str) -> str:
    """A value as it goes into the manifest; '' for none. Raises SourcesError for a date."""
    value = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    if name == "age_band":
        return age_band(value)
    if name == "sex":
        return _SEXES.get(value.lower(), "")
    if _DATE.fullmatch(value):
        raise SourcesError(f"The column {name!r} holds a date, {value!r}: dates tell people apart.", hint="Leave the column out.")
    return value[:_LONGEST]


def age_band(value: str) -> str:
    """ "60-69" of "63", "063Y" or "760M"; "90+"; '' of what is no age."""
    match = _AGE.fullmatch(value.strip().upper())
    if not match:
        return ""
    years = float(match[1]) * _YEARS[match[2]]
    if years > 150:
        return ""
    decade = int(years // 10 * 10)
    return f"{_OLDEST}+" if decade >= _OLDEST else f"{decade}-{decade + 9}"


def metadata_rule(source: Source, archive: Archive) -> Callable[[Candidate], dict[str, str]]:
    """What the source's metadata file says of a candidate. Raises SourcesError for a file that cannot be used."""
    from .selection import path_ends

    rule = source.metadata
    if rule is None:
        return lambda candidate: {}
    key = rule.image or rule.patient or ""
    table = _read(source, archive, key, rule.columns)
    if rule.image is not None:
        return lambda candidate: next((table[end] for end in path_ends(candidate.path) if end in table), {})
    return lambda candidate: table.get(candidate.patient_id.split(":", 1)[1], {})


def _read(source: Source, archive: Archive, key: str, columns: Mapping[str, str]) -> dict[str, dict[str, str]]:
    assert source.metadata is not None
    file = source.metadata.file
    try:
        reader = csv.DictReader(io.StringIO(_bytes_of(source.name, file, archive).decode("utf-8-sig"), newline=""))
        known = reader.fieldnames or []
        if missing := next((column for column in (key, *columns.values()) if column not in known), None):
            raise SourcesError(f"{file} of {source.name} has no column {missing!r}.", hint=f"Its columns: {', '.join(map(str, known))[:200]}")
        table: dict[str, dict[str, str]] = {}
        for row in reader:
            name = (row[key] or "").strip().lstrip("./")
            values = {attribute: value for attribute, column in columns.items() if (value := clean(attribute, row[column] or ""))}
            if name and table.setdefault(name, values) != values:
                raise SourcesError(f"{file} of {source.name} says two things of {name!r}: {table[name]} and {values}.", hint="Mend the file.")
        return table
    except (UnicodeDecodeError, csv.Error) as cause:
        raise SourcesError(f"{file} of {source.name} is no UTF-8 CSV file: {cause}.", hint="Mend the file.") from None


def _bytes_of(source: str, file: str, archive: Archive) -> bytes:
    """Inside the source, or beside it: public sets often have their table there."""
    from .selection import path_ends

    found = [member.path for member in archive.members() if file in path_ends(member.path)]
    if len(found) == 1:
        return next(data for _, data in archive.read({found[0]}))
    beside = archive.path.parent / file
    if not found and beside.is_file() and beside.resolve().is_relative_to(archive.path.parent.resolve()):
        if beside.stat().st_size > _MOST_TABLE_BYTES:
            raise SourcesError(f"{beside} is too large for a table: {beside.stat().st_size:,} bytes.", hint="Leave out what is not needed.")
        return beside.read_bytes()
    what = f"holds {len(found)} files" if found else "has neither inside nor beside it a file"
    raise SourcesError(f"{source} {what} {file!r}.", hint="Mend metadata.file in the sources file.")
