"""Resumable checkpoints on disk: written whole, the one before kept, read back only if every byte checks.

RUN/checkpoints/last.ckpt       newest         RUN/checkpoints/best.ckpt   lowest val_loss
RUN/checkpoints/previous.ckpt   the one before, for when the newest is damaged
"""

from __future__ import annotations

import io
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from ..core.errors import CheckpointError
from ..storage.atomic import write_bytes

log = logging.getLogger(__name__)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to disk: whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises NoSpaceError or StorageError; the checkpoint that was there stays."""
        buffer = io.BytesIO()  # first to memory: torch hides the reason when a file refuses to be written
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Raises CheckpointError for a damaged file. Never runs code from the file, whatever ``weights_only`` says."""
        check_intact(Path(path))
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def keep_previous(folder: Path) -> None:
    """Before a new ``last.ckpt``: the one that is there becomes ``previous.ckpt`` as well."""
    if (folder / "last.ckpt").exists():
        replace_by_link(folder / "last.ckpt", folder / "previous.ckpt")


def replace_by_link(source: Path, target: Path) -> None:
    """Make ``target`` another name of ``source``'s bytes, at once; a reader meets its old or its new content."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        write_bytes(temporary, source.read_bytes())
    os.replace(temporary, target)


def check_intact(path: Path) -> None:
    """Read every record of a checkpoint against its checksum. Raises CheckpointError for a truncated or altered file."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.", hint="The checkpoint before it is used where there is one.") from None
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} fails its checksum.", hint="The checkpoint before it is used where there is one.")


def newest_intact(folder: Path) -> Path | None:
    """The checkpoint to resume from: the last one, or the one before where the last is damaged. None where there is none."""
    for name in ("last.ckpt", "previous.ckpt"):
        path = folder / name
        if path.is_file():
            try:
                check_intact(path)
                return path
            except CheckpointError as error:
                log.warning("%s", error.message)
    return None
