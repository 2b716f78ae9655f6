"""The search's memory: Optuna's study in a journal file, which outlives any kill of the process that writes it."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...core.runtime import derive_seed
from .space import Range, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.trial import Trial

JOURNAL = "study.journal"
Metric = Literal["val_loss", "val_accuracy"]
Pruner = Literal["median", "hyperband", "none"]
Ending = Literal["complete", "pruned", "failed"]
_STARTUP_TRIALS = 8
"""Drawn at random before the sampler has something to learn from."""
_MEDIAN_OF = 4
"""Trials that must have come to their end before one is stopped for being worse than their median."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial, as the results tell it."""

    number: int
    state: str
    """running, complete, pruned or failed."""
    params: dict[str, Any]
    """{setting: value}."""
    value: float | None
    """The metric of the weights that the trial keeps: at its epoch of lowest val_loss. Of a pruned one: where it stood."""
    epochs: int
    best_epoch: int | None
    time_s: float | None
    error: str | None = None


class Study:
    """One search. Only one process may have it open; the search's lock sees to that."""

    def __init__(self, folder: Path, space: Space, *, metric: Metric, pruner: Pruner, seed: int, max_epochs: int) -> None:
        with _quiet():
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            self.space, self.metric, self.seed = space, metric, seed
            path = folder / JOURNAL
            _drop_half_line(path)
            storage = JournalStorage(JournalFileBackend(str(path), lock_obj=_NoLock()))  # type: ignore[arg-type]
            direction: Literal["minimize", "maximize"] = "minimize" if metric == "val_loss" else "maximize"
            made = _pruner(pruner, max_epochs)
            self._study = optuna.create_study(storage=storage, study_name="search", direction=direction, pruner=made, load_if_exists=True)
            self._distributions = {key: _distribution(values) for key, values in space.items()}

    def __len__(self) -> int:
        return len(self._study.get_trials(deepcopy=False))

    def unfinished(self) -> list[int]:
        """Numbers of the trials that a killed search left under way."""
        return [trial.number for trial in self._study.get_trials(deepcopy=False) if not trial.state.is_finished()]

    def ask(self) -> int:
        """A new trial: its number. What it tries follows from the seed, its number and the trials before it, not from how often we were killed."""
        import optuna

        with _quiet():
            seed = derive_seed("trial", self.seed, len(self)) % 2**32
            self._study.sampler = optuna.samplers.TPESampler(n_startup_trials=_STARTUP_TRIALS, multivariate=True, seed=seed)
            return int(self._study.ask(self._distributions).number)

    def params(self, number: int) -> dict[str, Any]:
        """{setting: value} of a trial."""
        trial = self._trial(number)
        with _quiet():  # what a kill cut off between two of them is drawn now
            drawn = {key: trial._suggest(key, distribution) for key, distribution in self._distributions.items()}
        return {key: _value(self.space[key], value) for key, value in drawn.items()}

    def report(self, number: int, *, epoch: int, value: float) -> bool:
        """Take an epoch's figure, and say whether to give the trial up. An epoch that was reported before changes nothing."""
        trial = self._trial(number)
        with _quiet():
            if epoch not in self._frozen(number).intermediate_values:
                trial.report(value, epoch)
            return bool(self._study.pruner.prune(self._study, self._frozen(number)))

    def end(
        self,
        number: int,
        how: Ending,
        *,
        value: float | None = None,
        error: str | None = None,
        best_epoch: int | None = None,
        time_s: float | None = None,
    ) -> None:
        """Close a trial. A value that is no number makes it a failed one."""
        from optuna.trial import TrialState

        trial = self._trial(number)
        if how == "complete" and (value is None or not math.isfinite(value)):
            how, error = "failed", error or f"Its {self.metric} is no number: training diverged."
        shown = value if value is not None and math.isfinite(value) else None
        for name, note in {"value": shown, "error": error, "best_epoch": best_epoch, "time_s": time_s}.items():
            trial.set_user_attr(name, note)
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[how]
        with _quiet():
            self._study.tell(number, value if how == "complete" else None, state=state)

    def rows(self) -> list[TrialRow]:
        names = {"RUNNING": "running", "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        return [
            TrialRow(
                number=trial.number,
                state=names.get(trial.state.name, "running"),
                params={key: _value(self.space[key], value) for key, value in trial.params.items()},
                value=trial.user_attrs.get("value"),
                epochs=max(trial.intermediate_values, default=0),
                best_epoch=trial.user_attrs.get("best_epoch"),
                time_s=trial.user_attrs.get("time_s"),
                error=trial.user_attrs.get("error"),
            )
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def ranked(self) -> list[TrialRow]:
        """The trials that came to their end, best first."""
        sign = 1 if self.metric == "val_loss" else -1
        return sorted((row for row in self.rows() if row.state == "complete"), key=lambda row: (sign * float(row.value or 0), row.number))

    def _trial(self, number: int) -> Trial:
        from optuna.trial import Trial

        return Trial(self._study, self._frozen(number)._trial_id)

    def _frozen(self, number: int) -> Any:
        return self._study.get_trials(deepcopy=False)[number]


def _pruner(name: Pruner, max_epochs: int) -> BasePruner:
    import optuna

    if name == "median":
        # While the learning rate rises and the average of the weights settles, an epoch's figure is mostly noise (docs/experiments.md).
        return optuna.pruners.MedianPruner(n_startup_trials=_MEDIAN_OF, n_warmup_steps=max(2, max_epochs // 3) + 1)  # counted from 0, epochs from 1
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, max_epochs // 5), max_resource=max_epochs, reduction_factor=3)
    return optuna.pruners.NopPruner()


def _distribution(values: Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if values.kind == "choice":  # lists are none of Optuna's values
        return CategoricalDistribution([json.dumps(value) for value in values.choices])
    log = values.kind.startswith("log")
    if values.kind.endswith("int"):
        return IntDistribution(int(values.low), int(values.high), log=log)
    return FloatDistribution(values.low, values.high, log=log)


def _value(values: Range, drawn: Any) -> Any:
    return json.loads(drawn) if values.kind == "choice" else drawn


class _NoLock:
    """The search's folder is locked already, and that lock goes with the process: one in a file would outlive a kill."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def _drop_half_line(path: Path) -> None:
    """What a kill left of a line that was being written. It was not acted upon yet."""
    if path.is_file():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says on the terminal what our own table says, and warns of parts that it calls experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        yield
