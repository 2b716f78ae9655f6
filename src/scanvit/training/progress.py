"""How far a training is: one bar on a terminal, one plain line an epoch elsewhere. Only rank zero shows anything."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Counts optimizer steps. With ``show=False`` it stays silent."""

    def __init__(self, *, show: bool, console: Console | None = None) -> None:
        self.show = show
        self.console = console or Console()
        self.bar: Bar | None = None
        self._compiling_since: float | None = None

    def start(self, *, steps_per_epoch: int, max_epochs: int, step: int) -> None:
        self.max_epochs = max_epochs
        if self.show and self.console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
            self.bar = Bar(*columns, console=self.console)
            self.task = self.bar.add_task("training", total=steps_per_epoch * max_epochs, completed=step, note="")
            self.bar.start()

    def compiling(self) -> None:
        """The first step is going to take long."""
        self._compiling_since = time.monotonic()
        if self.show:
            self._print("compiling the step: up to a minute the first time; PyTorch keeps what it made for the next run")

    def advance(self, step: int) -> None:
        if self._compiling_since is not None:
            if self.show:
                self._print(f"compiled, first step after {time.monotonic() - self._compiling_since:.1f} s")
            self._compiling_since = None
        if self.bar:
            self.bar.update(self.task, completed=step)

    def rate(self, images_per_s: float, loss: float) -> None:
        if self.bar:
            self.bar.update(self.task, note=f"loss {loss:.3f}, {images_per_s:,.0f} images/s")

    def epoch(self, epoch: int, metrics: Mapping[str, float], *, best: bool) -> None:
        if self.show:
            figures = "  ".join(f"{name} {metrics[name]:.4f}" for name in ("train_loss", "val_loss", "val_accuracy"))
            line = f"epoch {epoch:>3}/{self.max_epochs}  {figures}  {metrics['images_per_s']:,.0f} images/s{'  best so far' if best else ''}"
            self._print(line)

    def calibrating(self, done: int, n: int) -> None:
        """What is fitted at the run's end: a pass over the images of val, and part of the network over those of train."""
        if self.show and self.console.is_terminal:
            if self.bar is None:
                self.bar = Bar(TextColumn("calibrating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=self.console)
                self.task = self.bar.add_task("calibrating", total=n)
                self.bar.start()
            self.bar.update(self.task, completed=done)
        elif self.show and done == 0:
            self._print(f"calibrating: {n:,} images of val and train")

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)
