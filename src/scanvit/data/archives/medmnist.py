"""MedMNIST files: an .npz with ``train_images`` uint8 (N, H, W) or (N, H, W, 3) and ``train_labels`` (N, 1), and the same for val and test.

Presented as an archive whose members are ``SPLIT/LABEL/INDEX.npy``. The arrays are read image by image, never whole.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Container, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.lib import format as npy

from ...core.errors import ArchiveError
from .base import Archive, Member, MemberNames, reading
from .zip import directory

_SPLITS = ("train", "val", "test")
_MAX_LABELS_BYTES = 1 << 30
_MOST_ARRAYS = 100


def is_medmnist(path: Path) -> bool:
    names: set[str] = set()
    for entry in directory(path):
        if not entry.name.endswith(".npy") or len(names) == _MOST_ARRAYS:
            return False
        names.add(entry.name)
    return any(f"{split}_images.npy" in names for split in _SPLITS)


class MedMnistFile(Archive):
    def _list(self, names: MemberNames) -> Iterator[Member]:
        with reading(self.path), zipfile.ZipFile(self.path) as archive:
            for split in self._splits(archive):
                yield from (Member(path, size) for path, size in self._paths(archive, split))

    def read(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        with reading(self.path), zipfile.ZipFile(self.path) as archive:
            for split in self._splits(archive):
                paths = self._paths(archive, split)
                with archive.open(f"{split}_images.npy") as stream:
                    _, *shape = self._header(stream, f"{split}_images")
                    size_bytes = int(np.prod(shape))
                    for path, _ in paths:
                        data = stream.read(size_bytes)
                        if len(data) != size_bytes:
                            raise ArchiveError(f"{self.path} ends in the middle of {split}_images.", hint="Fetch it again.")
                        if path in wanted:
                            yield path, _as_npy(np.frombuffer(data, np.uint8).reshape(shape))

    def _splits(self, archive: zipfile.ZipFile) -> list[str]:
        names = set(archive.namelist())
        if incomplete := next((s for s in _SPLITS if (f"{s}_images.npy" in names) != (f"{s}_labels.npy" in names)), None):
            raise ArchiveError(f"{self.path} has only one of {incomplete}_images and {incomplete}_labels.", hint="Fetch it again.")
        return [split for split in _SPLITS if f"{split}_images.npy" in names]

    def _paths(self, archive: zipfile.ZipFile, split: str) -> Iterator[tuple[str, int]]:
        with archive.open(f"{split}_images.npy") as stream:
            count, *shape = self._header(stream, f"{split}_images")
        labels = self._labels(archive, split)
        if len(labels) != count:
            raise ArchiveError(f"{self.path} has {count} {split}_images but {len(labels)} {split}_labels.", hint="Fetch it again.")
        size_bytes = int(np.prod(shape))
        for index, label in enumerate(map(int, labels)):
            yield f"{split}/{label}/{index:07d}.npy", size_bytes

    def _header(self, stream: IO[bytes], name: str) -> tuple[int, ...]:
        shape, is_fortran, dtype = _read_header(stream)
        is_image = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
        if dtype != np.uint8 or is_fortran or not is_image or 0 in shape[1:]:
            raise ArchiveError(f"{name} in {self.path} is {dtype} {shape}.", hint="It must be uint8 (N, H, W) or (N, H, W, 3) in C order.")
        if shape[0] > self.limits.members or int(np.prod([int(n) for n in shape[1:]])) > self.limits.member_bytes:
            raise ArchiveError(f"{name} in {self.path} claims the absurd shape {shape}.", hint="Fetch it again.")
        return shape

    def _labels(self, archive: zipfile.ZipFile, split: str) -> np.ndarray:
        with archive.open(f"{split}_labels.npy") as stream:
            shape, is_fortran, dtype = _read_header(stream)
            if dtype.kind not in "iu" or is_fortran or len(shape) not in (1, 2) or shape[1:] not in ((), (1,)):
                raise ArchiveError(f"{split}_labels in {self.path} is {dtype} {shape}.", hint="It must hold one whole number an image: (N,) or (N, 1).")
            size_bytes = shape[0] * dtype.itemsize
            if size_bytes > _MAX_LABELS_BYTES:
                raise ArchiveError(f"{split}_labels in {self.path} claims the absurd shape {shape}.", hint="Fetch it again.")
            return np.frombuffer(stream.read(size_bytes), dtype).reshape(-1)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version} is not read here")
    try:
        return npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
    except TokenError as cause:  # numpy lets this one through
        raise ValueError(f"its header is damaged: {cause}") from None


def _as_npy(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    npy.write_array(buffer, image, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
