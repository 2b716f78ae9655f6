"""What the driver shows: on a terminal a bar over a table of the workers, elsewhere a plain line for each thing that happens."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from .board import Snapshot, WorkerState


def plain_console() -> Console:
    return Console(highlight=False, markup=False, soft_wrap=True)


def say(text: str) -> None:
    """Before there is anything to show."""
    plain_console().print(text)


class Terminal:
    def __init__(self, console: Console | None = None) -> None:
        self.console = console or plain_console()
        self.live: Live | None = None
        self.bar = Bar(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=self.console
        )
        self.task = self.bar.add_task("training", total=None, note="")
        if self.console.is_terminal:
            self.live = Live(Group(self.bar), console=self.console, refresh_per_second=4)
            self.live.start()

    def line(self, text: str) -> None:
        self.console.print(text)

    def show(self, snapshot: Snapshot) -> None:
        for text in snapshot.news:
            self.line(text)
        for epoch in snapshot.epochs:
            self.line(epoch_line(epoch, max_epochs=snapshot.plan["max_epochs"] if snapshot.plan else 0))
        if self.live:
            first = snapshot.workers.get(0)
            if first and snapshot.plan:
                total = snapshot.plan["steps_per_epoch"] * snapshot.plan["max_epochs"]
                self.bar.update(self.task, total=total, completed=first.step, note=f"{first.images_per_s:,.0f} images/s")
            self.live.update(Group(self.bar, workers_table(list(snapshot.workers.values()))))

    def close(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None


def epoch_line(epoch: dict[str, Any], *, max_epochs: int) -> str:
    metrics = epoch["metrics"]
    figures = "  ".join(f"{name} {metrics[name]:.4f}" for name in ("train_loss", "val_loss", "val_accuracy"))
    return f"epoch {epoch['epoch']:>3}/{max_epochs}  {figures}  {metrics['images_per_s']:,.0f} images/s{'  best so far' if epoch['best'] else ''}"


def workers_table(workers: list[WorkerState]) -> Table:
    table = Table("worker", "node", "process", "state", "step", "loss", "images/s of all", box=None, pad_edge=False)
    for worker in sorted(workers, key=lambda worker: worker.rank):
        loss = "" if worker.loss is None else f"{worker.loss:.3f}"
        speed = f"{worker.images_per_s:,.0f}" if worker.images_per_s else ""
        table.add_row(str(worker.rank), worker.node, str(worker.pid), worker.state, f"{worker.step:,}", loss, speed)
    return table
