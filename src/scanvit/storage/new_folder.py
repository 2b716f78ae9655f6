"""Folders that nobody named: called after what they hold and the second in which they were made."""

from __future__ import annotations

import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from .atomic import storage_errors


def new_folder(parent: Path, name: str) -> Path:
    """Make PARENT/NAME-TIME, which is the caller's alone: of those who ask in the same second, all but one get a random ending."""
    folder = parent / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    with storage_errors(folder):
        parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
        folder = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:6]}")
        folder.mkdir()
        return folder
