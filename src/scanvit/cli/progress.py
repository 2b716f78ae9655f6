"""Long work: how far it is, on stderr (bars on a terminal, plain lines elsewhere), and an end on SIGTERM that cleans up."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

import click

Progress = Callable[[str, int, int | None], None]
"""Called with (stage, done, total); a total that is not known is None."""


@contextmanager
def stage_progress(*, in_bytes: Callable[[str], bool] = lambda stage: False) -> Iterator[Progress]:
    """A function to tell how far a stage is: a bar each on a terminal, a plain line at each tenth elsewhere. ``in_bytes``: stages that count bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    def said(stage: str, done: int, total: int | None) -> str:
        show = size_text if in_bytes(stage) else "{:,}".format
        return show(done) + (f" of {show(total)}" if total else "")

    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield _PlainLines(said)
        return
    columns = (TextColumn("{task.description:<11}", markup=False), BarColumn(), TextColumn("{task.fields[said]}", markup=False), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, said="")
            bar.update(tasks[stage], completed=done, total=total, said=said(stage, done, total))

        yield show


def copy_progress() -> AbstractContextManager[Progress]:
    """``stage_progress`` whose stage "Copying" counts bytes."""
    return stage_progress(in_bytes=lambda stage: stage == "Copying")


class _Stopped(KeyboardInterrupt):
    """No Exception: a client library that is waiting for an answer would take that for a lost connection, and go on."""


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as an error does, so that programs are stopped, mounts undone and secrets removed."""
    from ..core.errors import PreemptedError

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except _Stopped as stopped:
        raise PreemptedError(f"Stopped by {stopped}.", hint="Run the same command again: it goes on where it stopped.") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _PlainLines:
    def __init__(self, said: Callable[[str, int, int | None], str]) -> None:
        self._said = said
        self._shown: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        step = 10 * done // total if total else done // 10**9 if total is None else 10
        if step > self._shown.get(stage, 0):
            self._shown[stage] = step
            name = stage.lower() if stage.isalpha() else stage  # a file keeps its name
            click.echo(f"{name}: {self._said(stage, done, total)}", err=True)


def size_text(size_bytes: float) -> str:
    """1234567 -> 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000 or unit == "TB":
            break
        size_bytes /= 1000
    return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 100 else f"{size_bytes:.1f} {unit}"
