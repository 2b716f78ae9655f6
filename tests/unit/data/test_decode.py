from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scanvit.core.contract import PixelContract
from scanvit.core.errors import ImageError
from scanvit.data import decode
from scanvit.data.decode import decode_image

GRAY = PixelContract(image_size_px=16)
RGB = PixelContract(image_size_px=16, channels=3)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(height: int = 48, width: int = 64) -> np.ndarray:
    """Bright to the right and the bottom, no symmetry."""
    y, x = np.mgrid[:height, :width]
    return (x * 2 + y).astype(np.uint8)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("contract", [GRAY, RGB])
def test_every_mode_of_a_flat_png_keeps_its_gray(mode: str, contract: PixelContract) -> None:
    value = 255 if mode == "1" else 120
    image = Image.new("L", (40, 30), value).convert(mode)
    decoded = decode_image(encode(image), contract)
    assert decoded.pixels.shape == contract.shape
    assert decoded.pixels.dtype == np.uint8
    assert np.abs(decoded.pixels.astype(int) - value).max() <= (1 if mode != "P" else 4)
    assert (decoded.width_px, decoded.height_px, decoded.format) == (40, 30, "PNG")


def test_colour_becomes_luma_and_stays_in_order() -> None:
    image = Image.new("RGB", (20, 20), (200, 100, 50))
    assert decode_image(encode(image), GRAY).pixels[0, 0, 0] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert decode_image(encode(image), RGB).pixels[:, 0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (128, 0), (129, 1), (32768, 128), (65535, 255)])
@pytest.mark.parametrize("contract", [GRAY, RGB])
def test_16_bits_are_scaled_by_their_full_range(value: int, expected: int, contract: PixelContract) -> None:
    decoded = decode_image(encode(np.full((20, 30), value, np.uint16)), contract)
    assert np.unique(decoded.pixels).tolist() == [expected]


def test_transparent_pixels_lie_on_black() -> None:
    image = Image.new("RGBA", (20, 20), (255, 255, 255, 0))
    assert decode_image(encode(image), GRAY).pixels.max() == 0
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([250, 250, 250])
    assert decode_image(encode(palette, transparency=0), GRAY).pixels.max() == 0


def keyed_png(bits: int, colour: int, samples: list[int], key: list[int]) -> bytes:
    """One row of pixels. ``colour``: 0 gray, 2 RGB. ``key``: what tRNS names."""
    line = b"".join(value.to_bytes(2, "big") for value in samples) if bits == 16 else np.packbits([[v >> b & 1 for b in range(bits)][::-1] for v in samples])
    header = struct.pack(">IIBBBBB", len(samples) // (3 if colour else 1), 1, bits, colour, 0, 0, 0)
    chunks = {b"IHDR": header, b"tRNS": b"".join(value.to_bytes(2, "big") for value in key), b"IDAT": zlib.compress(b"\0" + bytes(line)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in chunks.items()
    )


@pytest.mark.parametrize(
    ("bits", "colour", "samples", "key", "expected"),
    [
        (1, 0, [1] * 8, [1], 0),
        (2, 0, [2] * 8, [2], 0),
        (2, 0, [2] * 8, [1], 170),
        (4, 0, [5] * 8, [5], 0),
        (8, 0, [200] * 8, [200], 0),
        (8, 0, [200] * 8, [201], 200),
        (16, 0, [51400] * 8, [51400], 0),
        (16, 0, [51400] * 8, [51401], 200),
        (8, 2, [9, 200, 9] * 8, [9, 200, 9], 0),
        (8, 2, [200, 200, 200] * 8, [200, 200, 9], 200),
    ],
)
def test_the_gray_or_colour_that_is_named_transparent_lies_on_black(bits: int, colour: int, samples: list[int], key: list[int], expected: int) -> None:
    for contract in (GRAY, RGB):
        assert np.unique(decode_image(keyed_png(bits, colour, samples, key), contract).pixels).tolist() == [expected]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # PIL.Image.Transpose for each orientation, from the EXIF 2.3 table
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = Image.fromarray(ramp())
    decoded = decode_image(encode(source, kind, exif=exif.tobytes()), GRAY)
    upright = source.transpose(Image.Transpose(turn[orientation])) if orientation > 1 else source
    assert (decoded.width_px, decoded.height_px) == upright.size
    expected = decode_image(encode(upright, kind), GRAY).pixels
    assert np.abs(decoded.pixels.astype(int) - expected).max() <= 3


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encode(Image.fromarray(ramp()), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    assert decode_image(data, GRAY).pixels.shape == GRAY.shape


@pytest.mark.parametrize("side", [64, 500, 1500])
def test_reduced_jpeg_decoding_is_close_to_the_full_one(side: int) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8))
    data = encode(coarse.resize((side, side), Image.Resampling.BICUBIC), "JPEG", quality=90)
    contract = PixelContract(image_size_px=64)
    full = Image.open(io.BytesIO(data)).convert("L").resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(decode_image(data, contract).pixels[0].astype(int) - np.asarray(full).astype(int)).mean() < 2


def test_an_array_goes_the_same_way_as_a_png() -> None:
    for array in (ramp(28, 28), np.stack([ramp(), ramp()[::-1], ramp()[:, ::-1]], axis=-1)):
        for contract in (GRAY, RGB):
            decoded = decode_image(npy(array), contract)
            assert decoded.format == "NPZ"
            np.testing.assert_array_equal(decoded.pixels, decode_image(encode(array), contract).pixels)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.float32), np.zeros(4, np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8), np.array([{}])], ids=str
)
def test_an_array_that_is_no_image_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError):
        decode_image(npy(array), GRAY)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(ImageError, match="no readable JPEG or PNG"):
        decode_image(encode(Image.fromarray(ramp()), kind), GRAY)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"hello" * 100, b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{}"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data, GRAY)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_cut_short_is_refused(kind: str) -> None:
    rng = np.random.default_rng(1)
    data = encode(rng.integers(0, 256, (80, 80), np.uint8), kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError):
            decode_image(data[: int(len(data) * share)], GRAY)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (100_001, 1_000)])
def test_a_huge_image_is_refused_from_its_header(width: int, height: int) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    with pytest.raises(ImageError, match="too large"):
        decode_image(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""), GRAY)
    assert width * height > decode.MAX_PIXELS


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\x93NUMPY\x01\0"]))
def test_any_bytes_end_in_an_image_error(tail: bytes, head: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(head + tail, GRAY)
