from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.unit.data.jpeg.samples import CHANGES, damage, jpeg, pillow, samples, scene

from scanvit.core.contract import PixelContract
from scanvit.data.decode import decode_image
from scanvit.data.jpeg.header import read_jpeg
from scanvit.data.jpeg.reader import reduced_pixels


def ours(data: bytes, contract: PixelContract) -> np.ndarray:
    """By the room itself: a file that it leaves to Pillow is a failure."""
    file = read_jpeg(data)
    assert file is not None
    pixels = reduced_pixels(data, file, contract)
    assert pixels is not None
    assert pixels.shape == contract.shape
    assert pixels.dtype == np.uint8
    return pixels.astype(int)


@pytest.mark.parametrize("target_px", [16, 28, 64, 128])
@pytest.mark.parametrize("size", [(192, 192), (200, 197), (497, 501), (1500, 400), (401, 1203)], ids=str)
def test_gray_at_many_sizes(size: tuple[int, int], target_px: int) -> None:
    if min(size) < 3 * target_px:
        pytest.skip("left to Pillow")
    data = jpeg(scene(*size), quality=90)
    difference = np.abs(ours(data, PixelContract(image_size_px=target_px)) - pillow(data, target_px))
    assert difference.mean() < 1
    assert difference.max() <= 12


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 95, 100])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("noise", [0.0, 40.0])
def test_every_quality_and_table(quality: int, optimize: bool, noise: float) -> None:
    data = jpeg(scene(512, 496, noise=noise), quality=quality, optimize=optimize)
    assert np.abs(ours(data, PixelContract()) - pillow(data, 64)).mean() < 1


@pytest.mark.parametrize("target_px", [64, 100, 128, 160])
@pytest.mark.parametrize("quality", [30, 50, 70])
def test_smaller_reductions_take_more_frequencies(quality: int, target_px: int) -> None:
    """Such that lie together with others in one lookup; without them the mean is 0.3 to 1."""
    data = jpeg(scene(512, 496, noise=10), quality=quality)
    difference = np.abs(ours(data, PixelContract(image_size_px=target_px)) - pillow(data, target_px))
    assert difference.mean() < 0.4
    assert difference.max() <= 3


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(256, 240), (261, 203)], ids=str)
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_colour_at_every_sampling(subsampling: str, size: tuple[int, int], channels: Any, mode: str) -> None:
    data = jpeg(scene(*size, "RGB"), quality=88, subsampling=subsampling)
    difference = np.abs(ours(data, PixelContract(image_size_px=32, channels=channels)) - pillow(data, 32, mode))
    assert difference.mean(axis=(1, 2)).max() < 2


def test_gray_files_fill_three_channels() -> None:
    data = jpeg(scene(200, 200))
    gray, three = ours(data, PixelContract(image_size_px=32)), ours(data, PixelContract(image_size_px=32, channels=3))
    assert (three == gray).all()


@pytest.mark.parametrize("value", [0, 1, 97, 254, 255])
def test_a_flat_picture_stays_flat(value: int) -> None:
    assert np.abs(ours(jpeg(Image.new("L", (300, 310), value), quality=100), PixelContract()) - value).max() <= 1


def test_a_large_file_takes_all_lanes_and_stays_the_same_picture() -> None:
    data = jpeg(scene(1600, 1200, noise=30), quality=95)
    assert len(data) > 500_000
    assert np.abs(ours(data, PixelContract()) - pillow(data, 64)).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_to_other_files(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(scene(300, 200, noise=0), exif=exif.tobytes(), quality=95)
    contract = PixelContract(image_size_px=32)
    decoded, reduced = decode_image(data, contract), decode_image(data, PixelContract(image_size_px=32, jpeg="reduced"))
    assert (decoded.width_px, decoded.height_px) == (reduced.width_px, reduced.height_px)
    assert np.abs(decoded.pixels.astype(int) - reduced.pixels).mean() < 1


@pytest.mark.parametrize("options", [{"restart_marker_blocks": 5}, {"restart_marker_rows": 1}, {"progressive": True}], ids=str)
def test_what_is_left_to_pillow_has_the_pixels_of_the_reduced_picture(options: dict[str, Any]) -> None:
    data = jpeg(scene(300, 200), **options)
    assert read_jpeg(data) is None
    pixels = decode_image(data, PixelContract()).pixels
    np.testing.assert_array_equal(pixels, decode_image(data, PixelContract(jpeg="reduced")).pixels)


def test_a_picture_hardly_larger_than_the_target_is_left_to_pillow() -> None:
    data = jpeg(scene(191, 400))
    np.testing.assert_array_equal(decode_image(data, PixelContract()).pixels, decode_image(data, PixelContract(jpeg="reduced")).pixels)


def test_an_old_contract_keeps_its_pixels() -> None:
    data = jpeg(scene(500, 400))
    old = PixelContract.from_dict({"image_size_px": 64, "channels": 1, "resample": "bilinear", "mean": 0.5, "std": 0.5})
    with Image.open(io.BytesIO(data)) as image:
        image.draft("L", (96, 96))
        expected = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR, reducing_gap=None))
    np.testing.assert_array_equal(decode_image(data, old).pixels[0], expected)
    assert (decode_image(data, PixelContract()).pixels[0] != expected).any()


@pytest.mark.parametrize("cut", [1, 2, 3, 100, 5000])
def test_a_scan_cut_short_is_no_picture(cut: int) -> None:
    data = jpeg(scene(400, 400))
    for short in (data[:-cut], data[: -cut - 2] + b"\xff\xd9"):
        file = read_jpeg(short)
        assert file is not None
        if cut > 2:
            assert reduced_pixels(short, file, PixelContract()) is None


def test_one_block_more_than_the_size_needs_is_no_picture() -> None:
    data = bytearray(jpeg(scene(200, 208)))
    frame = data.find(b"\xff\xc0")
    data[frame + 5 : frame + 7] = (200).to_bytes(2, "big")
    file = read_jpeg(bytes(data))
    assert file is not None
    assert reduced_pixels(bytes(data), file, PixelContract(image_size_px=16)) is None


@settings(max_examples=int(os.environ.get("SCANVIT_FUZZ_CASES", "300")), deadline=None, derandomize=True, database=None)
@given(sample=st.sampled_from(samples()), changes=CHANGES, channels=st.sampled_from([1, 3]))
def test_damaged_files_give_a_picture_or_none(sample: bytes, changes: list[tuple[str, int, int]], channels: Any) -> None:
    data = damage(sample, changes)
    file = read_jpeg(data)
    if file is not None and file.width_px * file.height_px < 1 << 22:
        contract = PixelContract(image_size_px=8, channels=channels)
        pixels = reduced_pixels(data, file, contract)
        assert pixels is None or (pixels.shape == contract.shape and pixels.dtype == np.uint8)
