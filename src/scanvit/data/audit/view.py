"""The pack as the gates look at it: columns as numbers, a sample of thumbnails, pictures by their row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
from PIL import Image

from ...core.errors import PackCorruptError
from ...storage.scratch import Spool, pieces_of, scratch_zeros
from ..columns import Strings, encode
from ..duplicates import share_a_prefix
from ..manifest_reader import split_masks
from ..near_duplicates import parse_hashes
from ..pack import MANIFEST, Pack
from ..sources import SPLITS
from .gate import Picture

THUMBNAIL_PX = 32
SAMPLE_IMAGES = 3000
"""How many images a probe looks at, whatever the size of the pack: its interval is then about 2 points wide, and it takes about a second."""
_DIGEST_BYTES = 16
_COLUMNS = ("split", "source", "format", "patient_id", "width_px", "height_px", "class_name", "perceptual_hash")


class AuditView:
    """Every column is in the order of the manifest. What grows with the images is numbers, in scratch files; names are looked up one by one."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        columns = {name: Spool() for name in _COLUMNS}
        kinds: dict[str, dict[str, int]] = {"source": {}, "format": {}}
        patients = Strings()
        for batch in pack.reader.batches(*_COLUMNS):
            columns["split"].write(_codes(batch["split"], {split: code for code, split in enumerate(SPLITS)}, np.int8))
            columns["class_name"].write(pack.class_codes(batch["class_name"]).astype(np.int16))
            for name, known in kinds.items():
                columns[name].write(_codes(batch[name], known, np.int16))
            for name in ("width_px", "height_px"):
                columns[name].write(batch[name].to_numpy())
            columns["perceptual_hash"].write(self._parse(batch["perceptual_hash"]))
            patients.extend(batch["patient_id"].cast(pa.large_string()))
        self.split, self.class_of = columns["split"].array(np.int8), columns["class_name"].array(np.int16)
        self.source, self.format = columns["source"].array(np.int16), columns["format"].array(np.int16)
        self.width_px, self.height_px = columns["width_px"].array(np.int32), columns["height_px"].array(np.int32)
        self.hashes = columns["perceptual_hash"].array(np.uint64, 4)
        """uint64 (N, 4): the perceptual hashes."""
        self.count, self.class_names = len(self.split), list(pack.class_names)
        self.source_names, self.format_names = list(kinds["source"]), list(kinds["format"])
        encoded = encode(patients.arrow())
        self.patient, self.patient_names = encoded.codes, encoded.names
        self._arrays = {split: pack.images(split) for split in SPLITS}

    @cached_property
    def pixel_groups(self) -> np.ndarray:
        """int32 (N,): the same number for images with identical pixels, that of the first of them."""
        digests = Spool()
        for split in SPLITS:
            for piece in self.pack.pieces(split):
                for image in piece:
                    digests.write(hashlib.blake2b(image.data, digest_size=_DIGEST_BYTES).digest())
        found = digests.array(np.uint8, _DIGEST_BYTES)
        groups = scratch_zeros(self.count, np.int32)
        for rows in pieces_of(self.count):
            groups[rows] = np.arange(rows.start, rows.stop)
        suspects = share_a_prefix(found)
        _, first, group = np.unique(found[suspects], axis=0, return_index=True, return_inverse=True)
        groups[suspects] = suspects[first[group.reshape(-1)]] if len(suspects) else suspects
        return groups

    def crossing(self, groups: np.ndarray) -> list[np.ndarray]:
        """The rows of each group that stands in two splits or more, in the order of their codes, 0..N-1. ``groups``: the code of each image."""
        spread = split_masks(groups, int(groups.max(initial=-1)) + 1, self.split).sum(axis=0, dtype=np.int8) > 1
        if not spread.any():
            return []
        rows = np.concatenate([np.flatnonzero(spread[groups[piece]]) + piece.start for piece in pieces_of(self.count)])
        rows = rows[np.argsort(groups[rows], kind="stable")]
        return np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1)

    def pixels(self, position: int) -> np.ndarray:
        """uint8 (C, H, W), 0..255."""
        split = SPLITS[self.split[position]]
        return self._arrays[split][position - self.pack.start(split)]

    def picture(self, position: int, note: str = "") -> Picture:
        split = SPLITS[self.split[position]]
        name = self.pack.reader.look_up([position], "image_id")[0]["image_id"]
        return Picture(name, split, position - self.pack.start(split), note or self.class_names[self.class_of[position]])

    def path(self, position: int) -> str:
        """Inside the source."""
        return str(self.pack.reader.look_up([position], "path")[0]["path"])

    def placed(self, positions: Sequence[int] | np.ndarray) -> list[str]:
        """Names of images that say where they stand, the same in every pack that holds them there: "image_id in split"."""
        return [f"{row['image_id']} in {row['split']}" for row in self.pack.reader.look_up(positions, "image_id", "split")]

    def sample(self, strata: np.ndarray, *, limit: int = SAMPLE_IMAGES) -> np.ndarray:
        """int64: positions of at most ``limit`` images, as many of each stratum (a column of codes) as there are, up to an equal share."""
        random = np.random.default_rng(0)
        sizes = np.bincount(strata)
        present = np.flatnonzero(sizes)
        chosen, left = [], limit
        # What a small stratum leaves goes to the larger ones.
        for number, stratum in enumerate(present[np.argsort(sizes[present], kind="stable")].tolist()):
            positions = np.flatnonzero(strata == stratum)
            share = min(len(positions), left // (len(present) - number))
            chosen.append(random.choice(positions, share, replace=False) if share < len(positions) else positions)
            left -= share
        return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)

    def thumbnails(self, positions: np.ndarray) -> np.ndarray:
        """float32 (n, 32, 32), 0..1, gray."""
        result = np.empty((len(positions), THUMBNAIL_PX, THUMBNAIL_PX), np.float32)
        for number, position in enumerate(positions.tolist()):
            gray = self.pixels(position).mean(axis=0, dtype=np.float32)
            result[number] = np.asarray(Image.fromarray(gray).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR))
        return result / np.float32(255)

    def _parse(self, column: pa.Array) -> np.ndarray:
        try:
            return parse_hashes(column.to_pylist())
        except ValueError as cause:
            raise PackCorruptError(f"{self.pack.path / MANIFEST} is damaged: {cause}.", hint="Prepare the pack again.") from None


def _codes(column: pa.Array, known: dict[str, int], kind: type[np.signedinteger]) -> np.ndarray:
    """Names as numbers, in the order in which they are met first; new ones are added to ``known``."""
    encoded = column.dictionary_encode()
    numbers = np.array([known.setdefault(name, len(known)) for name in encoded.dictionary.to_pylist()], kind)
    return numbers[encoded.indices.to_numpy()]
