"""The place where checkpoints and finished runs of a cluster are kept: a bucket of an S3 store, or a folder that all nodes share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import ConfigError
from ..storage.credentials import credentials_from
from ..storage.pyarrow_s3 import s3_filesystem
from ..storage.rclone import Limits

_log = logging.getLogger(__name__)
_HINT = "Write --storage s3://BUCKET/FOLDER, or a folder that every node of the cluster sees."
T = TypeVar("T")


@dataclass(frozen=True)
class Storage:
    """Knows its credentials, so that no node needs any of its own. Crosses process boundaries; ``repr`` shows no secret."""

    address: str
    """As the user wrote it."""
    filesystem: Any
    """pyarrow's."""
    path: str
    """On that file system, without a slash at its end."""

    def __repr__(self) -> str:
        return f"Storage({self.address!r})"

    @property
    def is_local(self) -> bool:
        return not self.address.startswith("s3:")

    def below(self, name: str) -> Storage:
        return replace(self, address=f"{self.address.rstrip('/')}/{name}", path=f"{self.path}/{name}")

    # pyarrow's file systems raise OSError for whatever goes wrong.

    def write(self, name: str, data: bytes) -> None:
        """A whole file or none: an object appears when it is complete, a local file is small."""
        with self.filesystem.open_output_stream(f"{self.path}/{name}") as file:
            file.write(data)

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as file:
            return bytes(file.read())

    def exists(self, name: str) -> bool:
        return bool(self.filesystem.get_file_info(f"{self.path}/{name}").type.value)

    def folders(self) -> list[str]:
        """Names of the folders one level below; none where there is nothing yet."""
        from pyarrow.fs import FileSelector, FileType

        infos = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == FileType.Directory)

    def upload(self, file: Path, name: str) -> None:
        from pyarrow.fs import LocalFileSystem, copy_files

        copy_files(str(file), f"{self.path}/{name}", source_filesystem=LocalFileSystem(), destination_filesystem=self.filesystem, use_threads=False)

    def download(self, name: str, file: Path) -> None:
        from pyarrow.fs import LocalFileSystem, copy_files

        file.parent.mkdir(parents=True, exist_ok=True)
        copy_files(f"{self.path}/{name}", str(file), source_filesystem=self.filesystem, destination_filesystem=LocalFileSystem(), use_threads=False)

    def make(self) -> None:
        self.filesystem.create_dir(self.path, recursive=True)

    def delete(self, name: str) -> None:
        self.filesystem.delete_file(f"{self.path}/{name}")

    def delete_folder(self) -> None:
        self.filesystem.delete_dir(self.path)


def open_storage(address: str, environment: Mapping[str, str], *, limits: Limits | None = None) -> Storage:
    """``s3://BUCKET[/FOLDER]`` or a folder. Touches nothing yet. Raises ConfigError, and StorageError where credentials are missing."""
    from pyarrow.fs import LocalFileSystem

    scheme, separator, rest = address.partition("://")
    if not separator:
        return Storage(str(Path(address).expanduser().resolve()), LocalFileSystem(), str(Path(address).expanduser().resolve()))
    if scheme == "file":
        return open_storage(f"/{rest.lstrip('/')}", environment)
    path = rest.strip("/")
    if scheme != "s3" or not path or "?" in path or "@" in path or any(part in ("", ".", "..") for part in path.split("/")):
        shown = address.partition("?")[0].rpartition("@")[2]
        raise ConfigError(f"{shown!r} is no storage that a cluster can use.", hint=f"{_HINT} Its credentials come from the environment.")
    return Storage(f"s3://{path}", s3_filesystem(credentials_from(environment, "s3"), limits=limits), path)


def insist(action: Callable[[], T], *, what: str, for_s: float = 600.0) -> T:
    """Do it, again and again while the storage is away, for at most ``for_s`` seconds: an outage must not cost a worker."""
    began, wait_s = time.monotonic(), 1.0
    while True:
        try:
            return action()
        except OSError as error:
            if time.monotonic() - began > for_s or isinstance(error, PermissionError | FileNotFoundError):
                raise
            _log.warning("%s failed (%s): trying again in %.0f s.", what, " ".join(str(error).split())[:200], wait_s)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 15.0)
