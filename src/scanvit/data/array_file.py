"""One split's array, written image by image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy


class ArrayFile:
    """A .npy file of uint8 images under construction.

    Written as a file and not through a memory map: a map counts as this process's memory until it is synced, and ends the process where
    the disk is full.
    """

    def __init__(self, file: Path, images: int, shape: tuple[int, ...]) -> None:
        self._stream = open(file, "wb")  # noqa: SIM115  # closed by array_files
        npy.write_array_header_1_0(self._stream, {"descr": "|u1", "fortran_order": False, "shape": (images, *shape)})
        self._start, self._image_bytes = self._stream.tell(), int(np.prod(shape))
        self._stream.truncate(self._start + images * self._image_bytes)

    def put(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        """``pixels``: uint8 (n, C, H, W); ``rows``: where each of them goes, int64 (n,)."""
        ends = np.flatnonzero(np.diff(rows) != 1) + 1
        for run in np.split(np.arange(len(rows)), ends):
            if len(run):
                self._stream.seek(self._start + int(rows[run[0]]) * self._image_bytes)
                self._stream.write(np.ascontiguousarray(pixels[run[0] : run[-1] + 1]).data)

    def close(self) -> None:
        self._stream.close()


@contextmanager
def array_files(folder: Path, sizes: dict[str, int], shape: tuple[int, ...]) -> Iterator[dict[str, ArrayFile]]:
    """One for each split in ``sizes``, named as the pack names them."""
    files: dict[str, ArrayFile] = {}
    try:
        for split, images in sizes.items():
            files[split] = ArrayFile(folder / f"{split}.npy", images, shape)
        yield files
    finally:
        for file in files.values():
            file.close()
