"""Copies to and from a real object store, by rclone, pyarrow and python-swiftclient, with deaths on both sides."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from scanvit.core.errors import NoSpaceError, StorageError
from scanvit.storage import transfer
from scanvit.storage.piecewise import PIECE_BYTES, Source
from scanvit.storage.rclone import Limits, find_rclone
from scanvit.storage.remote import Store, parse_remote
from scanvit.storage.transfer import open_store, pull, push
from scanvit.storage.workplace import WORK_FOLDER

needs_rclone = pytest.mark.skipif(find_rclone() is None, reason="rclone is not installed")
needs_swiftclient = pytest.mark.skipif(find_spec("swiftclient") is None, reason="the extra 'swift' is not installed")
WAYS = [
    *(pytest.param((kind, "rclone"), marks=needs_rclone) for kind in ("swift", "s3")),
    ("s3", "pyarrow"),
    pytest.param(("swift", "swiftclient"), marks=needs_swiftclient),
]
every_way = pytest.mark.parametrize("way", WAYS, ids="-".join)
Way = tuple[str, str]
DYING = Limits(connect_s=10, idle_s=20, tries=2, errors=1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve small files in folders, one of 3 MB, an empty one, and names that are odd but honest."""
    files = {f"train/{name}/{number}.png": 2000 + number for name in ("lung normal", "späte") for number in range(6)}
    files |= {"val/big.bin": 3_000_000, "val/empty": 0, "val/#1 50% [x] {y}; $HOME '\".png": 500, "-n": 5}
    for name, size in files.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(name).randbytes(size))
    return tmp_path / "images"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def store_for(object_store: Any, way: Way, path: str, *, port: int | None = None, limits: Limits | None = None) -> Store:
    return open_store(parse_remote(f"{way[0]}:{path}"), object_store.environment(port), engine=way[1], limits=limits)


@every_way
def test_what_was_pushed_is_pulled_and_a_second_time_nothing_moves(object_store: Any, images: Path, tmp_path: Path, way: Way) -> None:
    store = store_for(object_store, way, f"round-{'-'.join(way)}/deep/er")
    assert push(store, images, create=True).copied == 16
    again = push(store, images)
    assert (again.copied, again.copied_bytes, again.objects) == (0, 0, 16)
    seen: list[tuple[str, int, int]] = []
    first = pull(store, tmp_path / "out", progress=lambda *step: seen.append(step))
    assert (first.copied, first.size_bytes) == (16, sum(map(len, content(images).values())))
    assert content(tmp_path / "out") == content(images)
    assert ("Copying", first.size_bytes, first.size_bytes) in seen
    assert pull(store, tmp_path / "out").copied == 0
    assert not (tmp_path / "out" / WORK_FOLDER).exists()


@every_way
def test_a_changed_or_truncated_file_is_mended_and_others_stay(object_store: Any, images: Path, tmp_path: Path, way: Way) -> None:
    store, out = store_for(object_store, way, f"mend-{'-'.join(way)}"), tmp_path / "out"
    push(store, images, create=True)
    shutil.copytree(images, out)
    os.truncate(out / "val" / "big.bin", 1000)
    (out / "train" / "späte" / "3.png").write_bytes(bytes(2003))  # the same size
    (out / "mine.txt").write_text("mine")
    assert pull(store, out).copied == 2
    assert content(out) == content(images) | {"mine.txt": b"mine"}
    (images / "val" / "big.bin").write_bytes(bytes(3_000_000))
    assert push(store, images).copied == 1
    assert pull(store, out).copied == 1
    assert (out / "val" / "big.bin").read_bytes() == bytes(3_000_000)


@every_way
def test_one_object_and_one_file(object_store: Any, images: Path, tmp_path: Path, way: Way) -> None:
    push(store_for(object_store, way, f"one-{'-'.join(way)}/in"), images / "val" / "big.bin", create=True)
    assert pull(store_for(object_store, way, f"one-{'-'.join(way)}/in/big.bin"), tmp_path / "out").objects == 1
    assert content(tmp_path / "out") == {"big.bin": (images / "val" / "big.bin").read_bytes()}
    with pytest.raises(StorageError, match="is an object, and no folder"):
        push(store_for(object_store, way, f"one-{'-'.join(way)}/in/big.bin"), images)


@needs_rclone
def test_both_programs_read_what_the_other_has_written(object_store: Any, images: Path, tmp_path: Path) -> None:
    (images / "parts.bin").write_bytes(random.Random(0).randbytes(12_000_000))  # goes up in parts: no MD5 in its ETag
    for writer, reader in (("rclone", "pyarrow"), ("pyarrow", "rclone")):
        push(store_for(object_store, ("s3", writer), f"by-{writer}"), images, create=True)
        for engine in (reader, writer):
            pull(store_for(object_store, ("s3", engine), f"by-{writer}"), tmp_path / f"{writer}-{engine}")
            assert content(tmp_path / f"{writer}-{engine}") == content(images)
        assert pull(store_for(object_store, ("s3", reader), f"by-{writer}"), tmp_path / f"{writer}-{reader}").copied == 0
        assert push(store_for(object_store, ("s3", reader), f"by-{writer}"), images).copied == 0
    os.truncate(tmp_path / "rclone-pyarrow" / "parts.bin", 11_999_999)
    with open(tmp_path / "pyarrow-rclone" / "parts.bin", "rb+") as file:
        file.write(b"other")
    assert pull(store_for(object_store, ("s3", "pyarrow"), "by-rclone"), tmp_path / "rclone-pyarrow").copied == 1
    assert pull(store_for(object_store, ("s3", "rclone"), "by-pyarrow"), tmp_path / "pyarrow-rclone").copied == 1
    assert content(tmp_path / "pyarrow-rclone") == content(images)


class Proxy:
    """Between client and server; after ``limit`` bytes in either direction it calls ``at_limit`` and cuts every connection."""

    def __init__(self, port: int, limit: int, at_limit: Callable[[], None]) -> None:
        self.target, self.left, self.at_limit = port, limit, at_limit
        self.lock, self.sockets = threading.Lock(), [socket.create_server(("127.0.0.1", 0))]
        self.port = self.sockets[0].getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near = self.sockets[0].accept()[0]
                with self.lock:
                    if self.left <= 0:
                        near.close()
                        return
                    far = socket.create_connection(("127.0.0.1", self.target))
                    self.sockets += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                with self.lock:
                    before, self.left = self.left, self.left - len(data)
                    if before > 0 >= self.left:
                        self.at_limit()
                        self.close()
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for one in self.sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def dying_after(object_store: Any, size_bytes: int) -> Iterator[Proxy]:
    """The server is really stopped when so much has passed; it is back when the block ends."""
    proxy = Proxy(object_store.port, size_bytes, object_store.stop)
    try:
        yield proxy
        assert proxy.left <= 0, "it has not died"
    finally:
        proxy.close()
        with proxy.lock:  # held while the server is being stopped: a successor would fight with it for the ports
            object_store.start()


def once_it_has_recovered(command: Callable[[], Any]) -> Any:
    """Run again, as the message says. Its own parts come back one after the other: until then it says 503 or 404."""
    deadline = time.monotonic() + 300
    while True:
        try:
            return command()
        except StorageError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@every_way
def test_a_server_that_dies_while_it_is_read(object_store: Any, images: Path, tmp_path: Path, way: Way) -> None:
    path, out = f"dies-{'-'.join(way)}", tmp_path / "out"
    push(store_for(object_store, way, path), images, create=True)
    with (
        dying_after(object_store, 1_500_000) as proxy,
        pytest.raises(StorageError, match="cannot be reached, or stopped answering") as caught,
    ):
        pull(store_for(object_store, way, path, port=proxy.port, limits=DYING), out)
    assert "run the same command again" in (caught.value.hint or "")
    assert not [path for path in out.rglob("*") if path.is_file() and WORK_FOLDER not in path.parts], "something stands under its name"
    done = once_it_has_recovered(lambda: pull(store_for(object_store, way, path), out))
    assert content(out) == content(images)
    assert 1 <= done.copied <= 16


@every_way
def test_a_server_that_dies_while_it_is_written(object_store: Any, images: Path, tmp_path: Path, way: Way) -> None:
    path = f"dies-up-{'-'.join(way)}"
    push(store_for(object_store, way, path), images / "val" / "empty", create=True)
    with dying_after(object_store, 1_500_000) as proxy, pytest.raises(StorageError, match="cannot be reached, or stopped answering"):
        push(store_for(object_store, way, path, port=proxy.port, limits=DYING), images)
    once_it_has_recovered(lambda: push(store_for(object_store, way, path), images))
    once_it_has_recovered(lambda: pull(store_for(object_store, way, path), tmp_path / "out"))
    assert content(tmp_path / "out") == content(images) | {"empty": b""}


@pytest.mark.parametrize("size_bytes", [2_000_000, 14_000_000], ids=["in one piece", "in parts"])
def test_a_replacing_push_that_breaks_off_leaves_the_old_object(object_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    store, file, plain = store_for(object_store, ("s3", "pyarrow"), f"breaks-off-{size_bytes}"), tmp_path / "in" / "scan", Source.read
    file.parent.mkdir()
    file.write_bytes(random.Random(0).randbytes(size_bytes))
    push(store, file.parent, create=True)
    before = content(file.parent)
    file.write_bytes(bytes(size_bytes))

    def read(source: Source, size: int = PIECE_BYTES) -> bytes:
        if source.tell() > 0.8 * size_bytes:
            raise OSError("the disk is gone")
        return plain(source, size)

    monkeypatch.setattr(Source, "read", read)
    with pytest.raises(OSError, match="the disk is gone"):
        push(store, file.parent)
    monkeypatch.undo()
    gc.collect()
    pull(store, tmp_path / "out")
    assert content(tmp_path / "out") == before
    assert push(store, file.parent).copied == 1


@every_way
def test_each_cause_has_its_own_sentence(object_store: Any, images: Path, tmp_path: Path, way: Way) -> None:
    push(store_for(object_store, way, f"cause-{'-'.join(way)}"), images / "-n", create=True)
    quick = Limits(connect_s=1, idle_s=2, tries=1)
    wrong = object_store.environment() | {"ST_KEY": "wr0ng-s3cret", "AWS_SECRET_ACCESS_KEY": "wr0ng-s3cret"}
    with pytest.raises(StorageError, match="refused the credentials") as caught:
        pull(open_store(parse_remote(f"{way[0]}:cause-{'-'.join(way)}"), wrong, engine=way[1]), tmp_path / "out")
    assert "wr0ng" not in caught.value.message + (caught.value.hint or "")
    for path in ("nobody-made-this", "nobody-made-this/folder", f"cause-{'-'.join(way)}/nothing"):
        with pytest.raises(StorageError, match="There is no "):
            pull(store_for(object_store, way, path), tmp_path / "out")
    with pytest.raises(StorageError, match="There is no "):
        push(store_for(object_store, way, "nobody-made-this/folder"), images)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StorageError, match="cannot be reached, or stopped answering"):
        pull(store_for(object_store, way, "any", port=silent.getsockname()[1], limits=quick), tmp_path / "out")
    with pytest.raises(StorageError, match="cannot be reached, or stopped answering"):
        pull(store_for(object_store, way, "any", port=1, limits=quick), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@every_way
@pytest.mark.parametrize("name", ["../up", "a/../../b", "/etc/passwd", "a//b", "dot/./x", "line\nfeed", f"{WORK_FOLDER}/lock", "x" * 300, "Train/0.png"])
def test_a_hostile_name_is_refused_before_anything_is_written(object_store: Any, tmp_path: Path, way: Way, name: str) -> None:
    bucket = f"hostile-{abs(hash(name))}"
    object_store.put(bucket, {name: b"evil", "train/1.png": b"good"})
    with pytest.raises(StorageError, match="holds"):
        pull(store_for(object_store, way, bucket), tmp_path / "in" / "out")
    assert not list(tmp_path.iterdir())


@every_way
def test_links_are_refused_on_both_sides(object_store: Any, images: Path, tmp_path: Path, way: Way) -> None:
    store = store_for(object_store, way, f"links-{'-'.join(way)}")
    push(store, images, create=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is a link or a file, where the store has a folder"):
        pull(store, tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())
    (images / "secret").symlink_to("/etc/hostname")
    with pytest.raises(StorageError, match="is a link or a special file"):
        push(store, images)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@every_way
def test_a_full_disk(object_store: Any, images: Path, small_disk: Path, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_for(object_store, way, f"full-{'-'.join(way)}")
    push(store, images, create=True)
    with pytest.raises(NoSpaceError, match="bytes free"):
        pull(store, small_disk / "out")
    monkeypatch.setattr(transfer, "_check_space", lambda folder, needed_bytes: None)  # somebody else fills it meanwhile
    with pytest.raises(NoSpaceError, match="No space is left"):
        pull(store, small_disk / "out")


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
    return found


@needs_rclone
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_secret_and_no_process_is_left_by_a_signal(object_store: Any, scanvit: Any, tmp_path: Path, number: signal.Signals) -> None:
    secret, private = "s3cret-0f-the-test", tmp_path / "private"
    private.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        given = object_store.environment(silent.getsockname()[1]) | {"ST_KEY": secret, "XDG_RUNTIME_DIR": str(private), "TMPDIR": str(private)}
        process = scanvit.start("data", "pull", "swift:any", "out", **given)
        configuration = wait_for(lambda: list(private.rglob("rclone.conf")))[0]
        wait_for(lambda: secret in configuration.read_text())
        (child,) = wait_for(lambda: [one for one in children(process) if "rclone" in one.name()])  # before, it is still a copy of its parent
        assert (configuration.stat().st_mode & 0o777, configuration.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        psutil.process_iter.cache_clear()  # it leaves out a process whose number another one had before
        commands = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
        assert any("rclone" in command for command in commands)
        assert not any(secret in command for command in commands)
        assert secret not in " ".join(child.environ().values())
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
        assert process.returncode == {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
        assert secret not in out + err
        wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
        if number != signal.SIGKILL:
            assert not list(private.iterdir())
    scanvit("data", "ls", "swift:", **object_store.environment(), XDG_RUNTIME_DIR=str(private), TMPDIR=str(private))
    assert not list(private.iterdir()), "what a killed process left is removed by the next one"


@every_way
def test_killed_in_the_middle_and_repeated(object_store: Any, scanvit: Any, images: Path, tmp_path: Path, way: Way) -> None:
    path, out = f"kill-{'-'.join(way)}", tmp_path / "out"
    push(store_for(object_store, way, path), images, create=True)
    killed: list[subprocess.Popen[str]] = []
    proxy = Proxy(object_store.port, 1_500_000, lambda: killed[0].kill())
    killed.append(scanvit.start("data", "pull", f"{way[0]}:{path}", out, "--engine", way[1], **object_store.environment(proxy.port)))
    killed[0].communicate(timeout=300)
    assert killed[0].returncode == -9
    assert not [path for path in out.rglob("*") if path.is_file() and WORK_FOLDER not in path.parts]
    text = scanvit("data", "pull", f"{way[0]}:{path}", out, "--engine", way[1], **object_store.environment())
    assert "16 objects, 3.0 MB" in text
    assert content(out) == content(images)


@every_way
def test_two_at_once(object_store: Any, scanvit: Any, images: Path, tmp_path: Path, way: Way) -> None:
    place = f"{way[0]}:twice-{'-'.join(way)}"
    for command, folder in (("push", images), ("pull", tmp_path / "out")):
        options = ["--create"] if command == "push" else []
        both = [scanvit.start("data", command, place, folder, "--engine", way[1], *options, **object_store.environment()) for _ in range(2)]
        texts = [process.communicate(timeout=300) for process in both]
        assert [process.returncode for process in both] == [0, 0], texts
    assert content(tmp_path / "out") == content(images)
    copied = sorted(int(out.split(" copied")[0].rpartition(" ")[2]) for out, _ in texts)
    assert copied == [0, 16], "the second found what the first had brought"


@needs_rclone
def test_the_commands_tell_what_they_did(object_store: Any, scanvit: Any, images: Path) -> None:
    environment = object_store.environment()
    (images / "nothing").mkdir()
    out = scanvit("data", "push", "swift:tell/x", images, "--create", **environment)
    assert "16 objects, 3.0 MB in swift:tell/x: 16 copied, 0 there already, all checked" in out
    assert "1 empty folders are not there" in out
    assert "copying: 3.0 MB of 3.0 MB" in out
    assert '{"name": "x/", "size_bytes": 30' in scanvit("data", "ls", "swift:tell", "--json", **environment)
    assert "train/" in scanvit("data", "ls", "s3:tell/x", "--engine", "pyarrow", **environment)
    assert "tell/" in scanvit("data", "ls", "s3:", "--engine", "pyarrow", **environment)
    assert "16 copied" in scanvit("data", "pull", "swift:tell/x", **environment, DATA_PATH="here")
    assert content(images.parent / "here") == content(images)
    assert "There is no swift:tell/y." in scanvit("data", "ls", "swift:tell/y", code=60, **environment)
    missing = scanvit("data", "pull", "swift:tell/x", code=60, **dict.fromkeys(environment, ""))
    assert "OS_APPLICATION_CREDENTIAL_SECRET" in missing
    assert "ST_AUTH" in missing
