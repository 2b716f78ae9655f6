"""The one pixel path: the bytes of an image file to the uint8 pixels of the contract, for packs and for prediction alike."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..core.contract import PixelContract
from ..core.errors import ImageError
from .dicom.frames import dicom_frames, dicom_size, is_dicom
from .jpeg.header import read_jpeg

MAX_PIXELS = 100_000_000
"""Width times height past which nothing is decoded. A chest film at 100 um is about 20 million."""
MAX_FRAME_BYTES = 1 << 30
"""Of all frames of one file, after resizing."""
_OVERSAMPLE = 1.5
"""libjpeg's own reduction, where it has to do, stops at this many times the target; the antialiased resampling does the rest. Measured:
1.5 costs 0.3 to 0.6 of 255 against full decoding; 2 costs 0.1 to 0.4 and a fifth of the speed; 1 is no faster and errs by up to 40 at edges."""
_MIN_REDUCTION = 3
"""A JPEG less than this many times the target is left to libjpeg: nearly all its frequencies matter."""
_NPY_MAGIC = b"\x93NUMPY"
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_PNG_BITS_AT = 24
"""Bits of a sample: a byte of the header, which begins every PNG file."""


@dataclass(frozen=True)
class DecodedImage:
    pixels: np.ndarray
    """uint8 (C, H, W), 0..255, of the contract's shape."""
    width_px: int
    """Before resizing, as displayed (EXIF orientation applied)."""
    height_px: int
    format: Literal["JPEG", "PNG", "NPZ", "DICOM"]
    frame: int | None = None
    """Counted from 1, where the file holds several images; None where the file is the image."""


def decode_image(data: bytes, contract: PixelContract) -> DecodedImage:
    """The only image of a file: ``decode_frames`` for files that must not be volumes. Raises ImageError."""
    images = decode_frames(data, contract)
    if len(images) > 1:
        raise ImageError(f"The file holds {len(images)} frames.", hint="Decode them with decode_frames, or give one as a PNG.")
    return images[0]


def volume_size(data: bytes) -> tuple[int, int]:
    """(frames, pixels of all) that ``decode_frames`` would decode, by the header of a DICOM file; (1, 0) of any other, whose own limit
    holds. Raises ImageError for a damaged header."""
    return dicom_size(data) if is_dicom(data) else (1, 0)


def decode_frames(data: bytes, contract: PixelContract, *, only: int | None = None) -> list[DecodedImage]:
    """Decode a JPEG or PNG file, a DICOM file with one frame or many (``data.dicom``), or a uint8 array in .npy form (H, W) or (H, W, 3), as
    MedMNIST files hold them. One image a frame, in their order: a damaged frame costs the whole file, as a volume with a hole is no volume.
    ``only``: of a volume, the one frame that is wanted, from 0.

    EXIF orientation is applied, colours become ITU-R 601 luma where one channel is asked for, 16-bit gray is scaled by its full range
    (65535 -> 255), transparent pixels lie on black. The image is squashed to a square by antialiased bilinear resampling. Of a JPEG three times the
    target or larger only the frequencies that this leaves are decoded (``data.jpeg``); where the contract's ``jpeg`` is "reduced", and for files that
    are not plain sequential ones, libjpeg reduces it while decoding, to no less than one and a half times the target. Raises ImageError, and nothing
    else, for whatever cannot be read.
    """
    try:
        # Pillow and pydicom warn about damaged metadata and about sizes that are judged here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_dicom(data):
                return _decode_dicom(data, contract, only)
            if data.startswith(_NPY_MAGIC):
                return [_decode_array(data, contract)]
            return [_decode_frequencies(data, contract) or _decode_file(data, contract)]
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"This is no readable JPEG or PNG image, nor DICOM ({len(data):,} bytes).", hint="Convert it to PNG.") from None
    except Image.DecompressionBombError:
        raise _too_large("More than the decoder takes") from None
    except Exception as cause:  # a decoder may raise anything on damaged bytes: all of it means an unreadable image
        raise ImageError(f"The image cannot be decoded: {str(cause).strip() or type(cause).__name__}.", hint="Fetch or export it again.") from None


def _decode_frequencies(data: bytes, contract: PixelContract) -> DecodedImage | None:
    """None where ``data.jpeg`` does not take the file, or finds a fault in it: Pillow has the last word on what is an image."""
    file = read_jpeg(data) if contract.jpeg == "frequencies" else None
    if file is None or file.width_px * file.height_px > MAX_PIXELS or min(file.width_px, file.height_px) < _MIN_REDUCTION * contract.image_size_px:
        return None
    orientation = 1
    if file.metadata:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            orientation = _orientation(image)
    from .jpeg.reader import reduced_pixels  # imports numba

    pixels = reduced_pixels(data, file, contract)
    if pixels is None:
        return None
    width_px, height_px = file.width_px, file.height_px
    if orientation in _TRANSPOSE:
        pixels = np.stack([np.asarray(Image.fromarray(plane).transpose(_TRANSPOSE[orientation])) for plane in pixels])
        if orientation >= 5:
            width_px, height_px = height_px, width_px
    return DecodedImage(pixels, width_px, height_px, "JPEG")


def _decode_file(data: bytes, contract: PixelContract) -> DecodedImage:
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        width_px, height_px = image.size
        if width_px * height_px > MAX_PIXELS:
            raise _too_large(f"{width_px} x {height_px} pixels")
        kind: Literal["JPEG", "PNG"] = "PNG" if image.format == "PNG" else "JPEG"
        box = _draft(image, contract) if kind == "JPEG" else None
        image.load()
        orientation = _orientation(image)
        opaque = _without_key(image, bits=data[_PNG_BITS_AT]) if kind == "PNG" else image
        small = _resize(_plain(opaque, contract.channels), contract, box)
    if orientation in _TRANSPOSE:
        small = small.transpose(_TRANSPOSE[orientation])  # on the small square: resampling is symmetric
        if orientation >= 5:
            width_px, height_px = height_px, width_px
    return DecodedImage(_to_array(small), width_px, height_px, kind)


def _decode_dicom(data: bytes, contract: PixelContract, only: int | None) -> list[DecodedImage]:
    images: list[DecodedImage] = []
    for frame in dicom_frames(data, max_pixels=MAX_PIXELS, only=only):
        height_px, width_px = frame.shape[:2]
        picture = _plain(Image.fromarray(frame), contract.channels) if frame.ndim == 3 else _gray(frame, contract.channels)
        images.append(DecodedImage(_to_array(_resize(picture, contract)), width_px, height_px, "DICOM", len(images) + 1))
        if len(images) * images[0].pixels.nbytes > MAX_FRAME_BYTES:
            raise ImageError(f"The frames take more than {MAX_FRAME_BYTES:,} bytes at {contract.image_size_px} px.", hint="Use a smaller image size.")
    return images if len(images) > 1 else [replace(images[0], frame=None)]


def _decode_array(data: bytes, contract: PixelContract) -> DecodedImage:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or 0 in array.shape:
        raise ImageError(f"An array of {array.dtype} {array.shape} is no image.", hint="It must be uint8 (H, W) or (H, W, 3).")
    height_px, width_px = array.shape[:2]
    if width_px * height_px > MAX_PIXELS:
        raise _too_large(f"{width_px} x {height_px} pixels")
    small = _resize(_plain(Image.fromarray(np.ascontiguousarray(array)), contract.channels), contract)
    return DecodedImage(_to_array(small), width_px, height_px, "NPZ")


def _without_key(image: Image.Image, *, bits: int) -> Image.Image:
    """Black, where a PNG names one gray or colour that is transparent (PNG 3, 11.3.1.1, tRNS). Palettes are left to ``_plain``, and so are colours
    of 16 bits, of which Pillow keeps 8: too few to tell the one that is meant."""
    key = image.info.get("transparency")
    if key is None or image.mode not in ("1", "L", "I;16", "RGB") or (image.mode == "RGB" and bits > 8):
        return image
    values = np.array(image.convert("L") if image.mode == "1" else image)
    # Pillow spreads 2 and 4 bits over 0..255, but leaves the key as it is in the file.
    is_key = values == (255 * bool(key) if image.mode == "1" else np.multiply(key, 255 // ((1 << bits) - 1) or 1))
    values[is_key.all(axis=-1) if values.ndim == 3 else is_key] = 0
    return Image.fromarray(values)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Mode L or RGB, or F (0..255) for 16-bit gray."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float32)
        values /= np.float32(257.0)  # 65535 / 257 = 255
        return _gray(values, channels)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or (image.mode == "P" and "transparency" in image.info):
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        image = Image.alpha_composite(ground, layer).convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")  # straight to L would go by the palette's index where the palette is odd
    return image.convert("L" if channels == 1 else "RGB")


def _gray(values: np.ndarray, channels: int) -> Image.Image:
    """Of float32 (H, W) in 0..255: not rounded before resampling where the mode allows it."""
    return Image.fromarray(values) if channels == 1 else Image.fromarray(_round(values)).convert("RGB")


def _draft(image: Image.Image, contract: PixelContract) -> tuple[float, float, float, float] | None:
    """Have libjpeg reduce while decoding. Returns the part of the reduced image that is picture: its last row and column may be half empty."""
    side = math.ceil(_OVERSAMPLE * contract.image_size_px)
    drafted = image.draft("L" if contract.channels == 1 else "RGB", (side, side))
    return drafted[1] if drafted else None


def _resize(image: Image.Image, contract: PixelContract, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    side = contract.image_size_px
    # reducing_gap 3: whole-number box reduction first, down to three times the target; Pillow calls the result indistinguishable.
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def _to_array(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype != np.uint8:
        array = _round(array)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _round(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    if not any(key in image.info for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata is no reason to refuse the pixels
        return 1


def _too_large(what: str) -> ImageError:
    return ImageError(f"The image is too large: {what}, more than {MAX_PIXELS:,} pixels.", hint="Scale it down first.")
