"""Image files by name: of folders, patterns and lists, one after the other. A million of them take no more memory than one folder's names."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .selection import IMAGE_ENDINGS, may_be_dicom

_MAGIC = frozenset("*?[")
_DICOM_MARK_AT = 128


def expand(given: Iterable[str]) -> Iterator[str]:
    """The files that each of the given paths means, in the order given.

    A folder: the images in it and below, sorted: those with an ending of images, and DICOM files without any. A pattern (``*``, ``?``, ``[...]``,
    and ``**`` for folders of any depth): what fits, sorted, folders among it opened. Anything else is itself, whether it exists or not.
    """
    for path in given:
        if os.path.isdir(path):
            yield from _in_folder(path)
        elif _MAGIC & set(path) and not os.path.lexists(path):
            yield from _fitting(path)
        else:
            yield path


def _fitting(pattern: str) -> Iterator[str]:
    *folders, name = Path(pattern).parts
    found = False
    for path in _match("", [*folders, name]):
        found = True
        yield from _in_folder(path) if os.path.isdir(path) else (path,)
    if not found:
        yield pattern  # said to be missing, in its place


def _match(base: str, parts: list[str]) -> Iterator[str]:
    if not parts:
        yield base
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        yield from _match(base, rest or ["*"])
        for entry in _entries(base or "."):
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _match(os.path.join(base, entry.name), parts)
    elif _MAGIC & set(first):
        for entry in _entries(base or "."):
            if fnmatch.fnmatchcase(entry.name, first) and entry.name.startswith(".") <= first.startswith(".") and (not rest or entry.is_dir()):
                yield from _match(os.path.join(base, entry.name), rest)
    elif os.path.lexists(path := os.path.join(base, first)):
        yield from _match(path, rest)


def _in_folder(folder: str) -> Iterator[str]:
    for entry in _entries(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _in_folder(entry.path)
        elif _is_image(entry):
            yield entry.path


def _is_image(entry: os.DirEntry[str]) -> bool:
    if entry.name.lower().endswith(IMAGE_ENDINGS):
        return True
    if not may_be_dicom(entry.name):
        return False
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as file:
            file.seek(_DICOM_MARK_AT)
            return file.read(4) == b"DICM"
    except OSError:
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Of a folder that cannot be read, none."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:
        return []
