"""What a pack may know of an image besides its class and patient: sex, age band, view, scanner, and columns of a CSV file.

They say for whom a network works (``evaluation.subgroups``), so they have few values: what tells single people apart stays out. Ages are kept
in bands of ten years, from 90 on as one (the rule of HIPAA's safe harbour, 45 CFR 164.514(b)(2)(i)(C)); dates, with a time or without, and columns
with many values are refused. Of DICOM files nothing else than the four elements of ``DICOM_TAGS`` is read, and a value in an unexpected form is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..core.errors import SourcesError
from .archives.base import Archive
from .dicom.frames import dicom_texts
from .tables import path_ends, table_rows

if TYPE_CHECKING:
    from .candidates import Candidate
    from .sources import MetadataTable, Source

DICOM_TAGS = {"sex": "PatientSex", "age_band": "PatientAge", "view": "ViewPosition", "scanner": "ManufacturerModelName"}
MOST_VALUES = 50
"""Different values of an attribute. More are no groups, and may tell people apart."""
_OLDEST = 90
_LONGEST = 64
_SEXES = {"f": "F", "female": "F", "w": "F", "woman": "F", "m": "M", "male": "M", "man": "M", "o": "O", "other": "O"}
_DAY = r"(1[89]|20)[0-9]{2}[-/. ]?[01]?[0-9][-/. ]?[0-3]?[0-9]"
_FULL_DAY = (
    r"(1[89]|20)[0-9]{2}([-/. ][01]?[0-9][-/. ][0-3]?[0-9]|[01][0-9][0-3][0-9]|-?W[0-5][0-9]-?[1-7])"
    r"|[0-3]?[0-9][-/.][0-3]?[0-9][-/.](1[89]|20)?[0-9]{2}"
)
"""Beside one that may be something else, such as 2012 10, a time is no time."""
_CLOCK = r"\D(.*\D)?[0-2]?[0-9] ?[:h] ?[0-5][0-9].*"
_HOUR = r"([^\w.]|_|T){1,4}[0-2]?[0-9]|[0-2][0-9][0-5][0-9]"
"""Not behind a point: 10.1.12.3 is a version."""
_TIME = rf"({_HOUR})([.:]?[0-5][0-9]){{0,2}}([.,][0-9]+)?( ?([AP]\.?M\.?|h))?( ?(Z|UTC|[-+][0-9]{{2}}:?([0-9]{{2}})?))?"
_DAY_AND_HOUR = r"(1[89]|20)[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])([01][0-9]|2[0-4])(\.[0-9]+)?([-+][0-9]{4})?"
_DATE = re.compile(f"{_DAY}|({_FULL_DAY})({_CLOCK}|{_TIME})?|{_DAY_AND_HOUR}", re.IGNORECASE)
"""Also with a time, down to its hour alone, as in ISO 8601 and in DICOM's DT (PS3.5, 6.2)."""
_AGE = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?) ?([DWMY]?)")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0, "": 1.0}


def attribute_names(sources: Iterable[Source]) -> list[str]:
    """Of all sources, sorted."""
    return sorted({name for source in sources for name in (*source.dicom_tags, *(source.metadata.columns if source.metadata else ()))})


def code_of(name: str, codes: dict[str, int], value: str) -> int:
    """The number of a value, a new one for a new value. Raises SourcesError where they become too many."""
    if value and value not in codes and len(codes) - ("" in codes) >= MOST_VALUES:
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


def metadata_rule(source: str, rule: MetadataTable, archive: Archive, candidates: Iterable[Candidate]) -> tuple[Callable[[Candidate], dict[str, str]], int]:
    """(what the source's metadata file says of a candidate, of how many candidates it says nothing).

    Raises SourcesError for a file that cannot be used, and for one of which no row fits.
    """
    table = _read(source, rule, archive)

    def keys(candidate: Candidate) -> list[str]:
        return path_ends(candidate.path) if rule.image else [candidate.patient_id.split(":", 1)[1]]

    def row_of(candidate: Candidate) -> dict[str, str] | None:
        return next((table[key] for key in keys(candidate) if key in table), None)

    candidate, count, described = None, 0, 0
    for candidate in candidates:
        count, described = count + 1, described + (row_of(candidate) is not None)
    if candidate is not None and not described:
        shown = f"the first is for {next(iter(table))!r}, and an image's is {keys(candidate)[0]!r}" if table else "it has none"
        raise SourcesError(
            f"No row of {rule.file} fits an image of {source}: {shown}.",
            hint="Its column has to hold paths as in the source, with forward slashes, or their ends; or patients as the patient rule finds them.",
        )
    return lambda candidate: row_of(candidate) or {}, count - described


def _read(source: str, rule: MetadataTable, archive: Archive) -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = {}
    for name, *row in table_rows(source, archive, rule.file, (rule.image or rule.patient or "", *rule.columns.values()), beside=True):
        values = {attribute: value for attribute, text in zip(rule.columns, row, strict=True) if (value := clean(attribute, text))}
        if table.setdefault(name, values) != values:
            raise SourcesError(f"{rule.file} of {source} says two things of {name!r}: {table[name]} and {values}.", hint="Mend the file.")
    return table
