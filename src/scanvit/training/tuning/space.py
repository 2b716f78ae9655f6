"""The search space: which settings may change, and between what.

optimizer.lr: loguniform(1e-4, 1e-2)      model.depth: int(2, 6)
loss.label_smoothing: uniform(0, 0.2)     model.pool: choice(cls, mean)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import yaml

from ...core.config import Experiment
from ...core.errors import ConfigError, ScanvitError
from ...core.loading import check_key, experiment_from_dict, experiment_to_dict, flatten, load_yaml, split_override

Kind = Literal["uniform", "loguniform", "int", "logint", "choice"]
_CALL = re.compile(r"\s*(uniform|loguniform|int|logint|choice)\s*\((.*)\)\s*", re.DOTALL)
_FORMS = "uniform(LOW, HIGH), loguniform(LOW, HIGH), int(LOW, HIGH), logint(LOW, HIGH) or choice(A, B, ...)"

DEFAULT_SPACE = {
    "optimizer.lr": "loguniform(1e-4, 5e-3)",
    "optimizer.weight_decay": "loguniform(1e-3, 0.3)",
    "model.drop_path": "uniform(0, 0.3)",
    "loss.label_smoothing": "uniform(0, 0.2)",
}
"""What is searched where nothing else is asked for: settings that every experiment has and that matter for all of them."""
_FIXED = {"name", "description", "seed", "data", "tracking"}
"""No part of a recipe. The seed above all: the best of many seeds is luck, not a recipe."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where the values of one setting come from."""

    kind: Kind
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    @classmethod
    def parse(cls, key: str, text: str) -> Range:
        """Raises ConfigError for a text of no known form, for an empty range, and for a logarithm of nothing."""
        match = _CALL.fullmatch(text)
        if not match:
            raise ConfigError(f"{key} is {text!r}, which is no range.", hint=f"Write {_FORMS}.")
        kind: Any = match[1]
        try:
            values = [_number(value) for value in load_yaml(f"[{match[2]}]")]
        except yaml.YAMLError:
            raise ConfigError(f"{key}: {text!r} cannot be read.", hint=f"Write {_FORMS}.") from None
        if kind == "choice":
            if len({json.dumps(value) for value in values}) < max(2, len(values)):
                raise ConfigError(f"{key}: {text!r} needs two different values or more.", hint=f"To set one value: --set {key}=VALUE")
            return cls(kind=kind, choices=tuple(values))
        if len(values) != 2 or not all(isinstance(v, int if kind.endswith("int") else (int, float)) and not isinstance(v, bool) for v in values):
            raise ConfigError(f"{key}: {text!r} needs two {'whole ' if kind.endswith('int') else ''}numbers.", hint=f"Write {_FORMS}.")
        low, high = values
        if low >= high or (kind.startswith("log") and low <= 0):
            raise ConfigError(f"{key}: {text!r} is an empty range.", hint="LOW must be below HIGH, and above 0 in a logarithmic one.")
        return cls(kind=kind, low=low, high=high)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that have to be right for all between them to be right."""
        return self.choices if self.kind == "choice" else (self.low, self.high)

    def __str__(self) -> str:
        values = ", ".join(json.dumps(value) for value in self.choices) if self.kind == "choice" else f"{self.low:g}, {self.high:g}"
        return f"{self.kind}({values})"


Space = dict[str, Range]
"""{setting, such as optimizer.lr: its range}."""


def is_range(text: str) -> bool:
    return _CALL.fullmatch(text) is not None


def parse_overrides(overrides: Sequence[str]) -> tuple[Space, list[str]]:
    """--set options: (those that give a range, those that fix a value)."""
    space: Space = {}
    fixed = []
    for override in overrides:
        key, text = split_override(override)
        if is_range(text):
            space[key] = Range.parse(key, text)
        else:
            fixed.append(override)
    return space, fixed


def parse_space(values: Mapping[str, Any], *, where: str) -> Space:
    """A YAML file's mapping: {setting: range}, nested by section or with dots. Raises ConfigError."""
    return {key: Range.parse(f"{where}: {key}", str(text)) for key, text in flatten(values).items()}


def check_space(space: Space, base: Experiment) -> None:
    """Raises UnknownKeyError or ConfigError for a setting that there is not, that is no part of a recipe, or that cannot take its ends."""
    for key, values in space.items():
        check_key(key, where="The search space")
        if key.split(".")[0] in _FIXED:
            raise ConfigError(
                f"{key} is no part of a recipe.", hint="Search settings of the model, the optimizer, the schedule, the loss, the augmentation or the trainer."
            )
        # 0 may be allowed for itself alone, as "off": a value beside it is looked at, too.
        for value in (*values.ends, *([values.low + (values.high - values.low) / 1000] if values.kind == "uniform" else [])):
            try:
                apply(base, {key: value})
            except ScanvitError as error:
                raise ConfigError(f"{key} cannot be {value!r}, of {values}: {error.message}", hint="Mend the range.") from None


def apply(base: Experiment, params: Mapping[str, Any]) -> Experiment:
    """The experiment with some settings changed, by their dotted names."""
    values = experiment_to_dict(base)
    for key, value in params.items():
        *sections, leaf = key.split(".")
        target = values
        for section in sections:
            target = target[section]
        target[leaf] = value
    return experiment_from_dict(values, where="The trial's settings")


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-4 for a text, and 2026-11-30 for a date, which no setting is."""
    if isinstance(value, date):
        return str(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
