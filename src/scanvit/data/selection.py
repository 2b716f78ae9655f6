"""From the members of one source to the images that go on: each with its class, its patient and perhaps its split."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..core.errors import EmptyClassError, SourcesError
from .archives.base import Archive
from .attributes import metadata_rule
from .candidates import Candidate, Candidates
from .sources import DICOM_PATIENT, SPLITS, PatientTable, Source, compile_regex, matcher
from .tables import path_ends, table_rows

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".npy", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2", ".dcm", ".dicom")
"""What counts as an image by its name. Those that are not JPEG, PNG or DICOM end in the quarantine, and are not silently left out."""
_CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}")
_UID = re.compile(r"[0-9.]+|[A-Za-z]{2,3}(\.[0-9]+){3,}")
_FOLDER_HINT = "Give class patterns in a sources file: classes: {name: pattern}."


def may_be_dicom(path: str) -> bool:
    """A name as on exported media: without an ending, or a UID such as 1.2.840.113, whose .113 is none, perhaps behind the modality (CT.1.2.840.113).
    DICOMDIR is their index."""
    name = path.rsplit("/", 1)[-1]
    return (not os.path.splitext(name)[1] or _UID.fullmatch(name) is not None) and not name.startswith(".") and name.upper() != "DICOMDIR"


@dataclass(frozen=True)
class Quarantined:
    """A file that gets into no split."""

    source: str
    path: str
    reason: str
    """no-class, no-patient, no-split, unreadable, duplicate, near-duplicate or conflicting-labels."""
    detail: str


@dataclass(frozen=True)
class Selection:
    source: Source
    archive: Archive
    candidates: Candidates
    """In the order in which the archive is read."""
    quarantined: list[Quarantined] = field(default_factory=list)
    ignored: int = 0
    """Files that are no images, or that ``include`` leaves out."""
    keeps_splits: bool = False
    attributes: Callable[[Candidate], dict[str, str]] = lambda candidate: {}
    """What the source's metadata file says of a candidate."""
    undescribed: int = 0
    """Candidates of which the metadata file says nothing."""

    @property
    def knows_patients(self) -> bool:
        return self.source.patient is not None or self.source.patients is not None


def select(source: Source, archive: Archive) -> Selection:
    """Raises SourcesError for rules that contradict each other or the source, EmptyClassError for a class pattern that finds nothing, and for a class
    whose images are all in the quarantine."""
    is_included = matcher(source.include) if source.include else lambda path: True
    class_of = _class_rule(source)
    patient_of = _patient_rule(source, archive)
    candidates = Candidates()
    quarantined: list[Quarantined] = []
    ignored = 0
    for member in archive.members():
        is_image = member.path.lower().endswith(IMAGE_ENDINGS) or (source.patient == DICOM_PATIENT and may_be_dicom(member.path))
        if not is_image or not is_included(member.path):
            ignored += 1
        elif (class_name := class_of(member.path)) is None:
            why = "no class pattern matches" if source.classes else "it lies in no class folder"
            quarantined.append(Quarantined(source.name, member.path, "no-class", why))
        elif (patient := patient_of(member.path)) is None:
            quarantined.append(Quarantined(source.name, member.path, "no-patient", "the patient rule finds none"))
        else:
            candidates.append(Candidate(member.path, class_name, f"{source.name}:{patient}", _split_folder(member.path), member.size_bytes))
    selection = _with_splits(Selection(source, archive, candidates, quarantined, ignored))
    _check_classes(selection, class_of)
    if source.metadata is None:
        return selection
    attributes, undescribed = metadata_rule(source.name, source.metadata, archive, selection.candidates)
    return replace(selection, attributes=attributes, undescribed=undescribed)


def _with_splits(selection: Selection) -> Selection:
    source, candidates = selection.source, selection.candidates
    found = {split for split, count in candidates.split_counts.items() if count}
    keeps = source.split == "keep" or (source.split == "auto" and found >= {"train", "val", "test"} and None not in found)
    if not keeps:
        candidates.forget_splits()
        return selection
    if None not in found:
        return replace(selection, keeps_splits=True)
    lost = [Quarantined(source.name, c.path, "no-split", "it lies in no folder train, val, test or final_eval") for c in candidates if c.split is None]
    placed = Candidates(c for c in candidates if c.split is not None)
    return replace(selection, candidates=placed, quarantined=selection.quarantined + lost, keeps_splits=True)


def _check_classes(selection: Selection, class_of: Callable[[str], str | None]) -> None:
    source, kept = selection.source.name, selection.candidates.class_names
    for entry in selection.quarantined:
        if (name := class_of(entry.path)) is not None and name not in kept:
            raise EmptyClassError(
                f"All images of {source} in the class {name!r} are in the quarantine. {entry.path}: {entry.detail}.",
                hint="Mend the rule in the sources file, or leave the class out by 'include'.",
            )
    if empty := [name for name in selection.source.classes if name not in kept]:
        raise EmptyClassError(f"No image of {source} belongs to the class {empty[0]!r}.", hint="Mend or remove its pattern in the sources file.")


def _class_rule(source: Source) -> Callable[[str], str | None]:
    if not source.classes:
        return lambda path: _class_folder(path, source.name)
    rules = [(name, matcher(patterns)) for name, patterns in source.classes.items()]

    def class_of(path: str) -> str | None:
        names = [name for name, matches in rules if matches(path)]
        if len(names) > 1:
            raise SourcesError(f"{path!r} in {source.name} matches two classes: {names[0]!r} and {names[1]!r}.", hint="Make the patterns exclude each other.")
        return names[0] if names else None

    return class_of


def _class_folder(path: str, source: str) -> str | None:
    parents = path.split("/")[:-1]
    if not parents or parents[-1] in SPLITS:
        return None
    if not _CLASS_NAME.fullmatch(parents[-1]):
        raise SourcesError(f"The folder name {parents[-1]!r} in {source} cannot be a class name (letters, digits, '._ -', at most 64).", hint=_FOLDER_HINT)
    return parents[-1]


def _split_folder(path: str) -> str | None:
    return next((part for part in path.split("/")[:-1] if part in SPLITS), None)


def _patient_rule(source: Source, archive: Archive) -> Callable[[str], str | None]:
    if source.patients is not None:
        table = _read_patients(source.name, source.patients, archive)
        return lambda path: next((table[end] for end in path_ends(path) if end in table), None)
    if source.patient is None or source.patient == DICOM_PATIENT:  # there the files name their patients when they are decoded
        return lambda path: path  # each image its own patient
    regex = compile_regex(source.patient)

    def patient_of(path: str) -> str | None:
        match = regex.search(path)
        return ((match["patient"] or "").strip() or None) if match else None

    return patient_of


def _read_patients(source: str, rule: PatientTable, archive: Archive) -> dict[str, str]:
    table: dict[str, str] = {}
    for image, patient in table_rows(source, archive, rule.file, (rule.image, rule.patient)):
        if patient and table.setdefault(image, patient) != patient:
            raise SourcesError(f"{rule.file} of {source} gives {image!r} two patients: {table[image]!r} and {patient!r}.", hint="Mend the file.")
    return table
