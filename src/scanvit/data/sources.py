"""The sources file: which archives and folders, how a path tells the class and the patient, and how to split.

    image_size_px: 64
    split: {train: 7, val: 2, test: 1, final_eval: 0.1, seed: 42}
    sources:
      - name: kermany
        path: chest_xray.zip
        classes:
          lung-normal: "*/NORMAL/*"
          lung-opacity: "*/PNEUMONIA/*_bacteria_*"
        patient: "(?P<patient>person[0-9]+|IM-[0-9]+)"

Patterns are globs over the whole path inside the source (``*`` crosses ``/``), or regular expressions after ``re:``.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..core.errors import ScanvitError, SourcesError, UnknownKeyError
from ..core.loading import did_you_mean, parse_yaml, read_text
from .original import is_datasets_config, sources_values

_FORBID = ConfigDict(extra="forbid", validate_default=True)
_UNKNOWN_KEY = {"unexpected_keyword_argument", "extra_forbidden"}
DICOM_PATIENT = "dicom"
SPLITS = ("train", "val", "test", "final_eval")
"""In the order of the pack's arrays."""
_TAKEN = {"image_id", "class_name", "split", "patient_id", "source", "path", "sha256", "perceptual_hash", "width_px", "height_px", "format", "row"} | {
    "width",
    "height",
    "batch",
    "index",
    "class",
    "kept_split",
}

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,63}$")]
Attribute = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Patterns = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value), Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class SplitConfig:
    """Shares of images; patients are never cut."""

    train: float = Field(default=7, gt=0)
    """Of what the final_eval pool leaves, in proportion to val and test."""
    val: float = Field(default=2, ge=0)
    test: float = Field(default=1, ge=0)
    final_eval: float = Field(default=0.1, ge=0, lt=1)
    """Share of all patients set aside first, for retraining and a last judgement."""
    seed: int = Field(default=42, ge=0, lt=2**31)


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class PatientTable:
    """A CSV file inside the source that names each image's patient."""

    file: str
    """Path inside the source, or the end of it."""
    image: str
    """Column with the image's path inside the source, or the end of it."""
    patient: str
    """Column with the patient."""


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class MetadataTable:
    """A CSV file, inside the source or beside it, with columns to keep in the manifest: what subgroups are formed by (data.attributes)."""

    file: str
    """Path inside the source, or the end of it; or the name of a file in the folder where the source lies."""
    image: str | None = None
    """Column with the image's path inside the source, or the end of it."""
    patient: str | None = None
    """Instead of ``image``: column with the patient."""
    columns: Annotated[dict[Attribute, str], Field(min_length=1)]
    """{name in the manifest: column}. ``age_band``: of a column of ages, in years or like 063Y; ``sex``: F, M or O; others as they stand."""


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class Source:
    name: Name
    path: str
    """Archive, folder or MedMNIST .npz; relative to ``--root``, by default the folder of the sources file."""
    include: Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = ()
    """Only paths that match one of these patterns; left out: all."""
    classes: dict[Name, Patterns] = Field(default_factory=dict)
    """{class: pattern or patterns}; left out: an image's class is the name of its folder."""
    patient: str | None = None
    """Regular expression with a group named ``patient``, searched in the path inside the source. Or ``dicom``: each DICOM file's PatientID,
    within its IssuerOfPatientID, replaced by a salted hash (data.dicom.pseudonym); files that name no patient are quarantined."""
    patients: PatientTable | None = None
    """Instead of ``patient``. With neither, each image counts as its own patient, and the audit says so."""
    metadata: MetadataTable | None = None
    """Columns to keep in the manifest."""
    dicom_tags: tuple[Literal["sex", "age_band", "view", "scanner"], ...] = ()
    """What to keep in the manifest of each DICOM file's header. Nothing else of it is ever kept."""
    split: Literal["assign", "keep", "auto"] = "assign"
    """keep: the folder train/, val/, test/ or final_eval/ in the path is the split. auto: keep where train, val and test are all there."""


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class Sources:
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    image_size_px: int = Field(default=64, ge=8, le=4096)
    """Height and width in the pack."""
    channels: Literal[1, 3] = 1
    """1: gray; 3: RGB."""
    split: SplitConfig = Field(default_factory=SplitConfig)
    max_quarantine_share: float = Field(default=0.05, ge=0, le=1)
    """Share of unreadable images past which nothing is written."""
    near_duplicates: Literal["keep", "drop", "move"] = "keep"
    """Of near duplicates under several patients: keep them all, as the audit will tell; drop those of all patients but the first; or move all
    these patients into one split."""


_ADAPTER = TypeAdapter(Sources)


def load_sources(path: Path | str) -> Sources:
    """A sources file (by its ending .yaml or .yml), or one folder, archive or .npz as the only source.

    A folder that holds a ``sources.yaml`` is described by it. A ``datasets_config.yaml`` is read as data.original says. Raises SourcesError or
    UnknownKeyError.
    """
    path = Path(path)
    if file := sources_file(path):
        values = parse_yaml(read_text(file, error=SourcesError), where=str(file), error=SourcesError)
        return sources_from_dict(sources_values(values, where=str(file)) if is_datasets_config(values) else values, where=str(file))
    if not os.path.exists(path):
        what = f"The link {path} leads nowhere." if os.path.islink(path) else f"There is no file or folder {path}."
        raise SourcesError(what, hint="Give a sources file (.yaml), a folder, a zip or tar archive, or a MedMNIST .npz.")
    name = _in_place(path).name
    return Sources(sources=(Source(name=_name_of(name), path=name, split="auto"),))


def sources_file(path: Path | str) -> Path | None:
    """The file that describes what ``path`` names: itself, or the ``sources.yaml`` in it. None for a folder or archive that is a source itself."""
    path = Path(path)
    if os.path.isfile(path / "sources.yaml"):
        return path / "sources.yaml"
    return path if path.suffix.lower() in (".yaml", ".yml") else None


def sources_root(path: Path | str) -> Path:
    """What the paths of ``load_sources(path)`` are relative to unless a root is given."""
    path = Path(path)
    if sources_file(path) == path:  # its paths were written where it lies, not where a link to it does
        return Path(os.path.realpath(path)).parent
    path = _in_place(path)
    return (sources_file(path) or path).parent


def sources_from_dict(values: dict[str, Any], *, where: str = "sources") -> Sources:
    try:
        sources = _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise _explain(error, where) from None
    _check_rules(sources, where)
    return sources


def sources_to_dict(sources: Sources) -> dict[str, Any]:
    """Plain data only, for the settings of a pack."""
    return _ADAPTER.dump_python(sources, mode="json")


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Does a path match one of the patterns? Raises SourcesError for a pattern that is no regular expression."""
    compiled = [compile_regex(p[3:]) if p.startswith("re:") else re.compile(fnmatch.translate(p)) for p in patterns]
    # A glob matches the whole path (fnmatch anchors it), a regular expression any part of it.
    return lambda path: any(regex.search(path) if p.startswith("re:") else regex.match(path) for p, regex in zip(patterns, compiled, strict=True))


def reads(source: Source) -> Callable[[str], bool]:
    """Is the file of this path read, as an image or as a table? Of a folder, named with a slash at its end: may one below it be?"""
    if not source.include:
        return lambda path: True
    is_included = matcher(source.include)
    tables = [table.file for table in (source.patients, source.metadata) if table is not None]

    def is_read(path: str) -> bool:
        if path.endswith("/"):
            return any(_may_match_below(pattern, path) for pattern in (*source.include, *tables))
        return is_included(path) or any(f"/{path}".endswith(f"/{table}") for table in tables)

    return is_read


def compile_regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as cause:
        raise SourcesError(f"The pattern {text!r} is no regular expression: {cause}.", hint="Mend it in the sources file.") from None


def _may_match_below(pattern: str, folder: str) -> bool:
    """False only where the pattern begins with another folder: the rest of it may match anything."""
    fixed = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    return pattern.startswith("re:") or fixed.startswith(folder) or folder.startswith(fixed)


def _check_rules(sources: Sources, where: str) -> None:
    names = [source.name for source in sources.sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SourcesError(f"{where}: two sources are named {twice[0]!r}.", hint="Give each its own name: patients are told apart by it.")
    for source in sources.sources:
        _check_metadata(source, where)
        for patterns in (source.include, *source.classes.values()):
            matcher(patterns)
        if source.patient is not None and source.patients is not None:
            raise SourcesError(f"{where}: {source.name} has both 'patient' and 'patients'.", hint="Keep the one that tells the patient.")
        if source.patient not in (None, DICOM_PATIENT) and "patient" not in compile_regex(source.patient).groupindex:
            raise SourcesError(f"{where}: the patient pattern of {source.name} has no group named patient.", hint="Write it as (?P<patient>...), or dicom.")


def _check_metadata(source: Source, where: str) -> None:
    if source.metadata is None:
        return
    if (source.metadata.image is None) == (source.metadata.patient is None):
        raise SourcesError(f"{where}: the metadata of {source.name} has to say which column holds the image or the patient.", hint="Give one of the two.")
    if source.metadata.patient is not None and source.patient == DICOM_PATIENT:
        hint = "Give the column that holds the image."
        raise SourcesError(f"{where}: the patients of {source.name} are pseudonyms, which no metadata file knows.", hint=hint)
    if taken := next((name for name in source.metadata.columns if name in _TAKEN), None):
        raise SourcesError(f"{where}: a manifest has a column {taken!r} already.", hint="Give the metadata column another name.")
    if twice := next((name for name in source.dicom_tags if name in source.metadata.columns), None):
        raise SourcesError(f"{where}: {twice!r} of {source.name} comes from the metadata and from DICOM.", hint="Keep one of the two.")


def _explain(error: ValidationError, where: str) -> ScanvitError:
    errors = error.errors()
    first = next((e for e in errors if e["type"] in _UNKNOWN_KEY), errors[0])
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("literal[", "function-", "[key]")))
    if first["type"] in _UNKNOWN_KEY:
        known = _siblings(first["loc"])
        return UnknownKeyError(f"{where}: {key!r} is no setting.{did_you_mean(str(first['loc'][-1]), known)}", hint=f"Settings there: {', '.join(known)}")
    shown = repr(first["input"]) if len(repr(first["input"])) < 80 else f"a {type(first['input']).__name__}"
    return SourcesError(f"{where}: {key} is {shown}: {first['msg'][0].lower()}{first['msg'][1:]}.", hint="Mend the value in the sources file.")


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    kind: Any = {"sources": Source, "split": SplitConfig}.get(str(loc[0]), Sources) if len(loc) > 1 else Sources
    if kind is Source:
        kind = next((inner for name, inner in {"patients": PatientTable, "metadata": MetadataTable}.items() if name in loc[:-1]), Source)
    return list(kind.__dataclass_fields__)


def _in_place(path: Path | str) -> Path:
    """Absolute. A link at its end keeps its own name and folder: a source is called as it was given, wherever its bytes lie."""
    path = Path(path)
    return Path(os.path.realpath(path) if path.name in ("", "..") else os.path.join(os.path.realpath(path.parent), path.name))


def _name_of(stem: str) -> str:
    for ending in (".gz", ".tgz", ".tar", ".zip", ".npz"):
        stem = stem.removesuffix(ending)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64] or "source"
