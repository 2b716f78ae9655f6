from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanvit.core.contract import PixelContract
from scanvit.data.image_stream import Source, StreamedImage, stream_blocks

CONTRACT = PixelContract(image_size_px=8)


def streamed(sources: list[Source], *, workers: int) -> list[tuple[StreamedImage, np.ndarray | None]]:
    """Each image with its pixels."""
    blocks = stream_blocks(sources, CONTRACT, workers=workers)
    return [(image, None if image.row is None else block.pixels[image.row]) for block in blocks for image in block.images()]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for number in range(60):
        path = tmp_path / f"{number:02d}.png"
        path.write_bytes(b"no image") if number % 7 == 3 else Image.fromarray(np.full((8, 8), number, np.uint8)).save(path)
    return [str(path) for path in sorted(tmp_path.iterdir())] + [str(tmp_path / "none.png"), str(tmp_path)]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_in_order_whoever_decodes(files: list[str], workers: int) -> None:
    images = streamed([Source(path, number) for number, path in enumerate(files)], workers=workers)
    assert [image.name for image, _ in images] == files
    assert [image.source.extra for image, _ in images] == list(range(62))
    for number, (image, pixels) in enumerate(images):
        if pixels is None:
            assert number % 7 == 3 or number > 59
            assert repr(files[number]) in str(image.error)
        else:
            assert (pixels == number).all()


def test_frames_are_named_and_bytes_are_as_good_as_a_file(make_dicom: Callable[..., bytes]) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(stream, "PNG")
    sources = [Source("-", data=stream.getvalue()), Source("volume", data=make_dicom(np.zeros((2, 8, 8), np.uint8))), Source("a\0b")]
    images = [image for image, _ in streamed(sources, workers=0)]
    assert [image.name for image in images] == ["-", "volume#0001", "volume#0002", "a\0b"]
    assert "no path" in str(images[3].error)


def test_few_files_are_read_ahead_of_need(files: list[str]) -> None:
    """A million paths would be a million sources in memory, were they taken at once."""
    taken = []

    def counted() -> object:
        for number in range(100_000):
            taken.append(number)
            yield Source(files[0])

    stream = stream_blocks(counted(), CONTRACT, workers=1)  # type: ignore[arg-type]
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(taken) < 1000
