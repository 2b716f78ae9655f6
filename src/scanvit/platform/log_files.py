"""Reading the logs of services, which may hold anything that came over the network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

_TAIL_BYTES = 1 << 20


def last_lines(path: Path, count: int) -> str:
    """At most ``count``, out of the last mebibyte; "" where there is no file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


def follow(path: Path, count: int) -> Iterator[str]:
    """The last lines, then each new one, without end."""
    yield from last_lines(path, count).splitlines()
    position = path.stat().st_size
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
