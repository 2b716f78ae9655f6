"""DICOM files to frames that the pixel path takes on, and to pseudonyms of patients. pydicom does the parsing and the decoding.

Only the elements named here are read: no name, date or device of the file is ever parsed. Files are hostile until read: sizes are judged
from the header, before any pixel is decoded, and again from each compressed frame's own header. What pydicom says about an error may quote
the file, so messages are our own.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.errors import ImageError
from .codestream import codestream_shape
from .gray_table import Lut, Rescale, Window, gray_table

MAX_FRAMES = 2048
"""B-scans of a volume. Optical coherence tomographs make 19 to 1024."""
MAX_VOLUME_PIXELS = 2_000_000_000
"""Of all frames together."""
_MAX_INFLATED_BYTES = 1 << 30
_DEFLATED = "1.2.840.10008.1.2.1.99"
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", _DEFLATED)
_JPEG = "1.2.840.10008.1.2.4."
_COMPRESSED = (*(_JPEG + end for end in ("50", "51", "57", "70", "80", "81", "90", "91", "201", "202", "203")), "1.2.840.10008.1.2.5")
"""JPEG baseline, extended and lossless, JPEG-LS, JPEG 2000, high-throughput JPEG 2000, RLE."""
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PALETTES = tuple(f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue"))
_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
_VALUES = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
_IMAGE = ("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns")
_BITS = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
_HEADER = [*_IMAGE, *_BITS, *_PADDING, *_VALUES, *_GROUPS, *(f"{p}{end}" for p in _PALETTES for end in ("Descriptor", "Data"))]
_PIXELS = ["PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]
_HINT = "Export it again."
_DECODERS = "Export it uncompressed, as JPEG 2000 or RLE; or install python-gdcm, which decodes lossless and 12-bit JPEG and JPEG-LS."


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What the header says about every frame, checked."""

    rows: int
    columns: int
    frames: int
    photometric: str
    lowest: int
    highest: int
    syntax: str


def is_dicom(data: bytes) -> bool:
    """By the mark after the preamble."""
    return data[128:132] == b"DICM"


def dicom_size(data: bytes) -> tuple[int, int]:
    """(frames, pixels of all of them) by the header; none is decoded. Raises ImageError."""
    with _own_errors():
        header = _read(data, ["NumberOfFrames", "Rows", "Columns"], pixels=False)
        frames = _whole(header, "NumberOfFrames", default=1)
        return frames, frames * _whole(header, "Rows") * _whole(header, "Columns")


def dicom_frames(data: bytes, *, max_pixels: int, only: int | None = None) -> Iterator[np.ndarray]:
    """The frames of a DICOM file, one after the other: gray as float32 (H, W) or colour as uint8 (H, W, 3), both in 0..255.
    ``only``: the one frame that is decoded, from 0.

    Gray goes through rescale slope and intercept or the modality table, then the first VOI table or window (a frame's own before the
    shared one), and is inverted for MONOCHROME1 (``gray_table``). Where there is neither, 8 bits are shown as they are, and more from the
    frame's lowest value to its highest, but for declared padding beside two values or more. Palettes are looked up and YBR becomes RGB.
    ``max_pixels``: of a frame. Raises ImageError.
    """
    with _own_errors():
        header = _read(data, _HEADER, pixels=False)
        layout = _layout(header, max_pixels)
        yield from _decode(data, header, layout, range(layout.frames) if only is None else range(only, only + 1))


def dicom_patient(data: bytes) -> tuple[str, str] | None:
    """(issuer, id) of the patient as the file has them, for a pseudonym and nothing else; None where it names none. Raises ImageError."""
    with _own_errors():
        header = _read(data, ["PatientID", "IssuerOfPatientID"], pixels=False)
        patient, issuer = (str(header.get(name) or "").strip() for name in ("PatientID", "IssuerOfPatientID"))
    return (issuer, patient) if patient else None


def dicom_texts(data: bytes, elements: list[str]) -> dict[str, str]:
    """Some text elements of the header, '' where it has none. For ``data.attributes``, which says which may be asked for. Raises ImageError."""
    with _own_errors():
        header = _read(data, elements, pixels=False)
        return {name: str(header.get(name) or "").strip() for name in elements}


@contextmanager
def _own_errors() -> Iterator[None]:
    if importlib.util.find_spec("pydicom") is None:
        raise ImageError(
            "This is a DICOM file, and pydicom, which reads it, is not installed: pip install 'scanvit[dicom]'",
            hint="Install it, or convert the images to PNG.",
        )
    from pydicom.config import disable_value_validation

    try:
        with disable_value_validation(), _quiet():  # a name in the wrong form is nobody's business here
            yield
    except BaseException as cause:
        if type(cause).__name__ == "PanicException":  # pylibjpeg-rle is Rust: what damages it is no Exception, and would end the process
            raise ImageError("The RLE pixels of the DICOM file are damaged.", hint=_HINT) from None
        if not isinstance(cause, Exception):
            raise
        raise _refused(cause) from None


def _refused(cause: Exception) -> ImageError:
    """pydicom and its decoders may raise anything on damaged bytes."""
    if isinstance(cause, ImageError):
        return cause
    if isinstance(cause, RuntimeError):  # pydicom's answer where every decoder gave up
        return ImageError("The pixels of the DICOM file are damaged, or compressed in a way that no installed decoder reads.", hint=_DECODERS)
    return ImageError(f"The DICOM file cannot be decoded ({type(cause).__name__}): it is damaged or cut short.", hint=_HINT)


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom and its decoders log what they dislike, with values and tracebacks, before they raise it."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "openjpeg", "pylibjpeg", "rle")]
    before = [logger.propagate for logger in loggers]
    try:
        for logger in loggers:
            logger.propagate = False
            if not logger.handlers:
                logger.addHandler(logging.NullHandler())
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.propagate = propagate


def _read(data: bytes, elements: list[str], *, pixels: bool) -> Any:
    from pydicom import dcmread
    from pydicom.filereader import read_dataset

    # The end of the file's meta information, found first: pydicom would inflate whatever follows without a limit.
    stream = io.BytesIO(data[132:])
    meta = read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag.group != 2)
    if str(meta.get("TransferSyntaxUID")) == _DEFLATED:
        _check_inflated(data[132 + stream.tell() :])
    return dcmread(io.BytesIO(data), stop_before_pixels=not pixels, specific_tags=list(elements))


def _check_inflated(packed: bytes) -> None:
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while packed and not inflate.eof:
        total += len(inflate.decompress(packed, 1 << 20))
        if total > _MAX_INFLATED_BYTES:
            raise ImageError(f"The DICOM file unpacks to more than {_MAX_INFLATED_BYTES:,} bytes.", hint="Do not trust it.")
        packed = inflate.unconsumed_tail


def _layout(header: Any, max_pixels: int) -> _Layout:
    """Raises ImageError for everything that is not decoded here. Texts of the file are not quoted: they may say anything."""
    syntax = str(header.file_meta.get("TransferSyntaxUID"))
    if syntax not in _NATIVE and syntax not in _COMPRESSED:
        raise ImageError("The DICOM file is in a transfer syntax that is not read here (a video, or none is named).", hint=_DECODERS)
    rows, columns, samples = (_whole(header, name) for name in ("Rows", "Columns", "SamplesPerPixel"))
    frames = _whole(header, "NumberOfFrames", default=1)
    allocated, stored, signed = _whole(header, "BitsAllocated"), _whole(header, "BitsStored"), _whole(header, "PixelRepresentation", default=0)
    if rows < 1 or columns < 1 or not 1 <= frames <= MAX_FRAMES:
        raise ImageError(f"{frames} frames of {columns} x {rows} pixels are no image (at most {MAX_FRAMES} frames).", hint=_HINT)
    if rows * columns > max_pixels or rows * columns * frames > MAX_VOLUME_PIXELS:
        raise ImageError(f"The image is too large: {frames} frames of {columns} x {rows} pixels.", hint="Scale it down first.")
    photometric = str(header.get("PhotometricInterpretation"))
    if samples != {**dict.fromkeys((*_GRAY, "PALETTE COLOR"), 1), **dict.fromkeys(_COLOUR, 3)}.get(photometric):
        raise ImageError(f"This photometric interpretation with {samples} samples a pixel is not read here.", hint="Export it as gray or RGB.")
    high = _whole(header, "HighBit", default=stored - 1)
    if allocated not in (8, 16) or not 1 <= stored <= allocated or signed not in (0, 1) or high != stored - 1:
        raise ImageError(f"Pixels of {stored} bits in {allocated} are not read here.", hint="Export it with 8 to 16 bits, in 8 or 16.")
    lowest = -(1 << (stored - 1)) if signed else 0
    size = {"rows": rows, "columns": columns, "frames": frames}
    return _Layout(**size, photometric=photometric, lowest=lowest, highest=lowest + (1 << stored) - 1, syntax=syntax)


def _decode(data: bytes, header: Any, layout: _Layout, wanted: range) -> Iterator[np.ndarray]:
    from pydicom.pixels.decoders.base import get_decoder

    decoder = get_decoder(layout.syntax)
    if not decoder.is_available:
        raise ImageError("No installed decoder reads this DICOM file's compression.", hint=_DECODERS)
    file = _read(data, [*_HEADER, *_PIXELS], pixels=True)
    if "PixelData" not in file:
        raise ImageError("The DICOM file holds no image.", hint="Leave it out.")
    compressed = layout.syntax in _COMPRESSED
    if compressed:
        _check_codestreams(file, layout)
    done = 0
    indices = None if len(wanted) == layout.frames else list(wanted)  # in turn, damage behind the named frames is not looked at
    decoded = decoder.iter_array(file, indices=indices, raw=layout.photometric == "PALETTE COLOR")
    for index, (pixels, properties) in zip(wanted, decoded, strict=False):
        if pixels.shape[:2] != (layout.rows, layout.columns) or pixels.dtype.kind not in "iu":
            raise ImageError(f"Frame {index + 1} is not of the size that the header says.", hint=_HINT)
        if layout.photometric in _GRAY:
            yield _gray(header, layout, pixels, index)
        else:
            colours = _palette(header, layout, pixels) if layout.photometric == "PALETTE COLOR" else pixels
            yield _to_8_bits(colours, top=_colour_top(header, layout, properties))
        done += 1
    if done < len(wanted):
        raise ImageError(f"The DICOM file holds {done} of the {layout.frames} frames that it names.", hint=_HINT)


def _check_codestreams(file: Any, layout: _Layout) -> None:
    """A frame's own header may claim another size than the file's; its decoder would believe it."""
    from pydicom.encaps import generate_frames

    if not layout.syntax.startswith(_JPEG):
        return  # RLE has no size of its own
    for frame in generate_frames(file.PixelData, number_of_frames=layout.frames):
        if codestream_shape(bytes(frame)) != (layout.columns, layout.rows, 1 if layout.photometric not in _COLOUR else 3):
            raise ImageError("A compressed frame is not of the size that the header says.", hint=_HINT)


def _gray(header: Any, layout: _Layout, pixels: np.ndarray, index: int) -> np.ndarray:
    modality, voi = _modality(header, layout, index), _voi(header, layout, index)
    lowest, highest = layout.lowest, layout.highest
    pixels = np.clip(pixels.reshape(layout.rows, layout.columns), lowest, highest).astype(np.int32)
    if voi is None and highest - lowest > 255:  # of 65,536 values a scanner uses a few thousand: the rest would leave no contrast in 8 bits
        shown = pixels[~_is_padding(header, layout, pixels)]
        if not shown.size or shown.min() == shown.max():  # of one value alone no contrast would be left
            shown = pixels
        lowest, highest = int(shown.min()), int(shown.max())
        pixels = pixels.clip(lowest, highest)
    return gray_table(lowest, highest, modality=modality, voi=voi, inverted=layout.photometric == "MONOCHROME1")[pixels - lowest]


def _is_padding(header: Any, layout: _Layout, pixels: np.ndarray) -> np.ndarray:
    """bool (H, W): pixels that were filled in to make a rectangle, of one value or of a range of them (PS3.3, C.7.5.1.1.2)."""
    ends = [int(value) for name in _PADDING if (value := _number(header, name)) is not None]
    if header.get(_PADDING[0]) is None or not ends:
        return np.zeros(pixels.shape, bool)
    # The element may have been written without regard to the sign of the pixels: -2000 as 63536.
    ends = [layout.lowest + (value - layout.lowest) % (layout.highest - layout.lowest + 1) for value in ends]
    return (pixels >= min(ends)) & (pixels <= max(ends))


def _modality(header: Any, layout: _Layout, index: int) -> Rescale | Lut:
    if sequence := header.get("ModalityLUTSequence"):
        return _lut(sequence[0], layout)
    scope = _scope(header, index, "PixelValueTransformationSequence", "RescaleSlope")
    slope, intercept = (_number(scope, name) for name in ("RescaleSlope", "RescaleIntercept"))
    return Rescale(slope=1.0 if slope is None else slope, intercept=0.0 if intercept is None else intercept)


def _voi(header: Any, layout: _Layout, index: int) -> Window | Lut | None:
    if sequence := header.get("VOILUTSequence"):
        return _lut(sequence[0], layout)
    scope = _scope(header, index, "FrameVOILUTSequence", "WindowCenter")
    center, width = (_number(scope, name) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None
    function = str(scope.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError("The VOI LUT function is none of LINEAR, LINEAR_EXACT and SIGMOID.", hint=_HINT)
    return Window(center=center, width=width, function=function)  # type: ignore[arg-type]


def _scope(header: Any, index: int, macro: str, element: str) -> Any:
    """Where ``element`` stands: in the frame's functional groups, in those of all frames, or in the file itself (PS3.3, C.7.6.16)."""
    for name, item in zip(_GROUPS, (index, 0), strict=True):
        groups = header.get(name)
        if groups and item < len(groups) and (inner := groups[item].get(macro)) and inner[0].get(element) is not None:
            return inner[0]
    return header


def _lut(item: Any, layout: _Layout) -> Lut:
    return _table(item.LUTDescriptor, item.LUTData, layout)


def _table(descriptor: Any, data: Any, layout: _Layout) -> Lut:
    count, first, bits = (int(value) for value in descriptor)
    count = count or 1 << 16
    if layout.lowest < 0 and first > 0x7FFF:
        first -= 1 << 16  # the descriptor is unsigned where pydicom could not know the sign
    if isinstance(data, bytes):
        byte_order = ">" if layout.syntax == _NATIVE[2] else "<"
        data = np.frombuffer(data, np.uint8) if len(data) < 2 * count else np.frombuffer(data[: 2 * count], f"{byte_order}u2")
    entries = np.atleast_1d(np.asarray(data))[:count]
    if not 1 <= count <= 1 << 16 or len(entries) < count or not 8 <= bits <= 16 or entries.dtype.kind not in "iu":
        raise ImageError(f"A lookup table of {count} entries of {bits} bits is not read here.", hint=_HINT)
    return Lut(first=first, bits=bits, entries=entries.astype(np.uint16))


def _palette(header: Any, layout: _Layout, pixels: np.ndarray) -> np.ndarray:
    if any(f"{name}Data" not in header for name in _PALETTES):
        raise ImageError("A palette in segments is not read here.", hint="Export the image as RGB.")
    tables = [_table(header[f"{name}Descriptor"].value, header[f"{name}Data"].value, layout) for name in _PALETTES]
    values = pixels.reshape(layout.rows, layout.columns)
    return np.stack([table.look_up(values) for table in tables], axis=-1)


def _colour_top(header: Any, layout: _Layout, properties: dict[str, Any]) -> int:
    if layout.photometric == "PALETTE COLOR":
        return (1 << int(header[f"{_PALETTES[0]}Descriptor"].value[2])) - 1
    return (1 << int(properties["bits_stored"])) - 1


def _to_8_bits(colours: np.ndarray, *, top: int) -> np.ndarray:
    if colours.dtype == np.uint8 and top == 255:
        return colours
    return np.floor(np.clip(colours.astype(np.float32) * np.float32(255.0 / top), 0, 255) + np.float32(0.5)).astype(np.uint8)


def _whole(header: Any, name: str, *, default: int | None = None) -> int:
    value = header.get(name)
    if value is None or value == "":
        if default is None:
            raise ImageError(f"The DICOM file holds no image: it has no {name}.", hint="Leave it out.")
        return default
    return int(value)


def _number(scope: Any, name: str) -> float | None:
    """The first value of an element."""
    value = scope.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str | int | float) and hasattr(value, "__len__"):
        value = value[0] if len(value) else None
    return None if value is None else float(value)
