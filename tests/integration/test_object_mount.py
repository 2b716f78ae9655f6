"""A real object store as a read-only folder, and the road from a bucket to a pack."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from scanvit.core.errors import StorageError
from scanvit.data.pack import Pack
from scanvit.data.sources import SPLITS
from scanvit.storage.mount import mount, unmount
from scanvit.storage.rclone import find_rclone
from scanvit.storage.remote import parse_remote

needs_rclone = pytest.mark.skipif(find_rclone() is None, reason="rclone is not installed")
no_fuse = not os.access("/dev/fuse", os.R_OK | os.W_OK) or not (shutil.which("fusermount3") or shutil.which("fusermount"))
needs_fuse = pytest.mark.skipif(no_fuse, reason="this machine has no FUSE (/dev/fuse and fusermount3)")
CLASSES = ("lung-normal", "lung-tuberculosis")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ val/ test/ final_eval/, one folder a class, as the bucket of the nine-class set is laid out."""
    folder = tmp_path_factory.mktemp("bucket")
    generator = np.random.default_rng(0)
    for split, count in zip(SPLITS, (6, 3, 4, 2), strict=True):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(generator.integers(0, 256, (24, 24), np.uint8)).save(folder / split / name / f"{name}-{split}{number}.png")
    return folder


@pytest.fixture(scope="module")
def bucket(object_store: Any, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    from scanvit.storage.transfer import open_store, push

    push(open_store(parse_remote("s3:scans"), object_store.environment()), tree, create=True)
    return "scans"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "object"
    unmount(tmp_path / "object")


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_a_pulled_bucket_is_prepared_with_its_own_splits(object_store: Any, scanvit: Any, bucket: str, tree: Path, tmp_path: Path) -> None:
    environment = object_store.environment() | {"DATA_PATH": str(tmp_path / "object")}
    assert "30 objects" in scanvit("data", "pull", f"s3:{bucket}", **environment)
    scanvit("data", "prepare", tmp_path / "object", "-o", "pack", "--image-size", "24", "--workers", "1")
    assert prepared(tmp_path / "pack") == {path.name: path.parts[-3] for path in tree.rglob("*.png")}


def prepared(pack: Path) -> dict[str, str]:
    """{file name: split}"""
    rows = Pack.open(pack).manifest.to_pylist()
    return {Path(row["path"]).name: row["split"] for row in rows}


def test_what_an_unfinished_pull_left_is_never_prepared_or_pushed(object_store: Any, scanvit: Any, bucket: str, tmp_path: Path) -> None:
    left = tmp_path / "object" / ".scanvit-transfer" / "files" / "train" / "lung-normal" / "cut.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"cut")
    assert "holds an unfinished pull" in scanvit("data", "prepare", "object", "-o", "pack", code=21)
    assert "holds an unfinished pull" in scanvit("data", "push", "s3:any", "object", code=60, **object_store.environment())
    scanvit("data", "pull", f"s3:{bucket}", "object", **object_store.environment())
    assert not left.exists()
    scanvit("data", "prepare", "object", "-o", "pack", "--image-size", "24", "--workers", "1")


@needs_rclone
@needs_fuse
@pytest.mark.parametrize("kind", ["swift", "s3"])
def test_a_mount_is_read_only_and_is_undone(object_store: Any, scanvit: Any, bucket: str, tree: Path, place: Path, kind: str) -> None:
    process = scanvit.start("data", "mount", f"{kind}:{bucket}", place, "--cache", "cache", **object_store.environment())
    assert "read-only. Ctrl-C unmounts it." in process.stdout.readline()
    files = {path.relative_to(place): path.read_bytes() for path in place.rglob("*.png")}
    assert files == {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*.png")}
    some = place / next(iter(files))
    for write in (some.unlink, (place / "new").touch, (place / "folder").mkdir, lambda: some.write_bytes(b"changed"), lambda: some.rename(place / "x")):
        with pytest.raises(OSError) as caught:
            write()
        assert caught.value.errno == errno.EROFS
    (child,) = psutil.Process(process.pid).children()
    scanvit("data", "prepare", place, "-o", "pack", "--image-size", "24", "--workers", "1")
    assert len(prepared(place.parent / "pack")) == 30
    process.send_signal(signal.SIGINT if kind == "s3" else signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 0, "the usual end of a mount is none of its failures"
    assert not os.path.ismount(place)
    assert not child.is_running()


@needs_rclone
@needs_fuse
def test_a_killed_mount_is_undone_too(object_store: Any, scanvit: Any, bucket: str, place: Path) -> None:
    process = scanvit.start("data", "mount", f"s3:{bucket}", place, "--cache", "cache", **object_store.environment())
    process.stdout.readline()
    process.kill()
    wait_for(lambda: not os.path.ismount(place))
    assert list(place.iterdir()) == []


@needs_rclone
@needs_fuse
def test_a_mount_in_the_background_stays_until_it_is_unmounted(object_store: Any, scanvit: Any, bucket: str, place: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    environment = object_store.environment() | {"XDG_RUNTIME_DIR": str(private), "DATA_PATH": str(place)}
    assert f"fusermount3 -u {place}" in scanvit("data", "mount", f"swift:{bucket}", "--daemon", "--cache", "cache", **environment)
    assert sorted(path.name for path in place.iterdir()) == sorted(SPLITS)
    assert not list(private.iterdir()), "no credentials stay behind"
    assert "is mounted at" in scanvit("data", "mount", f"swift:{bucket}", code=60, **environment)
    subprocess.run([shutil.which("fusermount3") or "fusermount", "-u", place], check=True)
    assert not os.path.ismount(place)


@needs_rclone
@needs_fuse
def test_what_cannot_be_mounted_is_told(object_store: Any, bucket: str, place: Path) -> None:
    def never() -> None:
        raise AssertionError("it is not ready")

    for remote in ("swift:nobody-made-this", f"s3:{bucket}/nothing"):
        with pytest.raises(StorageError, match="There is no "):
            mount(parse_remote(remote), place, object_store.environment(), on_ready=never)
    (place / "mine").mkdir(parents=True)
    with pytest.raises(StorageError, match="is not empty"):
        mount(parse_remote(f"s3:{bucket}"), place, object_store.environment(), on_ready=never)
    assert not os.path.ismount(place)
