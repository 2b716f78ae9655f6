"""The pack as the gates look at it: columns as numbers, a sample of thumbnails, pictures by their row."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
import pyarrow as pa
from PIL import Image

from ...core.errors import PackCorruptError
from ..near_duplicates import parse_hashes
from ..pack import MANIFEST, Pack
from ..sources import SPLITS
from .gate import Picture

THUMBNAIL_PX = 32
SAMPLE_IMAGES = 3000
"""How many images a probe looks at, whatever the size of the pack: its interval is then about 2 points wide, and it takes about a second."""
_HASHED_AT_ONCE = 1 << 16


class AuditView:
    """Every column is in the order of the manifest. What grows with the images is numbers; names are looked up one by one."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        columns = pack.columns("split", "source", "format", "patient_id", "width_px", "height_px", "row")
        self.count = len(columns)
        self.split, self.split_names = _codes(columns["split"])
        self.source, self.source_names = _codes(columns["source"])
        self.class_of, self.class_names = np.concatenate([pack.targets(split) for split in SPLITS]), list(pack.class_names)
        self.format, self.format_names = _codes(columns["format"])
        self.patient, self._patient_names = _encode(columns["patient_id"])
        self.patients = len(self._patient_names)
        self.width_px, self.height_px, self.row = (columns[name].to_numpy().astype(np.int64) for name in ("width_px", "height_px", "row"))
        self._arrays = {split: pack.images(split) for split in SPLITS}

    @cached_property
    def hashes(self) -> np.ndarray:
        """uint64 (N, 4): the perceptual hashes. Raises PackCorruptError for what is none."""
        column = self.pack.columns("perceptual_hash")["perceptual_hash"]
        try:
            chunks = [parse_hashes(column.slice(start, _HASHED_AT_ONCE).to_pylist()) for start in range(0, self.count, _HASHED_AT_ONCE)]
        except ValueError as cause:
            raise PackCorruptError(f"{self.pack.path / MANIFEST} is damaged: {cause}.", hint="Prepare the pack again.") from None
        return np.concatenate([np.zeros((0, 4), np.uint64), *chunks])

    @cached_property
    def pixel_groups(self) -> np.ndarray:
        """int64 (N,): the same number for images with identical pixels."""
        digests = np.empty(self.count, dtype="V16")
        position = 0
        for split in SPLITS:
            for piece in self.pack.pieces(split):
                for image in piece:
                    digests[position] = np.void(hashlib.blake2b(image.data, digest_size=16).digest())
                    position += 1
        return np.unique(digests.view(np.uint64).reshape(-1, 2), axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def pixels(self, position: int) -> np.ndarray:
        """uint8 (C, H, W), 0..255."""
        return self._arrays[self.split_names[self.split[position]]][self.row[position]]

    def picture(self, position: int, note: str = "") -> Picture:
        split, row = self.split_names[self.split[position]], int(self.row[position])
        return Picture(self._names["image_id"][int(position)].as_py(), split, row, note or self.class_names[self.class_of[position]])

    def path(self, position: int) -> str:
        """Inside the source."""
        return str(self._names["path"][int(position)].as_py())

    def patient_name(self, code: int) -> str:
        return str(self._patient_names[int(code)].as_py())

    @cached_property
    def _names(self) -> pa.Table:
        return self.pack.columns("image_id", "path")

    def sample(self, strata: np.ndarray, *, limit: int = SAMPLE_IMAGES) -> np.ndarray:
        """int64: positions of at most ``limit`` images, as many of each stratum (a column of codes) as there are, up to an equal share."""
        random = np.random.default_rng(0)
        members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
        members.sort(key=len)  # what a small stratum leaves goes to the larger ones
        chosen, left = [], limit
        for number, positions in enumerate(members):
            share = min(len(positions), left // (len(members) - number))
            chosen.append(random.choice(positions, share, replace=False) if share < len(positions) else positions)
            left -= share
        return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)

    def thumbnails(self, positions: np.ndarray) -> np.ndarray:
        """float32 (n, 32, 32), 0..1, gray."""
        result = np.empty((len(positions), THUMBNAIL_PX, THUMBNAIL_PX), np.float32)
        for number, position in enumerate(positions):
            gray = self.pixels(position).mean(axis=0, dtype=np.float32)
            result[number] = np.asarray(Image.fromarray(gray).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR))
        return result / np.float32(255)


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    codes, names = _encode(column)
    return codes, [str(name) for name in names.to_pylist()]
