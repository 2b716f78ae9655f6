"""Reading the logs of services, which may hold anything that came over the network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

_TAIL_BYTES = 1 << 20


def last_lines(path: Path, count: int, *, end: int | None = None) -> str:
    """At most ``count``, out of the last mebibyte (before the byte ``end``); "" where there is no file."""
    try:
        with open(path, "rb") as file:
            start = max(0, (path.stat().st_size if end is None else end) - _TAIL_BYTES)
            file.seek(start)
            text = file.read(-1 if end is None else end - start).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


def follow(path: Path, count: int) -> Iterator[str]:
    """The last lines, then each new one, without end."""
    position = path.stat().st_size
    yield from last_lines(path, count, end=position).splitlines()
    while True:
        size = path.stat().st_size
        if size < position:  # trimmed
            position = 0
        if size > position:
            with open(path, "rb") as file:
                file.seek(position)
                whole = file.read().rpartition(b"\n")[0]
            position += len(whole) + bool(whole)
            yield from whole.decode(errors="replace").splitlines()
        time.sleep(0.3)
