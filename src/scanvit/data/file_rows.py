"""One file of a source to its rows and pixels: a picture gives one, a volume one a frame, an unreadable file a row that says why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from ..core.contract import PixelContract
from ..core.errors import ImageError
from .attributes import dicom_attributes
from .candidates import Candidate
from .decode import decode_frames
from .dicom.frames import dicom_patient, is_dicom
from .dicom.pseudonym import load_salt, pseudonym, salt_mark
from .hashing import perceptual_hash, sha256_bytes
from .selection import Quarantined
from .sources import DICOM_PATIENT, Source

_DECODERS = ("pillow", "pydicom", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pylibjpeg-libjpeg", "python-gdcm")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the files of a source are asked for besides their pixels."""

    salt: bytes | None = None
    """They are to name their patient, who gets a pseudonym of this salt."""
    tags: tuple[str, ...] = ()
    """Attributes to take from DICOM files, of ``attributes.DICOM_TAGS``."""


NOTHING_ASKED = Asked()


def rows_of_file(path: str, data: bytes, contract: PixelContract, *, asked: Asked = NOTHING_ASKED) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """({"file", "path", "sha256", "pixels_sha256", "perceptual_hash", "width_px", "height_px", "format"} an image, uint8 (C, H, W) an image).

    ``path`` is the file's, and for frame 7 of a volume ``file#0007``. ``sha256`` is of the file's bytes, and for a frame of the text
    ``SHA-256 of the file#frame``. Where the file was ``asked`` for them, the rows also hold "patient", a pseudonym, and "attributes". A file that gives no
    image has the one row {"file", "path", "reason", "error"}.
    """
    try:
        owner: dict[str, Any] = {} if asked.salt is None else {"patient": _patient(data, asked.salt)}
        if asked.salt is not None and owner["patient"] is None:
            error = "it is DICOM without a PatientID" if is_dicom(data) else "only DICOM files name their patient"
            return [{"file": path, "path": path, "reason": "no-patient", "error": error}], []
        if asked.tags and is_dicom(data):
            owner["attributes"] = dicom_attributes(data, asked.tags)
        images = decode_frames(data, contract)
    except ImageError as error:
        return [{"file": path, "path": path, "reason": "unreadable", "error": error.message}], []
    rows = []
    digest = sha256_bytes(data)
    for image in images:
        number = image.frame
        row: dict[str, Any] = {"file": path, "path": path if number is None else f"{path}#{number:04d}", **owner}
        row |= {"sha256": digest if number is None else sha256_bytes(f"{digest}#{number}".encode("ascii"))}
        row |= {"pixels_sha256": sha256_bytes(image.pixels.data), "perceptual_hash": perceptual_hash(image.pixels)}
        row |= {"width_px": image.width_px, "height_px": image.height_px, "format": image.format}
        rows.append(row)
    return rows, [image.pixels for image in images]


def salt_of(source: Source) -> bytes | None:
    """None where the files are not asked for their patients. Raises ConfigError or StorageError (``data.dicom.pseudonym``)."""
    return load_salt() if source.patient == DICOM_PATIENT else None


def asked_of(source: Source) -> Asked:
    """Raises as ``salt_of``."""
    return Asked(salt=salt_of(source), tags=source.dicom_tags)


def decoding_key(sources: list[Source]) -> dict[str, Any]:
    """What the rows and pixels depend on besides files and contract: a decoder that was installed meanwhile reads more."""
    salts = [salt_of(source) for source in sources]
    marks = [None if salt is None else salt_mark(salt) for salt in salts]
    return {"decoders": {name: _version(name) for name in _DECODERS}, "salts": marks, "tags": [list(source.dicom_tags) for source in sources]}


def owned(candidate: Candidate, row: dict[str, Any]) -> Candidate:
    """The candidate with the patient that the file named."""
    return replace(candidate, patient_id=f"{candidate.patient_id.split(':')[0]}:{row['patient']}") if "patient" in row else candidate


def quarantined(source: str, row: dict[str, Any]) -> Quarantined:
    return Quarantined(source, row["path"], row["reason"], row["error"])


def _patient(data: bytes, salt: bytes) -> str | None:
    named = dicom_patient(data) if is_dicom(data) else None
    return pseudonym(*named, salt) if named else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
