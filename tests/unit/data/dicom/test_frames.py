from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scanvit.core.contract import PixelContract
from scanvit.core.errors import ImageError
from scanvit.data.decode import MAX_PIXELS, decode_frames, decode_image
from scanvit.data.dicom import frames as dicom
from scanvit.data.dicom.frames import dicom_frames, dicom_patient, is_dicom

pydicom = pytest.importorskip("pydicom", reason="the extra 'dicom' is not installed")
GRAY = PixelContract(image_size_px=8)
RGB = PixelContract(image_size_px=8, channels=3)
IMPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
JPEG_2000, JPEG, RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5"
MakeDicom = Callable[..., bytes]


def frames(data: bytes) -> list[np.ndarray]:
    return list(dicom_frames(data, max_pixels=MAX_PIXELS))


def row_of(values: list[int], kind: str) -> np.ndarray:
    return np.array([values], kind)


def item(**elements: Any) -> Any:
    dataset = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def lut(first: int, bits: int, entries: list[int]) -> Any:
    dataset = pydicom.Dataset()
    dataset.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    dataset.add_new("LUTData", "US", entries)
    return dataset


# (stored values, elements, expected gray), each worked out by hand.
CASES: dict[str, tuple[np.ndarray, dict[str, Any], list[float]]] = {
    "8 bits": (row_of([0, 100, 255], "u1"), {}, [0, 100, 255]),
    "8 bits inverted": (row_of([0, 100, 255], "u1"), {"PhotometricInterpretation": "MONOCHROME1"}, [255, 155, 0]),
    "6 of 8 bits": (row_of([0, 21, 63], "u1"), {"BitsStored": 6}, [0, 85, 255]),
    "signed 8 bits": (row_of([-128, 0, 127], "i1"), {}, [0, 128, 255]),
    "16 bits, no window": (row_of([1000, 1100, 1200], "<u2"), {}, [0, 127.5, 255]),
    "padding is no part of the range": (row_of([-32768, 1000, 1100, 1200], "<i2"), {"PixelPaddingValue": -32768}, [0, 0, 127.5, 255]),
    "a range of padding": (row_of([9, 0, 1000, 1100, 1200], "<u2"), {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 9}, [0, 0, 0, 127.5, 255]),
    "bright padding inverted": (
        row_of([1000, 1100, 1200, 65535], "<u2"),
        {"PixelPaddingValue": 65535, "PhotometricInterpretation": "MONOCHROME1"},
        [255, 127.5, 0, 0],
    ),
    "one value beside padding": (row_of([0, 1000, 1000], "<u2"), {"PixelPaddingValue": 0}, [0, 255, 255]),
    "one dark value beside bright padding": (row_of([1000, 4000], "<u2"), {"PixelPaddingValue": 4000}, [0, 255]),
    "nothing but padding": (row_of([7, 7], "<u2"), {"PixelPaddingValue": 7}, [0, 0]),
    "12 of 16 bits, window": (row_of([0, 1365, 4095], "<u2"), {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}, [0, 85, 255]),
    "first of two windows": (row_of([99, 100, 101], "<u2"), {"WindowCenter": [100, 7], "WindowWidth": [1, 9]}, [0, 255, 255]),
    "window after rescale": (
        row_of([-100, 0, 50, 100], "<i2"),
        {"RescaleSlope": 2, "RescaleIntercept": 10, "WindowCenter": 10, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"},
        [0, 127.5, 191.25, 255],
    ),
    "inverted after the window": (
        row_of([0, 30, 60], "<u2"),
        {"WindowCenter": 30, "WindowWidth": 60, "VOILUTFunction": "LINEAR_EXACT", "PhotometricInterpretation": "MONOCHROME1"},
        [255, 127.5, 0],
    ),
    "table before window": (
        row_of([0, 1, 2, 200], "u1"),
        {"VOILUTSequence": [lut(1, 8, [10, 20, 30])], "WindowCenter": 0, "WindowWidth": 1},
        [10, 10, 20, 30],
    ),
    "modality table": (row_of([0, 1, 2], "u1"), {"ModalityLUTSequence": [lut(0, 16, [65535, 0, 257])]}, [255, 0, 1]),
    "empty window": (row_of([0, 100, 255], "u1"), {"WindowCenter": None, "WindowWidth": ""}, [0, 100, 255]),
}


@pytest.mark.parametrize("syntax", [IMPLICIT, "1.2.840.10008.1.2.1", BIG_ENDIAN, DEFLATED], ids=["implicit", "explicit", "big endian", "deflated"])
@pytest.mark.parametrize("name", CASES)
def test_gray_values(name: str, syntax: str, make_dicom: MakeDicom) -> None:
    pixels, elements, expected = CASES[name]
    if syntax == BIG_ENDIAN:
        swapped = pixels.astype(pixels.dtype.newbyteorder(">"))
        data = make_dicom(pixels, syntax=syntax, PixelData=swapped.tobytes() + b"\0" * (swapped.nbytes % 2), **elements)
    else:
        data = make_dicom(pixels, syntax=syntax, **elements)
    (frame,) = frames(data)
    assert frame.dtype == np.float32
    assert frame[0].tolist() == pytest.approx(expected, abs=1e-3)


def test_padding_counts_whatever_sign_it_was_written_with(make_dicom: MakeDicom) -> None:
    file = pydicom.dcmread(io.BytesIO(make_dicom(row_of([-2000, 0, 100, 200], "<i2"))))
    file.add_new("PixelPaddingValue", "US", 63536)
    file.save_as(stream := io.BytesIO())
    assert frames(stream.getvalue())[0][0].tolist() == pytest.approx([0, 0, 127.5, 255])


def test_bits_above_those_stored_are_no_part_of_the_value(make_dicom: MakeDicom) -> None:
    overlay = row_of([0xF000, 0x8800, 0x0FFF], "<u2")
    (frame,) = frames(make_dicom(overlay, BitsStored=12, WindowCenter=2048, WindowWidth=4096))
    assert frame[0].tolist() == pytest.approx([0, 0x800 / 0xFFF * 255, 255])


@pytest.mark.parametrize(
    ("photometric", "pixel", "expected"),
    [("RGB", (200, 100, 50), (200, 100, 50)), ("YBR_FULL", (76, 85, 255), (254, 0, 0)), ("YBR_FULL", (100, 128, 128), (100, 100, 100))],
)
def test_colours(photometric: str, pixel: tuple[int, ...], expected: tuple[int, ...], make_dicom: MakeDicom) -> None:
    data = make_dicom(np.full((4, 6, 3), pixel, np.uint8), PhotometricInterpretation=photometric)
    decoded = decode_image(data, RGB)
    assert decoded.pixels[:, 0, 0].tolist() == pytest.approx(list(expected), abs=1)
    assert (decoded.width_px, decoded.height_px, decoded.format, decoded.frame) == (6, 4, "DICOM", None)
    luma = 0.299 * expected[0] + 0.587 * expected[1] + 0.114 * expected[2]
    assert decode_image(data, GRAY).pixels[0, 0, 0] == pytest.approx(luma, abs=1.5)


def test_16_bit_colours_and_planes_apart(make_dicom: MakeDicom) -> None:
    planes = np.stack([np.full((4, 4), value, "<u2") for value in (65535, 257 * 100, 0)])
    data = make_dicom(planes.transpose(1, 2, 0), PlanarConfiguration=1, PixelData=planes.tobytes())
    assert decode_image(data, RGB).pixels[:, 0, 0].tolist() == [255, 100, 0]


@pytest.mark.parametrize(("bits", "scale"), [(8, 1), (16, 257)])
def test_palettes(bits: int, scale: int, make_dicom: MakeDicom) -> None:
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    kind = "u1" if bits == 8 else "<u2"
    for name, entries in {"Red": [1, 2, 3, 4], "Green": [10, 20, 30, 40], "Blue": [100, 150, 200, 250]}.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [4, 5, bits]
        elements[f"{name}PaletteColorLookupTableData"] = (np.array(entries) * scale).astype(kind).tobytes()
    (frame,) = frames(make_dicom(row_of([0, 5, 7, 9], "u1"), **elements))
    assert frame[0].tolist() == [[1, 10, 100], [1, 10, 100], [3, 30, 200], [4, 40, 250]]


def test_a_volume_gives_its_frames_in_order(make_dicom: MakeDicom) -> None:
    volume = np.stack([np.full((6, 5), 20 * number, np.uint8) for number in range(12)])
    data = make_dicom(volume)
    images = decode_frames(data, GRAY)
    assert [image.frame for image in images] == list(range(1, 13))
    assert [int(image.pixels[0, 0, 0]) for image in images] == [20 * number for number in range(12)]
    with pytest.raises(ImageError, match="12 frames"):
        decode_image(data, GRAY)


def test_a_frame_s_own_window_comes_before_the_shared_one_and_the_file_s(make_dicom: MakeDicom) -> None:
    def window(center: int) -> Any:
        return [item(WindowCenter=center, WindowWidth=1)]

    volume = np.stack([row_of([10, 20, 30, 40], "<u2")] * 3)
    groups = [item(FrameVOILUTSequence=window(20)), item(FrameVOILUTSequence=window(30)), item()]
    shared = [item(FrameVOILUTSequence=window(10), PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-5)])]
    data = make_dicom(volume, PerFrameFunctionalGroupsSequence=groups, SharedFunctionalGroupsSequence=shared, WindowCenter=99, WindowWidth=1)
    assert [frame[0].tolist() for frame in frames(data)] == [[0, 0, 255, 255], [0, 0, 0, 255], [0, 255, 255, 255]]


def encapsulated(make_dicom: MakeDicom, syntax: str, streams: list[bytes], pixels: np.ndarray, **elements: Any) -> bytes:
    file = pydicom.dcmread(io.BytesIO(make_dicom(pixels, **elements)))
    file.file_meta.TransferSyntaxUID = syntax
    file.PixelData = pydicom.encaps.encapsulate(streams)
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, file, implicit_vr=False, little_endian=True)
    return stream.getvalue()


def encode(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def test_jpeg_2000_frames_are_lossless(make_dicom: MakeDicom) -> None:
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    volume = np.random.default_rng(0).integers(0, 4096, (3, 64, 72)).astype("<u2")
    file = pydicom.dcmread(io.BytesIO(make_dicom(volume, BitsStored=12, WindowCenter=2048, WindowWidth=4096)))
    file.compress(JPEG_2000, generate_instance_uid=False)
    stream = io.BytesIO()
    file.save_as(stream)
    for frame, pixels in zip(frames(stream.getvalue()), volume, strict=True):
        np.testing.assert_allclose(frame, pixels / 4095 * 255, atol=1e-3)


def test_rle_frames_are_lossless(make_dicom: MakeDicom) -> None:
    volume = np.random.default_rng(0).integers(0, 8, (2, 20, 30)).astype(np.uint8) * 30
    file = pydicom.dcmread(io.BytesIO(make_dicom(volume)))
    file.compress(RLE, generate_instance_uid=False)
    stream = io.BytesIO()
    file.save_as(stream)
    np.testing.assert_allclose(np.stack(frames(stream.getvalue())), volume, atol=1e-3)


def test_baseline_jpeg_frames_are_decoded(make_dicom: MakeDicom) -> None:
    y, x = np.mgrid[:40, :50]
    pixels = (2 * x + y).astype(np.uint8)
    (frame,) = frames(encapsulated(make_dicom, JPEG, [encode(pixels, "JPEG", quality=95)], pixels))
    assert np.abs(frame - pixels).mean() < 2


def test_a_compressed_frame_of_another_size_is_not_decoded(make_dicom: MakeDicom) -> None:
    small, large = np.zeros((16, 16), np.uint8), np.zeros((600, 600), np.uint8)
    for syntax, options in ((JPEG, {"format": "JPEG"}), (JPEG_2000, {"format": "JPEG2000"})):
        stream = encode(large, options["format"])
        with pytest.raises(ImageError, match="not of the size"):
            frames(encapsulated(make_dicom, syntax, [stream], small))


@pytest.mark.parametrize(
    "elements",
    [
        {"Rows": 0},
        {"Columns": None},
        {"Rows": 65535, "Columns": 65535},
        {"NumberOfFrames": 100_000},
        {"NumberOfFrames": -1},
        {"NumberOfFrames": 2048, "Rows": 9000, "Columns": 9000},
        {"BitsAllocated": 32, "BitsStored": 32},
        {"BitsStored": 9},
        {"BitsStored": 0},
        {"HighBit": 3},
        {"SamplesPerPixel": 3},
        {"SamplesPerPixel": 60000},
        {"PhotometricInterpretation": "CMYK"},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"NumberOfFrames": 2},
        {"Rows": 5},
        {"WindowCenter": 10, "WindowWidth": 0},
        {"WindowCenter": 10, "WindowWidth": 20, "VOILUTFunction": "CUBIC"},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"VOILUTSequence": [item()]},
        {"VOILUTSequence": [lut(0, 40, [1, 2, 3])]},
    ],
    ids=str,
)
def test_headers_that_are_refused(elements: dict[str, Any], make_dicom: MakeDicom) -> None:
    with pytest.raises(ImageError) as caught:
        decode_frames(make_dicom(np.zeros((4, 4), np.uint8), **elements), GRAY)
    assert caught.value.hint


def test_pixels_cut_short_are_refused(make_dicom: MakeDicom) -> None:
    data = make_dicom(np.ones((40, 40), np.uint8))
    for cut in (1, 100, 1000, 1599):
        with pytest.raises(ImageError):
            decode_frames(data[:-cut], GRAY)


def test_sequences_in_sequences_without_end_are_refused(make_dicom: MakeDicom) -> None:
    data = make_dicom(np.zeros((4, 4), np.uint8))
    start = data.index(struct.pack("<HH", 0x0028, 0x0002))
    nested = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(ImageError):
        decode_frames(data[:start] + nested * 50_000 + data[start:], GRAY)


def test_a_deflated_file_may_not_unpack_without_end(make_dicom: MakeDicom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "_MAX_INFLATED_BYTES", 1 << 20)
    head = make_dicom(np.zeros((4, 4), np.uint8), syntax=DEFLATED)
    stream = io.BytesIO(head[132:])
    pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = head[: 132 + stream.tell()] + squeeze.compress(bytes(50 << 20)) + squeeze.flush()
    with pytest.raises(ImageError, match="unpacks to more"):
        decode_frames(bomb, GRAY)


def test_no_text_of_the_file_gets_into_a_message(make_dicom: MakeDicom) -> None:
    secret = "DOE^JANE"
    for elements in ({"PhotometricInterpretation": secret}, {"VOILUTFunction": secret, "WindowCenter": 1, "WindowWidth": 9}, {"Rows": 7}):
        with pytest.raises(ImageError) as caught:
            decode_frames(make_dicom(np.zeros((4, 4), np.uint8), PatientName=secret, PatientID=secret, **elements), GRAY)
        assert "DOE" not in f"{caught.value} {caught.value.hint}"
    raw = make_dicom(np.zeros((4, 4), np.uint8), RescaleSlope="1.5", RescaleIntercept="2.5").replace(b"1.5 ", b"DOE ")
    with pytest.raises(ImageError) as caught:
        decode_frames(raw, GRAY)
    assert "DOE" not in str(caught.value)


def test_the_patient_is_the_id_within_its_issuer(make_dicom: MakeDicom) -> None:
    pixels = np.zeros((4, 4), np.uint8)
    assert dicom_patient(make_dicom(pixels, PatientID=" 4711 ", IssuerOfPatientID="hospital")) == ("hospital", "4711")
    assert dicom_patient(make_dicom(pixels, PatientID="4711")) == ("", "4711")
    assert dicom_patient(make_dicom(pixels, PatientID="", PatientName="Doe^Jane")) is None
    with pytest.raises(ImageError):
        dicom_patient(b"\0" * 128 + b"DICM" + b"\xff" * 50)


def test_without_pydicom_the_command_to_install_it_is_told(make_dicom: MakeDicom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"pip install 'scanvit\[dicom\]'"):
        decode_frames(make_dicom(np.zeros((4, 4), np.uint8)), GRAY)


def test_jpeg_and_png_are_no_dicom() -> None:
    assert not is_dicom(encode(np.zeros((40, 40), np.uint8), "PNG"))
    assert not is_dicom(b"")


# (width, height, frames) of files that pydicom ships; the same scan in six encodings.
SHIPPED = {
    **{f"MR_small{end}.dcm": (64, 64, 1) for end in ("", "_RLE", "_bigendian", "_expb", "_implicit", "_padded", "_jp2klossless")},
    "CT_small.dcm": (128, 128, 1),
    "693_J2KI.dcm": (512, 512, 1),
    "image_dfl.dcm": (512, 512, 1),
    "SC_rgb_rle_16bit_2frame.dcm": (100, 100, 2),
    "SC_rgb_small_odd_big_endian.dcm": (3, 3, 1),
    "SC_rgb_dcmtk_+eb+cy+s2.dcm": (100, 100, 1),
    "SC_ybr_full_422_uncompressed.dcm": (100, 100, 1),
    "examples_palette.dcm": (800, 350, 1),
    "examples_ybr_color.dcm": (320, 240, 30),
    "J2K_pixelrep_mismatch.dcm": (512, 512, 1),
}
REFUSED = ("MR_truncated.dcm", "rtplan.dcm", "rtdose.dcm", "waveform_ecg.dcm", "liver_1frame.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "no_meta.dcm")


def shipped(name: str) -> bytes:
    """Only what is in the package: nothing is fetched."""
    return (Path(pydicom.__file__).parent / "data" / "test_files" / name).read_bytes()


@pytest.mark.parametrize("name", SHIPPED)
def test_files_that_pydicom_ships(name: str) -> None:
    width, height, count = SHIPPED[name]
    images = decode_frames(shipped(name), PixelContract(image_size_px=64))
    assert [(image.width_px, image.height_px) for image in images] == [(width, height)] * count
    assert all(image.pixels.std() > 1 for image in images)
    if name.startswith("MR_small"):
        np.testing.assert_array_equal(images[0].pixels, decode_image(shipped("MR_small.dcm"), PixelContract(image_size_px=64)).pixels)


@pytest.mark.parametrize("name", REFUSED)
def test_shipped_files_that_are_no_image_or_damaged(name: str) -> None:
    with pytest.raises(ImageError):
        decode_frames(shipped(name), GRAY)
