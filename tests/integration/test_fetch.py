"""From addresses to a pack: a real server, real processes, real kills, and archives with the inner layout of the public ones."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import tarfile
import time
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from tests.file_server import FileServer, Good, Status
from tests.integration.conftest import Scanvit

from scanvit.data.pack import MANIFEST, Pack
from scanvit.data.sources import SPLITS

NINE = Path(__file__).resolve().parents[2] / "examples" / "nine_classes" / "sources.yaml"
CLASSES = {f"lung-{name}" for name in ("normal", "covid", "opacity", "viral-pneumonia", "tuberculosis", "oct-cnv", "oct-dme", "oct-drusen", "oct-normal")}
RNG = np.random.default_rng(0)


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (32, 40), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def as_zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in members.items():
            archive.writestr(path, data)
    return buffer.getvalue()


def as_tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, data in members.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def oct2017() -> dict[str, bytes]:
    """Every third patient has images in two classes, and every second one in train and in test: as in the public set."""
    classes = ("CNV", "DME", "DRUSEN", "NORMAL")
    members = {"OCT2017/.DS_Store": b"x", "OCT2017/train/CNV/._CNV-1000-1.jpeg": b"x"}
    for number in range(48):
        own = [classes[number % 4]] + ([classes[(number + 1) % 4]] if number % 3 == 0 else [])
        for name in own:
            for image in range(1, 4):
                folder = "test" if image == 3 and number % 2 else "val" if image == 3 and number % 8 == 0 else "train"
                members[f"OCT2017/{folder}/{name}/{name}-{1000 + number}-{image}.jpeg"] = picture("JPEG")
    return members


def covid19_radiography() -> dict[str, bytes]:
    root = "COVID-19_Radiography_Dataset"
    members = {f"{root}/README.md.txt": b"read me", f"{root}/COVID.metadata.xlsx": b"PK"}
    for name in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        for number in range(1, 21):
            members[f"{root}/{name}/images/{name}-{number}.png"] = picture("PNG")
            members[f"{root}/{name}/masks/{name}-{number}.png"] = picture("PNG")
    return members


def tb_chest() -> dict[str, bytes]:
    root = "TB_Chest_Radiography_Database"
    members = {f"{root}/Normal.metadata.xlsx": b"PK", f"{root}/README.md.txt": b"read me"}
    return members | {f"{root}/{name}/{name}-{number}.png": picture("PNG") for name in ("Normal", "Tuberculosis") for number in range(1, 21)}


ARCHIVES = {
    "oct2017": ("OCT2017.tar.gz", as_tar_gz(oct2017())),
    "covid19-radiography": ("covid19-radiography-database.zip", as_zip(covid19_radiography())),
    "tb-chest": ("tuberculosis-tb-chest-xray-dataset.zip", as_zip(tb_chest())),
}
ORIGINAL = {  # data set: archive, folder of extract_to
    "OCT2017": ("oct2017", "tar.gz", "OCT2017"),
    "COVID19_Radiography": ("covid19-radiography", "zip", "COVID-19_Radiography_Dataset"),
    "TB_Chest": ("tb-chest", "zip", "TB_Chest_Radiography_Database"),
}


@pytest.fixture
def catalog(file_server: FileServer, tmp_path: Path) -> Path:
    sources = {}
    for name, (file, data) in ARCHIVES.items():
        file_server.files[f"/{name}"] = data
        sources[name] = {"url": file_server.url(f"/{name}"), "file": file}
    path = tmp_path / "catalog.yaml"
    path.write_text(yaml.safe_dump({"sources": sources}))
    return path


def assert_nine_classes(path: Path) -> Pack:
    pack = Pack.open(path)
    pack.verify()
    assert set(pack.class_names) == CLASSES
    rows = pq.read_table(path / MANIFEST).to_pylist()
    classes = Counter(row["class_name"] for row in rows)
    assert {name: classes[name] for name in CLASSES if "oct" not in name} == {
        "lung-normal": 40,
        "lung-covid": 20,
        "lung-opacity": 20,
        "lung-viral-pneumonia": 20,
        "lung-tuberculosis": 20,
    }
    assert {row["source"] for row in rows if row["class_name"] == "lung-normal"} == set(pack_sources(rows)) - {"oct2017", "OCT2017"}
    assert not [row["path"] for row in rows if "/masks/" in row["path"]]
    splits, classes_of = defaultdict(set), defaultdict(set)
    for row in rows:
        splits[row["patient_id"]].add(row["split"])
        classes_of[row["patient_id"]].add(row["class_name"])
    assert not [patient for patient, names in splits.items() if len(names) > 1]
    assert sum(len(names) > 1 for names in classes_of.values()) == 16, "patients with images in two classes are one patient each"
    assert len([patient for patient in splits if patient.lower().startswith("oct2017:")]) == 48
    assert all(set(pack.counts[split]) == CLASSES for split in SPLITS)
    return pack


def pack_sources(rows: list[dict[str, str]]) -> set[str]:
    return {row["source"] for row in rows}


def test_one_command_from_the_addresses_to_the_nine_classes(scanvit: Scanvit, catalog: Path, file_server: FileServer) -> None:
    file_server.answers["/oct2017"] = [Good(cut_at=50_000), Status(503)]
    file_server.answers["/tb-chest"] = [Status(302, {"Location": "/elsewhere"})]
    file_server.files["/elsewhere"] = file_server.files["/tb-chest"]
    archives, packed = scanvit.folder / "archives", scanvit.folder / "packs" / "nine"
    out = scanvit("data", "fetch", "--catalog", catalog, "--sources", NINE, "-o", archives, "--pack", packed)
    assert "fetched" in out
    assert "0 in the quarantine" in out
    first = assert_nine_classes(packed)
    assert len(json.loads((archives / "fetch.lock.json").read_text())["files"]) == 3
    assert not list(archives.glob("*.part*"))
    asked = len(file_server.seen)
    out = scanvit("data", "fetch", "--catalog", catalog, "--sources", NINE, "-o", archives, "--offline", "--pack", scanvit.folder / "again")
    assert out.count("there already, verified") == 3
    assert len(file_server.seen) == asked
    assert Pack.open(scanvit.folder / "again").fingerprint == first.fingerprint


def test_the_original_configuration_leads_to_the_nine_classes_too(scanvit: Scanvit, catalog: Path, file_server: FileServer) -> None:
    def category(dataset: str, *paths: str, **more: bool) -> dict[str, object]:
        return more | {"sources": [{"dataset": dataset, "paths": list(paths)}]}

    categories = {
        "lung-covid": category("COVID19_Radiography", "COVID/images"),
        "lung-opacity": category("COVID19_Radiography", "Lung_Opacity/images"),
        "lung-viral-pneumonia": category("COVID19_Radiography", "Viral Pneumonia/images"),
        "lung-tuberculosis": category("TB_Chest", "Tuberculosis"),
        "lung-normal": {"sources": [{"dataset": "COVID19_Radiography", "paths": ["Normal/images"]}, {"dataset": "TB_Chest", "paths": ["Normal"]}]},
    } | {
        f"lung-oct-{name.lower()}": category("OCT2017", *(f"{f}/{name}" for f in ("train", "test", "val")), oct=True)
        for name in ("CNV", "DME", "DRUSEN", "NORMAL")
    }
    datasets = {name: {"url": file_server.url(f"/{archive}"), "archive_type": kind, "extract_to": folder} for name, (archive, kind, folder) in ORIGINAL.items()}
    config = scanvit.folder / "datasets_config.yaml"
    config.write_text(yaml.safe_dump({"datasets_info": datasets, "categories": categories}))
    scanvit("data", "fetch", *ORIGINAL, "--catalog", config, "-o", "archives")
    scanvit("data", "prepare", config, "--root", "archives", "-o", "pack")
    assert_nine_classes(scanvit.folder / "pack")


def test_a_killed_download_goes_on_where_it_was(scanvit: Scanvit, file_server: FileServer) -> None:
    data = as_zip({f"set/{number}.png": random.Random(number).randbytes(40_000) for number in range(25)})
    file_server.files["/large"] = data
    (scanvit.folder / "catalog.yaml").write_text(yaml.safe_dump({"sources": {"large": {"url": file_server.url("/large"), "file": "large.zip"}}}))
    file_server.bytes_per_s = 400_000
    command = ("data", "fetch", "large", "--catalog", "catalog.yaml", "-o", "archives")
    process = scanvit.start(*command)
    part = scanvit.folder / "archives" / "large.zip.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 200_000):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    had_bytes = part.stat().st_size
    assert had_bytes < len(data)
    assert not (scanvit.folder / "archives" / "large.zip").exists()
    file_server.bytes_per_s = None
    scanvit(*command)
    assert (scanvit.folder / "archives" / "large.zip").read_bytes() == data
    last = file_server.seen[-1]
    assert last.headers["Range"] == f"bytes={had_bytes}-"
    assert last.sent_bytes == len(data) - had_bytes


def test_without_a_network_it_says_what_to_put_where(scanvit: Scanvit, catalog: Path, file_server: FileServer) -> None:
    command = ("data", "fetch", "oct2017", "tb-chest", "--catalog", catalog, "-o", "archives", "--offline")
    out = scanvit(*command, code=4)
    assert "archives/OCT2017.tar.gz" in out
    assert file_server.url("/tb-chest") in out
    assert "2 of 2 archives are missing" in out
    for name in ("oct2017", "tb-chest"):
        file, data = ARCHIVES[name]
        (scanvit.folder / "archives" / file).write_bytes(data)
    assert scanvit(*command).count("there already, verified") == 2
    (scanvit.folder / "archives" / "OCT2017.tar.gz").write_bytes(b"another file")
    assert "were recorded" in scanvit(*command, code=63)
    assert not file_server.seen


def test_a_full_disk_ends_in_a_sentence(scanvit: Scanvit, file_server: FileServer) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small file system can be mounted by root only")
    file_server.files["/large"] = as_zip({"set/a.png": random.Random(0).randbytes(900_000)})
    (scanvit.folder / "catalog.yaml").write_text(yaml.safe_dump({"sources": {"large": {"url": file_server.url("/large"), "file": "large.zip"}}}))
    disk = scanvit.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("this machine refuses to mount a tmpfs")
    try:
        command = ("data", "fetch", "large", "--catalog", "catalog.yaml", "-o", "disk")
        assert "has no room for the" in scanvit(*command, code=61)
        file_server.answers["/large"] = [Good(chunked=True)]  # no length to know it by beforehand
        assert "No space is left" in scanvit(*command, code=61)
        assert not (disk / "large.zip").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_mistakes_end_in_a_sentence_and_their_own_code(scanvit: Scanvit, catalog: Path, file_server: FileServer) -> None:
    fetch = ("data", "fetch", "--catalog", catalog, "-o", "archives")
    assert "Did you mean 'oct2017'" in scanvit(*fetch, "oct2018", code=21)
    scanvit(*fetch, code=2)
    scanvit(*fetch, "oct2017", "--sources", NINE, code=2)
    scanvit(*fetch, "oct2017", "--pack", "pack", code=2)
    file_server.answers["/oct2017"] = [Status(404)]
    assert "is not there (404)" in scanvit(*fetch, "oct2017", code=62)
    file_server.answers["/oct2017"] = [Status(403)]
    assert "refuses access (403)" in scanvit(*fetch, "oct2017", code=62)
    out = scanvit("data", "sources")
    assert all(text in out for text in ("oct2017", "CC BY 4.0", "doi:10.", "https://data.mendeley.com/", "KAGGLE_USERNAME"))
