"""Image files decoded on all cores while somebody else computes: in order, with a bounded number on the way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from ..core.contract import PixelContract
from ..core.errors import DataError, ImageError
from .decode import decode_frames
from .workers import worker_pool

MOST_BYTES = 512 * 2**20
"""Of one file."""
_CHUNK_FILES = 16
_CHUNK_BYTES = 16 * 2**20
"""Of files that one worker takes at a time."""
_CHUNKS_AHEAD = 8
"""For each worker: what is decoded while the network works on a batch."""
_WORTH_A_POOL = 48
"""Files from which on starting processes pays."""


@dataclass(frozen=True)
class Source:
    """A file to decode, with what travels along."""

    path: str
    extra: Any = None
    data: bytes | None = None
    """Its content, where it is no file."""


Found = list[int | None] | ImageError
"""The frames of a file (None: the file is the image), or what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Block:
    """A few files, decoded."""

    sources: list[Source]
    found: list[Found]
    """Of each source."""
    pixels: np.ndarray
    """uint8 (N, C, H, W): all images of all sources, in their order."""

    def images(self) -> Iterator[StreamedImage]:
        """In order, those that cannot be used among them."""
        row = 0
        for source, found in zip(self.sources, self.found, strict=True):
            if isinstance(found, ImageError):
                yield StreamedImage(source.path, source, error=found)
                continue
            for frame in found:
                yield StreamedImage(source.path if frame is None else f"{source.path}#{frame:04d}", source, row)
                row += 1


class StreamedImage(NamedTuple):
    """Of a file an image a frame, or one with an error."""

    name: str
    """The path; of a frame of several ``path#0001``, as in a manifest."""
    source: Source
    row: int | None = None
    """In the block's pixels."""
    error: ImageError | None = None


def stream_blocks(sources: Iterable[Source], contract: PixelContract, *, workers: int) -> Iterator[Block]:
    """In the order of the sources. With few of them, or ``workers`` below 1, decoded in this process. Raises DataError where a worker is killed."""
    incoming = iter(sources)
    first = list(islice(incoming, _WORTH_A_POOL))
    chunks = _chunks(chain(first, incoming))
    if workers < 1 or len(first) < _WORTH_A_POOL:
        yield from (Block(chunk, *_decode_chunk(chunk, contract)) for chunk in chunks)
        return
    with worker_pool(workers) as pool:
        try:
            yield from _through(pool, chunks, contract, ahead=_CHUNKS_AHEAD * workers)
        except BrokenProcessPool:
            hint = "Look at the next file: its pixels may take more memory than there is. Or use fewer --workers."
            raise DataError("A decoding process was killed, most likely because the machine ran out of memory.", hint=hint) from None


def decode_source(source: Source, contract: PixelContract) -> list[tuple[int | None, np.ndarray]] | ImageError:
    """(frame or None, pixels) of each of its images, or what is wrong with it, with its name."""
    path = source.path
    try:
        data = _read(path) if source.data is None else source.data
        if len(data) > MOST_BYTES:
            raise ImageError(f"{path!r} is larger than {MOST_BYTES // 2**20} MiB.", hint="Give single images or volumes.")
        return [(image.frame, image.pixels) for image in decode_frames(data, contract)]
    except OSError as cause:
        return ImageError(f"{path!r} cannot be read: {cause.strerror or cause}.", hint="Check the path and its permissions.")
    except ValueError as cause:  # a NUL in a path
        return ImageError(f"{path!r} is no path: {cause}.", hint="Check the list.")
    except ImageError as cause:
        return cause if repr(path) in cause.message else ImageError(f"{path!r}: {cause.message}", hint=cause.hint)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        # Room for MOST_BYTES would be asked of the system for every file; what has no size, as a pipe, may take it.
        size_bytes = os.fstat(file.fileno()).st_size
        return file.read(min(size_bytes or MOST_BYTES, MOST_BYTES) + 1)


def _through(pool: ProcessPoolExecutor, chunks: Iterator[list[Source]], contract: PixelContract, *, ahead: int) -> Iterator[Block]:
    pending: deque[tuple[list[Source], Future[tuple[list[Found], np.ndarray]]]] = deque()
    while True:
        for chunk in islice(chunks, ahead - len(pending)):
            pending.append((chunk, pool.submit(_decode_chunk, chunk, contract)))
        if not pending:
            return
        chunk, future = pending.popleft()
        yield Block(chunk, *future.result())


def _decode_chunk(chunk: list[Source], contract: PixelContract) -> tuple[list[Found], np.ndarray]:
    """One array for all: on its way to another process each would be packed by itself."""
    found: list[Found] = []
    pixels: list[np.ndarray] = []
    for source in chunk:
        result = decode_source(source, contract)
        if isinstance(result, list):
            pixels += [image for _, image in result]
            found.append([frame for frame, _ in result])
        else:
            found.append(result)
    return found, np.stack(pixels) if pixels else np.empty((0, *contract.shape), np.uint8)


def _chunks(sources: Iterable[Source]) -> Iterator[list[Source]]:
    """A few files each; of large ones fewer, since what they decode to is on its way at once."""
    chunk: list[Source] = []
    size_bytes = 0
    for source in sources:
        chunk.append(source)
        size_bytes += _size(source)
        if len(chunk) == _CHUNK_FILES or size_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
    if chunk:
        yield chunk


def _size(source: Source) -> int:
    try:
        return len(source.data) if source.data is not None else os.stat(source.path).st_size
    except (OSError, ValueError):
        return 0
