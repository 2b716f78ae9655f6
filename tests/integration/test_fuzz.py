"""Damaged and hostile bytes to everything that reads what comes from outside: an error of our own tree each time, no crash, nothing written outside.

More than 2,000 cases even where the extra 'dicom' is missing. The cases are the same in every run: hypothesis derives them from the test.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scanvit.core.contract import PixelContract
from scanvit.core.errors import ImageError, PackError, ScanvitError
from scanvit.data.archives.open import ArchiveLimits, open_archive
from scanvit.data.decode import decode_frames
from scanvit.data.pack import Pack, fingerprint
from scanvit.data.prepare import prepare
from scanvit.data.sources import SPLITS
from scanvit.storage.checksum import sha256_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CONTRACT = PixelContract(image_size_px=8)
LIMITS = ArchiveLimits(member_bytes=1 << 20, total_bytes=8 << 20)
OPERATIONS = ("flip", "byte", "cut", "remove", "insert", "repeat", "splice", "zeros", "ones")
Change = tuple[str, int, int, bytes]
CHANGES = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 2**31), st.integers(0, 2**31), st.binary(min_size=1, max_size=16)), min_size=1, max_size=6
)


def cases(count: int) -> Callable[[Any], Any]:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


def damage(data: bytes, changes: list[Change]) -> bytes:
    """Half of the places lie in the first 512 bytes, where the headers are."""
    raw = bytearray(data)
    for operation, place, other, piece in changes:
        if not raw:
            break
        at = (place >> 1) % (min(len(raw), 512) if place & 1 else len(raw))
        end = min(len(raw), at + 1 + other % 64)
        match operation:
            case "flip":
                raw[at] ^= 1 << other % 8
            case "byte":
                raw[at] = piece[0]
            case "cut":
                del raw[at:]
            case "remove":
                del raw[at:end]
            case "insert":
                raw[at:at] = piece
            case "repeat":
                raw[at:at] = raw[at:end] * (1 + other % 9)
            case "splice":
                start = other % len(raw)
                raw[at:end] = raw[start : start + len(piece)]
            case "zeros":
                raw[at : at + 4] = bytes(4)
            case "ones":
                raw[at : at + 4] = b"\xff" * 4
    return bytes(raw)


def picture(kind: str, mode: str = "L", **options: object) -> bytes:
    y, x = np.mgrid[:40, :56]
    buffer = io.BytesIO()
    Image.fromarray((3 * x + y).astype(np.uint8)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def array_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png_16() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(buffer, "PNG")
    return buffer.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
PICTURES = {
    "jpeg": picture("JPEG", exif=EXIF.tobytes()),
    "jpeg, progressive colour": picture("JPEG", "RGB", progressive=True),
    "jpeg, cmyk": picture("JPEG", "CMYK"),
    "png": picture("PNG"),
    "png, palette": picture("PNG", "P"),
    "png, alpha": picture("PNG", "RGBA", exif=EXIF.tobytes()),
    "png, 16 bits": png_16(),
    "npy": array_bytes(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)),
}


def decode_or_refuse(data: bytes) -> None:
    with suppress(ImageError):
        assert all(image.pixels.shape == CONTRACT.shape for image in decode_frames(data, CONTRACT))


@pytest.mark.parametrize("kind", PICTURES)
@cases(200)
@given(changes=CHANGES)
def test_pictures(kind: str, changes: list[Change]) -> None:
    decode_or_refuse(damage(PICTURES[kind], changes))


@pytest.fixture(scope="module")
def dicom_files(make_dicom: Callable[..., bytes]) -> dict[str, bytes]:
    pydicom = pytest.importorskip("pydicom")

    def compressed(data: bytes, syntax: str) -> bytes:
        file = pydicom.dcmread(io.BytesIO(data))
        file.compress(syntax, generate_instance_uid=False)
        stream = io.BytesIO()
        file.save_as(stream)
        return stream.getvalue()

    def jpeg(data: bytes, frame: bytes) -> bytes:
        file = pydicom.dcmread(io.BytesIO(data))
        file.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
        file.PixelData = pydicom.encaps.encapsulate([frame])
        file["PixelData"].is_undefined_length = True
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, file, implicit_vr=False, little_endian=True)
        return stream.getvalue()

    def item(**elements: Any) -> Any:
        dataset = pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        return dataset

    generator = np.random.default_rng(0)
    gray = generator.integers(0, 4096, (64, 64)).astype("<u2")
    volume = generator.integers(0, 4096, (3, 64, 64)).astype("<u2")
    window = {"BitsStored": 12, "WindowCenter": [2048, 9], "WindowWidth": [4096, 9], "RescaleSlope": 1, "RescaleIntercept": -7}
    groups = [item(FrameVOILUTSequence=[item(WindowCenter=20 * n, WindowWidth=30)]) for n in range(3)]
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4, 0, 8])
    table.add_new("LUTData", "US", [1, 2, 3, 4])
    palette: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        palette |= {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 8], f"{name}PaletteColorLookupTableData": bytes(range(256))}
    small = generator.integers(0, 256, (20, 20), np.uint8)
    return {
        "native": make_dicom(gray, **window),
        "implicit": make_dicom(gray, syntax="1.2.840.10008.1.2", PhotometricInterpretation="MONOCHROME1", PatientName="Doe^Jane"),
        "deflated": make_dicom(gray, syntax="1.2.840.10008.1.2.1.99", VOILUTSequence=[table]),
        "volume": make_dicom(volume, PerFrameFunctionalGroupsSequence=groups),
        "palette": make_dicom(small, **palette),
        "colour": make_dicom(generator.integers(0, 256, (20, 20, 3), np.uint8), PhotometricInterpretation="YBR_FULL"),
        "jpeg 2000": compressed(make_dicom(volume, **window), "1.2.840.10008.1.2.4.90"),
        "rle": compressed(make_dicom(volume, **window), "1.2.840.10008.1.2.5"),
        "jpeg": jpeg(make_dicom(np.zeros((40, 56), np.uint8)), picture("JPEG")),
    }


@pytest.mark.parametrize("kind", ["native", "implicit", "deflated", "volume", "palette", "colour", "jpeg 2000", "rle", "jpeg"])
@cases(160)
@given(changes=CHANGES)
def test_dicom(kind: str, dicom_files: dict[str, bytes], changes: list[Change]) -> None:
    decode_or_refuse(damage(dicom_files[kind], changes))


@contextmanager
def nothing_written(root: Path, *allowed: Path) -> Iterator[None]:
    """No file comes, goes or changes below ``root``, but for those below ``allowed``."""

    def listing() -> dict[str, bytes]:
        files = (path for path in root.rglob("*") if path.is_file() and not any(path == a or a in path.parents for a in allowed))
        return {str(path): path.read_bytes() for path in files}

    before = listing()
    yield
    assert listing() == before


@pytest.fixture
def arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder two levels down, also the working directory, so that a path that climbs out still lands where it is seen."""
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    (tmp_path / "precious.txt").write_text("as it was")
    monkeypatch.chdir(folder)
    return folder


def zip_bytes(names: list[str], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for number, name in enumerate(names):
            info = zipfile.ZipInfo("name")
            info.filename, info.compress_type = name, method  # as it is: the writer would cut it at a NUL
            archive.writestr(info, PICTURES["png"][:-12] + bytes([number % 256]) * 3 + PICTURES["png"][-12:])
    return buffer.getvalue()


def tar_bytes(names: list[str], mode: str, kinds: list[bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.type = kinds[number % len(kinds)] if kinds else tarfile.REGTYPE
            info.linkname = "../../precious.txt"
            data = PICTURES["jpeg"] + bytes([number]) if info.isreg() else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def medmnist_bytes() -> bytes:
    generator, buffer = np.random.default_rng(0), io.BytesIO()
    arrays = {f"{split}_images": generator.integers(0, 256, (6, 9, 9), np.uint8) for split in ("train", "val", "test")}
    np.savez(buffer, **arrays, **{f"{split}_labels": np.arange(6)[:, None] % 2 for split in ("train", "val", "test")})
    return buffer.getvalue()


NAMES = [f"{name}/{number}.png" for name in ("a", "b") for number in range(6)]
ARCHIVES = {
    "zip": zip_bytes(NAMES),
    "zip, stored": zip_bytes(NAMES, zipfile.ZIP_STORED),
    "tar": tar_bytes(NAMES, "w"),
    "tar.gz": tar_bytes(NAMES, "w:gz"),
    "npz": medmnist_bytes(),
}


@pytest.mark.parametrize("kind", [*ARCHIVES, "tar, packed when it was damaged"])
@cases(200)
@given(changes=CHANGES)
def test_archives(kind: str, arena: Path, changes: list[Change]) -> None:
    file = arena / "archive"
    # Damage inside a gzip stream is found by its checksum.
    file.write_bytes(damage(ARCHIVES[kind], changes) if kind in ARCHIVES else gzip.compress(damage(ARCHIVES["tar"], changes), 1))
    with nothing_written(arena.parents[1]), suppress(ScanvitError):
        archive = open_archive(file, limits=LIMITS)
        wanted = {member.path for member in archive.members()}
        assert not [path for path in wanted if path.startswith("/") or ".." in path.split("/")]
        assert {path for path, _ in archive.read(wanted)} == wanted


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "npz"])
@cases(25)
@given(changes=CHANGES)
def test_a_pack_of_a_damaged_archive_is_whole_or_not_there(kind: str, arena: Path, changes: list[Change]) -> None:
    file, out = arena / "archive", arena / "pack"
    file.write_bytes(damage(ARCHIVES[kind], changes))
    with nothing_written(arena.parents[1], out, arena / ".pack.work"):
        try:
            prepare(file, out, settings={"image_size_px": 8, "max_quarantine_share": 0.5}, workers=1, overwrite=True)
        except ScanvitError:
            return
    Pack.open(out).verify()


PARTS = st.sampled_from(["a", "b", "..", ".", "", "C:", "precious.txt", "\\", "..\\..", "\0", "x.png", "\u202e", "é" * 90, "-rf", "$(id)", "<b>", "\n"])
HOSTILE = st.lists(st.lists(PARTS, min_size=1, max_size=5).map("/".join).filter(bool), min_size=1, max_size=6)
KINDS = [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar"])
@cases(200)
@given(names=HOSTILE, seed=st.integers(0, 99))
def test_names_that_lead_outside(kind: str, arena: Path, names: list[str], seed: int) -> None:
    file = arena / "archive"
    kinds = random.Random(seed).choices(KINDS, weights=[8, 1, 1, 1, 1, 1], k=6)
    file.write_bytes(zip_bytes(names) if kind == "zip" else tar_bytes(names, "w", kinds))
    with nothing_written(arena.parents[1]), suppress(ScanvitError):
        archive = open_archive(file, limits=LIMITS)
        for path, data in archive.read({member.path for member in archive.members()}):
            assert not path.startswith("/")
            assert not {"..", ""} & set(path.split("/"))
            assert b"as it was" not in data


def read_all(folder: Path) -> None:
    pack = Pack.open(folder)
    for split in SPLITS:
        assert len(pack.targets(split)) == len(pack.images(split)) == len(pack.rows(split))
        np.asarray(pack.images(split)).sum()
    pack.findings()
    pack.verify()


@pytest.mark.parametrize(
    ("name", "sealed"),
    [
        *((name, False) for name in ("dataset.json", "manifest.parquet", "train.npy", "audit.json")),
        *((name, True) for name in ("manifest.parquet", "train.npy")),
    ],
)
@cases(120)
@given(changes=CHANGES)
def test_packs(name: str, sealed: bool, small_pack: Path, arena: Path, changes: list[Change]) -> None:
    """``sealed``: again; sizes, hashes and fingerprint are made to fit, as whoever changed the file could."""
    folder = arena / "pack"
    folder.mkdir(exist_ok=True)
    for file in small_pack.iterdir():
        with suppress(FileNotFoundError):
            os.unlink(folder / file.name)
        if file.name == name:
            (folder / name).write_bytes(damage(file.read_bytes(), changes))
        else:
            (folder / file.name).symlink_to(file)
    if sealed:
        seal(folder, name)
    with nothing_written(arena.parents[1]), suppress(PackError):
        read_all(folder)


def seal(folder: Path, name: str) -> None:
    values = json.loads((folder / "dataset.json").read_bytes())
    values["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    values["fingerprint"] = fingerprint(tuple(values["class_names"]), PixelContract.from_dict(values["contract"]), values["files"])
    (folder / "dataset.json").unlink()
    (folder / "dataset.json").write_text(json.dumps(values))


LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.sampled_from(["train", "a", "0" * 64])
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6)


@cases(150)
@given(value=JSON, place=st.integers(0, 10**6))
def test_a_dataset_json_with_another_value_somewhere(small_pack: Path, arena: Path, value: Any, place: int) -> None:
    values = json.loads((small_pack / "dataset.json").read_bytes())
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(values)
    node, key = spots[place % len(spots)]
    node[key] = value
    folder = arena / "pack"
    folder.mkdir(exist_ok=True)
    for file in small_pack.iterdir():
        with suppress(FileExistsError):
            (folder / file.name).symlink_to(file)
    (folder / "dataset.json").unlink()
    (folder / "dataset.json").write_text(json.dumps(values))
    with nothing_written(arena.parents[1]), suppress(PackError):
        read_all(folder)
