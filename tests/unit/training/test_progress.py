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


def test_calibrating_is_a_line_in_a_file_and_a_bar_on_a_terminal() -> None:
    said = {}
    for terminal in (False, True):
        out = io.StringIO()
        progress = Progress(show=True, console=Console(file=out, width=80, force_terminal=terminal))
        for done in (0, 40, 100):
            progress.calibrating(done, 100)
        progress.stop()
        said[terminal] = out.getvalue()
    assert said[False].splitlines() == ["calibrating: 100 images of val and train"]
    assert "100/100" in said[True]
