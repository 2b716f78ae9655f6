"""Swift behind a real Keystone, with application credentials, by rclone and by python-swiftclient."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.keystone_server import KeystoneServer

from scanvit.storage import swift_client
from scanvit.storage.rclone import find_rclone
from scanvit.storage.remote import parse_remote
from scanvit.storage.transfer import open_store, pull, push

pytestmark = pytest.mark.slow
needs_rclone = pytest.mark.skipif(find_rclone() is None, reason="rclone is not installed")
needs_swiftclient = pytest.mark.skipif(find_spec("swiftclient") is None, reason="the extra 'swift' is not installed")
every_engine = pytest.mark.parametrize("engine", [pytest.param("rclone", marks=needs_rclone), pytest.param("swiftclient", marks=needs_swiftclient)])
no_fuse = not os.access("/dev/fuse", os.R_OK | os.W_OK) or not (shutil.which("fusermount3") or shutil.which("fusermount"))


@pytest.fixture(scope="module")
def keystone(object_store: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeystoneServer]:
    server = KeystoneServer(object_store.folder, tmp_path_factory.mktemp("keystone"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def clinic(keystone: KeystoneServer) -> dict[str, str]:
    return keystone.credential("clinic")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name, size in (("train/a/1.png", 3_000_000), ("train/späte/2 50%.png", 2000), ("val/empty", 0)):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    return tmp_path / "images"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@every_engine
def test_the_commands_with_an_application_credential(clinic: dict[str, str], scanvit: Any, images: Path, tmp_path: Path, engine: str) -> None:
    place = f"swift:clinic-{engine}/2026"
    assert "3 copied, 0 there already, all checked" in scanvit("data", "push", place, "images", "--create", "--engine", engine, **clinic)
    assert f"clinic-{engine}/" in scanvit("data", "ls", "swift:", "--engine", engine, **clinic)
    assert '{"name": "train/", "size_bytes": 3002000, "objects": 2}' in scanvit("data", "ls", place, "--json", "--engine", engine, **clinic)
    assert "3 copied" in scanvit("data", "pull", place, "out", "--engine", engine, **clinic)
    assert content(tmp_path / "out") == content(images)
    assert "0 copied, 3 there already" in scanvit("data", "pull", place, "out", "--engine", engine, **clinic)


@needs_rclone
@pytest.mark.skipif(no_fuse, reason="this machine has no FUSE (/dev/fuse and fusermount3)")
def test_a_mount_with_an_application_credential(clinic: dict[str, str], scanvit: Any, images: Path, tmp_path: Path) -> None:
    push(open_store(parse_remote("swift:mounted"), clinic), images, create=True)
    scanvit("data", "mount", "swift:mounted", "object", "--daemon", "--cache", "cache", **clinic)
    try:
        assert content(tmp_path / "object") == content(images)
    finally:
        subprocess.run([shutil.which("fusermount3") or "fusermount", "-u", tmp_path / "object"], check=True)


@every_engine
def test_what_keystone_refuses_is_told(keystone: KeystoneServer, clinic: dict[str, str], scanvit: Any, engine: str) -> None:
    secret = clinic["OS_APPLICATION_CREDENTIAL_SECRET"]
    told = {
        "refused the credentials": {"OS_APPLICATION_CREDENTIAL_SECRET": f"x{secret}"},  # Keystone compares the first 72 characters
        "names no object store for region 'Elsewhere'": {"OS_REGION_NAME": "Elsewhere"},
        "No secure connection to": {"OS_AUTH_URL": clinic["OS_AUTH_URL"].replace("http:", "https:")},
    }
    for sentence, change in told.items():
        said = scanvit("data", "ls", "swift:", "--engine", engine, code=60, **clinic | change)
        assert sentence in said
        assert secret not in said
    only_reads_elsewhere = keystone.credential(f"guest-{engine}", roles=("reader",))
    assert "refused the credentials" in scanvit("data", "ls", "swift:", "--engine", engine, code=60, **only_reads_elsewhere)
    said = scanvit("-v", "data", "ls", "swift:", "--engine", engine, **clinic | {"OS_AUTH_URL": keystone.url})
    assert not [word for word in ("error", "X-Auth-Token", secret) if word in said]


@needs_rclone
@needs_swiftclient
def test_a_large_object_in_segments(clinic: dict[str, str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swift_client, "_LARGEST_BYTES", 2_000_000)
    monkeypatch.setattr(swift_client, "_SEGMENT_BYTES", 1 << 20)
    stores = {engine: open_store(parse_remote("swift:large"), clinic, engine=engine) for engine in ("swiftclient", "rclone")}
    assert push(stores["swiftclient"], images, create=True).copied == 3
    assert push(stores["swiftclient"], images).copied == 0
    assert len(open_store(parse_remote("swift:large_segments"), clinic).listing(checksums=False).objects) == 3
    for engine, store in stores.items():
        pull(store, tmp_path / engine)
        assert content(tmp_path / engine) == content(images)
        assert pull(store, tmp_path / engine).copied == 0
    with open(tmp_path / "rclone" / "train" / "a" / "1.png", "rb+") as file:
        file.write(b"other")
    assert pull(stores["swiftclient"], tmp_path / "rclone").copied == 1
    assert content(tmp_path / "rclone") == content(images)
