"""Archives of the catalog to a folder, each with a SHA-256 that is recorded once and held to ever after.

    DIR/OCT2017.tar.gz          finished: whole, checked, recorded
    DIR/OCT2017.tar.gz.part     on its way (see storage.download)
    DIR/fetch.lock.json         {"format": 1, "files": {FILE: {"source", "address", "sha256", "bytes", "recorded"}}}

A file gets its final name only when its length and its SHA-256 are right. Where no SHA-256 is known yet, every member of the archive is read
once before one is recorded, so that a cut or damaged download cannot become the measure of later ones.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from ..core.errors import ArchiveError, ChecksumError, FetchError, StorageError
from ..storage.address import public_address
from ..storage.atomic import storage_errors, write_json
from ..storage.checksum import sha256_file
from ..storage.download import DownloadPolicy, Remote, discard, download
from .archives.open import open_archive
from .catalog import CatalogEntry

LOCK_FILE = "fetch.lock.json"
_ARCHIVE_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".npz")

Progress = Callable[[str, int, int | None], None]
"""Called with (what is being done, bytes done, bytes in all or None)."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    entry: CatalogEntry
    path: Path
    sha256: str
    size_bytes: int
    state: Literal["fetched", "there"]


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class _Record:
    source: str
    address: str
    """Without query: it may hold a token."""
    sha256: str
    bytes: int
    recorded: str
    """UTC."""


def fetch(entries: Sequence[CatalogEntry], folder: Path | str, *, policy: DownloadPolicy | None = None, progress: Progress | None = None) -> list[Fetched]:
    """Bring the entries' archives into ``folder``; what is there already is verified instead.

    Killed at any time and run again, it goes on where it stopped. Raises FetchError where one does not come through, ChecksumError where a
    file is not the recorded one, NoSpaceError, StorageError. Entries before the failing one are finished and recorded.
    """
    folder, progress = Path(folder), progress or (lambda *_: None)
    with _locked(folder):
        return [_Fetch(entry, folder, progress).run(policy or DownloadPolicy()) for entry in entries]


def look(entries: Sequence[CatalogEntry], folder: Path | str, *, progress: Progress | None = None) -> list[Fetched | None]:
    """What of the entries lies in ``folder``, verified (and recorded where it was not yet); None for a missing one. Uses no network.

    Raises ChecksumError for another file than the recorded one, FetchError for one that is no whole archive.
    """
    folder, progress = Path(folder), progress or (lambda *_: None)
    with _locked(folder):
        return [_Fetch(entry, folder, progress).verify() for entry in entries]


class _Fetch:
    """One entry, under the lock of the folder."""

    def __init__(self, entry: CatalogEntry, folder: Path, progress: Progress) -> None:
        self.entry, self.folder, self.progress = entry, folder, progress
        self.path = folder / entry.file
        self.part = folder / f"{entry.file}.part"
        self.record = _read_lock(folder).get(entry.file)
        recorded = self.record.sha256 if self.record else None
        if recorded and entry.sha256 and recorded != entry.sha256:
            raise ChecksumError(
                f"The catalog and {folder / LOCK_FILE} record two different SHA-256 of {entry.file}.",
                hint="If the catalog's is meant, move the file away and remove its entry from the lock file.",
            )
        self.sha256 = entry.sha256 or recorded

    def run(self, policy: DownloadPolicy) -> Fetched:
        if (found := self.verify()) is not None:
            return found
        resumed = self.part.exists()
        self._download(policy)
        digest = self._digest(self.part)
        if self.sha256 and digest != self.sha256:
            discard(self.part)
            if not resumed:
                raise self._mismatch(public_address(self.entry.url), digest, "The file at this address has changed: ask its publisher, or remove its entry")
            self._download(policy)  # what had come before may be what was wrong
            if (digest := self._digest(self.part)) != self.sha256:
                discard(self.part)
                raise self._mismatch(public_address(self.entry.url), digest, "The file at this address has changed: ask its publisher, or remove its entry")
        if not self.sha256:
            self._read_through(self.part, broken=lambda: discard(self.part))
        with storage_errors(self.path):
            os.replace(self.part, self.path)
            discard(self.part)
        return self._remember(digest, "fetched")

    def verify(self) -> Fetched | None:
        """The file under its final name, if it is there."""
        if not self.path.is_file():
            return None
        size_bytes = self.path.stat().st_size
        expected_bytes = self.entry.size_bytes or (self.record.bytes if self.record else None)
        if expected_bytes is not None and size_bytes != expected_bytes:
            raise ChecksumError(f"{self.path} is {size_bytes:,} bytes long; {expected_bytes:,} were recorded.", hint="Move it away and fetch it again.")
        digest = self._digest(self.path)
        if self.sha256 and digest != self.sha256:
            raise self._mismatch(str(self.path), digest, "Move it away and fetch it again; if it is the one that is meant, remove its entry")
        if not self.sha256:
            self._read_through(self.path)
        return self._remember(digest, "there")

    def _download(self, policy: DownloadPolicy) -> None:
        entry = self.entry
        remote = Remote(
            url=entry.url,
            size_bytes=entry.size_bytes or (self.record.bytes if self.record else None),
            max_bytes=entry.cap_bytes,
            authorization=entry.credentials.header() if entry.credentials else None,
            hint=_hint(entry),
        )
        download(remote, self.part, policy=policy, progress=lambda done, total: self.progress(entry.name, done, total or entry.shown_bytes))

    def _digest(self, path: Path) -> str:
        size_bytes = path.stat().st_size
        self.progress(f"checking {self.entry.name}", 0, size_bytes)
        digest = sha256_file(path)
        self.progress(f"checking {self.entry.name}", size_bytes, size_bytes)
        return digest

    def _read_through(self, path: Path, *, broken: Callable[[], None] = lambda: None) -> None:
        """Every member once, with the checksums inside the archive, against the limits of data.archives."""
        if not self.entry.file.lower().endswith(_ARCHIVE_ENDINGS):
            return
        done, size_bytes = 0, path.stat().st_size
        try:
            for _, data in open_archive(path).read(_Everything()):
                done += len(data)
                self.progress(f"reading {self.entry.name}", min(done, size_bytes), size_bytes)
        except ArchiveError as error:
            is_page = _starts_like_a_page(path)
            broken()
            what = "is a web page and no archive" if is_page else f"is no whole archive: {error.message}"
            raise FetchError(f"What came as {self.entry.file} {what}", hint=_hint(self.entry)) from None

    def _mismatch(self, what: str, digest: str, advice: str) -> ChecksumError:
        return ChecksumError(f"{what} has the SHA-256 {digest}; {self.sha256} was recorded.", hint=f"{advice} from {self.folder / LOCK_FILE}.")

    def _remember(self, digest: str, state: Literal["fetched", "there"]) -> Fetched:
        size_bytes = self.path.stat().st_size
        if self.record is None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            record = _Record(source=self.entry.name, address=public_address(self.entry.url), sha256=digest, bytes=size_bytes, recorded=now)
            files = _read_lock(self.folder) | {self.entry.file: record}
            write_json(self.folder / LOCK_FILE, {"format": 1, "files": {name: asdict(files[name]) for name in sorted(files)}})
        return Fetched(entry=self.entry, path=self.path, sha256=digest, size_bytes=size_bytes, state=state)


class _Everything:
    def __contains__(self, path: object) -> bool:
        return True


def _hint(entry: CatalogEntry) -> str:
    by_hand = f"download it by hand from {entry.page or public_address(entry.url)} and save it as {entry.file} in the folder."
    if entry.credentials and entry.credentials.header() is None:
        return f"Set {entry.credentials.user} and {entry.credentials.key} in the environment and run it again, or {by_hand}"
    if entry.credentials:
        return f"Check {entry.credentials.user} and {entry.credentials.key}, and that the terms on the page are accepted; or {by_hand}"
    return by_hand[0].upper() + by_hand[1:]


def _starts_like_a_page(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))


def _read_lock(folder: Path) -> dict[str, _Record]:
    path = folder / LOCK_FILE
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != 1:
            raise StorageError(f"{path} has the format {values['format']!r}, which this version does not read.", hint="Use the version that wrote it.")
        return {name: _Record(**record) for name, record in values["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as cause:
        raise StorageError(f"{path} cannot be read ({type(cause).__name__}).", hint="Restore it, or move it away to record the files anew.") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One fetch a folder at a time. The lock ends with the process, however that ends."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".fetch.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"Another process is fetching into {folder}.", hint="Wait for it, or give another folder.") from None
        yield
    finally:
        os.close(descriptor)
