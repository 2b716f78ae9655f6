from __future__ import annotations

import io

from rich.console import Console

from scanvit.training.progress import Progress


def test_compiling_is_announced_and_its_end_told_once() -> None:
    out = io.StringIO()
    progress = Progress(show=True, console=Console(file=out, width=40))
    progress.start(steps_per_epoch=3, max_epochs=1, step=0)
    progress.compiling()
    said = out.getvalue()
    assert said.startswith("compiling the step")
    for step in range(3):
        progress.advance(step)
    assert out.getvalue().removeprefix(said).startswith("compiled, first step after")
    assert len(out.getvalue().splitlines()) == 2


def test_who_shows_nothing_says_nothing_of_compiling() -> None:
    out = io.StringIO()
    progress = Progress(show=False, console=Console(file=out))
    progress.compiling()
    progress.advance(1)
    assert out.getvalue() == ""
