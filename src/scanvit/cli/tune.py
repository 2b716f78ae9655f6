"""``scanvit tune``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..training.tuning.results import SearchResult
    from ..training.tuning.study import TrialRow

_SHOWN = 10

_EPILOG = """\b
Examples:
  scanvit tune modern --pack packs/mine --trials 20
  scanvit tune modern --pack packs/mine -o tunes/lr --time 1h --set trainer.max_epochs=10 \\
      --set "optimizer.lr=loguniform(1e-4, 1e-2)" --set "model.pool=choice(cls, mean)"
  scanvit tune modern --pack packs/mine --space space.yaml --jobs 2
  scanvit train tunes/lr/best.yaml --pack packs/mine      the best trial's recipe, for a run of its own

Ranges: uniform(LOW, HIGH), loguniform(LOW, HIGH), int(LOW, HIGH), logint(LOW, HIGH), choice(A, B, ...).
A space file holds them as 'optimizer.lr: loguniform(1e-4, 1e-2)' lines. Without any range, the learning rate, the weight decay,
stochastic depth and label smoothing are searched.

Stopped or killed, the same command goes on: trials under way continue from their checkpoints. Test is never looked at."""


class _Time(click.ParamType):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)?", str(value).strip())
        if not match or not float(match[1]):
            self.fail(f"{value!r} is no time: write 90s, 30min, 1h or 2d.", param, ctx)
        return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}[match[2] or "s"]


@click.command(epilog=_EPILOG)
@click.argument("experiment")
@click.option("--pack", type=click.Path(path_type=Path), help="The pack to train on (scanvit data prepare makes one).")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Where the search goes.  [default: tunes/EXPERIMENT-TIME]")
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="How many to begin in all, those of an earlier try counted in.")
@click.option("--time", "time_s", type=_Time(), default=math.inf, metavar="TIME", help="Stop after this long, e.g. 45min or 1h.  [default: no limit]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Fix a setting, or search it where VALUE is a range. May be repeated.")
@click.option("--space", type=click.Path(path_type=Path), metavar="FILE", help="A YAML file of ranges; --set adds to it.")
@click.option("--metric", type=click.Choice(["val_loss", "val_accuracy"]), default="val_loss", show_default=True, help="What makes a trial better.")
@click.option("--pruner", type=click.Choice(["median", "hyperband", "none"]), default="median", show_default=True, help="Who gives up bad trials early.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Trials at a time. They share the machine.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the search; each trial trains with the experiment's own.")
def tune(
    experiment: str,
    pack: Path | None,
    out: Path | None,
    overrides: tuple[str, ...],
    space: Path | None,
    **options: Any,
) -> None:
    """Search for a recipe on a pack's train and val.

    EXPERIMENT is the name of a shipped experiment (scanvit train --list) or a YAML file: what every trial begins with.
    """
    from dataclasses import replace

    from ..core.errors import ConfigError, PackMissingError
    from ..core.loading import load_experiment, parse_yaml, read_text
    from ..data.pack import Pack
    from ..storage.new_folder import new_folder
    from ..training.tuning.space import DEFAULT_SPACE, Range, parse_overrides, parse_space

    searched, fixed = parse_overrides(overrides)
    if space is not None:
        searched = parse_space(parse_yaml(read_text(space, error=ConfigError), where=str(space)), where=str(space)) | searched
    searched = searched or {key: Range.parse(key, text) for key, text in DEFAULT_SPACE.items()}
    base = load_experiment(experiment, fixed)
    if pack is not None:
        base = replace(base, data=replace(base.data, pack=str(pack), fingerprint=None))
    if base.data.pack is None:
        raise PackMissingError("No pack is given to train on.", hint="Add --pack PACK. Make one with: scanvit data prepare SOURCES -o PACK")
    opened = Pack.open(base.data.pack)

    from ..training.tuning.search import Budget, Settings, search  # slow to import: after all that can be refused at once
    from .progress import stoppable

    out = out or new_folder(Path("tunes"), base.name)
    click.echo(f"Searching from {base.name} on {base.data.pack} into {out}")
    for key, values in searched.items():
        click.echo(f"  {key}: {values}")
    settings = Settings(metric=options["metric"], pruner=options["pruner"], seed=options["seed"])
    budget = Budget(trials=options["trials"], time_s=options["time_s"], jobs=options["jobs"])
    with stoppable(), _Bar(base.trainer.max_epochs, budget.trials) as watcher:
        try:
            result = search(base, opened, out, space=searched, settings=settings, budget=budget, watcher=watcher)
        except KeyboardInterrupt:  # or what stoppable makes of SIGTERM
            click.echo(f"Stopped: the trials under way wrote their checkpoints. The same command with -o {out} goes on.", err=True)
            raise
    show(result)


class _Bar:
    """A bar over the trials on a terminal, a line an ended trial anywhere."""

    def __init__(self, max_epochs: int, trials: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.max_epochs, self.trials = max_epochs, trials
        self.console = Console(highlight=False)
        columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn())
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("trials", total=trials, note="")

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def begun(self, number: int, params: Mapping[str, object], *, again: bool) -> None:
        self._say(f"trial {number:>3}  {'goes on:' if again else 'begins: '} {params_text(params)}")

    def epoch(self, number: int, epoch: int, value: float) -> None:
        self.bar.update(self.task, note=f"trial {number}: epoch {epoch}/{self.max_epochs}, {value:.4f}")

    def ended(self, row: TrialRow, done: int) -> None:
        from ..pages.page import count

        self.bar.update(self.task, completed=done)
        what = row.error or f"{value_text(row)} after {count(row.epochs, 'epoch')}"
        self._say(f"trial {row.number:>3}  {row.state}: {what}")

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, markup=False)


def params_text(params: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={_short(params[key])}" for key, name in short_names(params).items())


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """{setting: its last word, or all of it where two end alike}."""
    last = {key: key.rsplit(".", 1)[-1] for key in keys}
    names = list(last.values())
    return {key: name if names.count(name) == 1 else key for key, name in last.items()}


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def value_text(row: TrialRow) -> str:
    return "–" if row.value is None else f"{row.value:.4f}"


def show(result: SearchResult) -> None:
    """The best trials, where everything is, and what to type next."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    names = short_names(result.rows[0].params if result.rows else ())
    table = Table(box=None, pad_edge=False)
    for title in ("trial", result.metric, "best epoch", *names.values()):
        table.add_column(title.replace("_", " "), justify="right", overflow="fold")  # a heading breaks at a space where columns are many
    for row in result.ranked[:_SHOWN]:
        table.add_row(str(row.number), value_text(row), f"{row.best_epoch} of {row.epochs}", *(_short(row.params[key]) for key in names))
    console.print(table)
    counts = {state: sum(row.state == state for row in result.rows) for state in ("complete", "pruned", "failed", "running")}
    console.print(
        f"{len(result.rows)} trials: {', '.join(f'{count} {state}' for state, count in counts.items() if count)}. All of them: {result.folder / 'tune.json'}",
        soft_wrap=True,
    )
    if result.unfinished:
        console.print(f"Time is up. The same command with -o {result.folder} goes on.", soft_wrap=True)
    if result.best:
        console.print(f"next  scanvit train {result.folder / 'best.yaml'} --set seed=1", soft_wrap=True)
