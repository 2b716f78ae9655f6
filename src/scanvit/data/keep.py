"""Splits that stay: who stands where in an earlier pack, looked up for the images of a new one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..core.contract import PixelContract
from ..core.errors import ConfigError, PackCorruptError, SourcesError
from ..storage.scratch import Spool
from .columns import encode
from .dicom.pseudonym import VARIABLE, salt_file, salt_mark
from .file_rows import salt_of
from .image_table import ImageTable, digest_column
from .pack import Pack
from .sources import SPLITS, Source

_MOVED_HINT = "Mend the patient rule, or leave the image out; a pack without --keep may place everybody anew."
_NONE = -1
_SALT = "salt_mark"


@dataclass(frozen=True)
class Kept:
    """One entry an image, int8 codes of SPLITS, -1 for none."""

    pack: Path
    assigned: np.ndarray
    """The split that binds the image's patient: where the patient stood, else where an image of theirs stood."""
    by_image: np.ndarray
    """Where the very image stood: the same file, or the same pixels."""
    by_patient: np.ndarray
    """Where the patient stood under this identifier, if it was in one split."""
    warnings: Sequence[str]

    def take(self, rows: np.ndarray) -> Kept:
        return Kept(self.pack, self.assigned[rows], self.by_image[rows], self.by_patient[rows], self.warnings)

    @property
    def originals(self) -> np.ndarray:
        """bool (N,): images that stood in the pack, of a patient who stood there too. Of equal images, one of these is to be kept."""
        return (self.by_image >= 0) & (self.by_image == self.by_patient)

    def check(self, images: ImageTable, splits: np.ndarray, source_names: Sequence[str]) -> None:
        """Raise SourcesError where an image or a patient would leave the split of the earlier pack."""
        bound = np.where(self.by_image >= 0, self.by_image, self.by_patient)
        moved = np.flatnonzero((bound >= 0) & (bound != splits))
        if len(moved):
            row = int(moved[0])
            image = f"{source_names[images.numpy('source')[row]]}: {images.strings('path')[row]}"
            patient = f"the patient {images.strings('patient_id')[row].as_py()!r}"
            who = image if self.by_image[row] >= 0 else f"{patient} of {image}"
            raise SourcesError(f"{who} stood in {SPLITS[bound[row]]} of {self.pack}, but {patient} belongs to {SPLITS[splits[row]]}.", hint=_MOVED_HINT)


def salt_setting(sources: Sequence[Source]) -> dict[str, str]:
    """What a pack records of the salt of its pseudonyms: enough to tell another one, too little to find it."""
    salts = [salt for source in sources if (salt := salt_of(source)) is not None]
    return {_SALT: salt_mark(salts[0])} if salts else {}


def check_salt(pack: Pack, sources: Sequence[Source]) -> None:
    """Raise ConfigError where the pseudonyms of ``pack`` were made with another salt: not a patient would be known again."""
    now, then = salt_setting(sources).get(_SALT), pack.settings.get(_SALT)
    if now and then and now != then:
        raise ConfigError(
            f"The patients of {pack.path} have pseudonyms of another salt than the present one, so that none of them would be known again.",
            hint=f"Give the salt with which it was made: in {VARIABLE}, or in {salt_file()}.",
        )


def look_up(pack: Pack, images: ImageTable, contract: PixelContract) -> Kept:
    """Find the images and their patients in ``pack``.

    A patient is known by the identifier. One who is not, but has an image that stands in the pack (the same bytes, or where the pixel contract
    is the same, the same pixels), was renamed, and goes where that image stood. Raises SourcesError for a renamed patient whose images
    stood in two splits, and for a known one whom the pack itself has in two.
    """
    split = np.repeat(np.arange(len(SPLITS), dtype=np.int8), [pack.size(name) for name in SPLITS])
    patients = encode(images.strings("patient_id"))
    patient_of = patients.codes
    by_image = _splits_of(images.digests("sha256"), _file_digests(pack), split)
    warnings = []
    if contract == pack.contract:
        by_pixels = _splits_of(images.digests("pixels_sha256"), _pixel_digests(pack), split)
        by_image = np.where(by_image >= 0, by_image, by_pixels)
    else:
        warnings.append(f"{pack.path} has another pixel contract: images that it holds are known again by their bytes alone.")
    by_name, torn, gone = _patients_of(pack, split, patients.column.take(pa.array(patients.first)))
    if gone:
        warnings.append(f"{gone} patients of {pack.path} have no image any more. Keep that pack: this one does not remember where they stood.")
    open_to_us = images.numpy("kept_split") < 0
    if len(bad := np.flatnonzero(torn[patient_of] & open_to_us)):
        raise SourcesError(f"The patient {images.strings('patient_id')[int(bad[0])].as_py()!r} has images in two splits of {pack.path}.", hint=_MOVED_HINT)
    of_patient = np.where(torn, np.int8(_NONE), by_name)
    renamed = _renamed(images, patient_of, np.where(of_patient[patient_of] < 0, by_image, np.int8(_NONE)), open_to_us, pack.path)
    assigned = np.where(of_patient >= 0, of_patient, renamed)[patient_of]
    return Kept(pack.path, assigned, by_image, of_patient[patient_of], warnings)


def _renamed(images: ImageTable, patient_of: np.ndarray, by_image: np.ndarray, open_to_us: np.ndarray, pack: Path) -> np.ndarray:
    """int8, one for each patient: the split of the images by which they are known."""
    found = np.full(int(patient_of.max(initial=-1)) + 1, _NONE, np.int8)
    seen = np.flatnonzero((by_image >= 0) & open_to_us)
    found[patient_of[seen]] = by_image[seen]
    torn = seen[found[patient_of[seen]] != by_image[seen]]
    if len(torn):
        one = int(torn[0])
        other = int(seen[(patient_of[seen] == patient_of[one]) & (by_image[seen] != by_image[one])][0])
        pairs = " and ".join(f"{images.strings('path')[row]} ({SPLITS[by_image[row]]})" for row in sorted((one, other)))
        who = images.strings("patient_id")[one].as_py()
        raise SourcesError(f"The patient {who!r} has images that stood in two splits of {pack}: {pairs}.", hint=_MOVED_HINT)
    return found


def _patients_of(pack: Pack, split: np.ndarray, wanted: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray, int]:
    """For each wanted patient: (split or -1, stands in two splits); and how many patients of the pack are not wanted."""
    known = encode(pack.reader.strings("patient_id"))
    codes = known.codes
    first = np.full(len(known.first), _NONE, np.int8)
    first[codes] = split
    torn = np.zeros(len(first), bool)
    torn[codes[first[codes] != split]] = True
    index = _positions(wanted, known.column.take(pa.array(known.first)))
    is_known = index >= 0
    return np.where(is_known, first[index], np.int8(_NONE)), is_known & torn[index], len(first) - int(is_known.sum())


def _splits_of(digests: np.ndarray, known: pa.Array, split: np.ndarray) -> np.ndarray:
    index = _positions(digest_column(digests), known)
    return np.where(index >= 0, split[index], np.int8(_NONE)) if len(split) else np.full(len(index), _NONE, np.int8)


def _positions(values: pa.Array, known: pa.Array) -> np.ndarray:
    """int64 (N,): where each value stands in ``known``; -1 where it does not."""
    found: np.ndarray = pc.fill_null(pc.index_in(values, value_set=known), _NONE).to_numpy().astype(np.int64)
    return found


def _file_digests(pack: Pack) -> pa.Array:
    digests = Spool()
    try:
        for piece in pack.reader.batches("sha256"):
            digests.write(bytes.fromhex("".join(piece["sha256"].to_pylist())))
        return digest_column(digests.array(np.uint8, 32))
    except ValueError as cause:
        raise PackCorruptError(f"{pack.path} holds a SHA-256 that is none: {cause}.", hint="Prepare the pack again.") from None


def _pixel_digests(pack: Pack) -> pa.Array:
    digests = Spool()
    for split in SPLITS:
        for piece in pack.pieces(split):
            for image in piece:
                digests.write(hashlib.sha256(image.data).digest())
    return digest_column(digests.array(np.uint8, 32))
