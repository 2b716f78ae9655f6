"""What commands that copy share: a progress bar, sizes for people, and an end on SIGTERM that cleans up."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click


def size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000 or unit == "TB":
            break
        size_bytes /= 1000
    return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as an error does, so that programs are stopped, mounts undone and secrets removed."""
    from ..core.errors import PreemptedError

    def stop(number: int, frame: FrameType | None) -> None:
        raise PreemptedError(f"Stopped by {signal.Signals(number).name}.", hint="Run the same command again: it goes on where it stopped.")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def copy_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function to call with (stage, done, total): a bar on a terminal, a plain line at each tenth elsewhere. Shown on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield _PlainLines()
        return
    with Progress(TextColumn("{task.description:<9}"), BarColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn(), console=console) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, shown="")
            bar.update(tasks[stage], completed=done, total=total, shown=_progress_text(stage, done, total))

        yield show


class _PlainLines:
    def __init__(self) -> None:
        self._shown: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 10
        if tenth > self._shown.get(stage, 0):
            self._shown[stage] = tenth
            click.echo(f"{stage.lower()}: {_progress_text(stage, done, total)}", err=True)


def _progress_text(stage: str, done: int, total: int) -> str:
    return f"{size(done)} of {size(total)}" if stage == "Copying" else f"{done:,} of {total:,}"
