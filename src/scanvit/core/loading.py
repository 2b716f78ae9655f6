"""From a name or a YAML file and ``--set`` overrides to a checked Experiment, and back."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError

from .config import Experiment, InferenceConfig
from .errors import ConfigError, ScanvitError, UnknownExperimentError, UnknownKeyError

_ADAPTER = TypeAdapter(Experiment)
_INFERENCE = TypeAdapter(InferenceConfig)
_UNKNOWN_KEY = {"unexpected_keyword_argument", "extra_forbidden"}


def shipped_experiments() -> dict[str, Any]:
    """Names of the experiments inside the package, each with the resource that holds it."""
    folder = resources.files("scanvit") / "experiments"
    return {p.name.removesuffix(".yaml"): p for p in sorted(folder.iterdir(), key=lambda p: p.name) if p.name.endswith(".yaml")}


def load_experiment(name_or_path: str, overrides: Sequence[str] = ()) -> Experiment:
    """Load a shipped experiment by name, or any YAML file by path, and apply ``section.key=value`` overrides.

    Raises UnknownExperimentError, UnknownKeyError or ConfigError, each naming the offending value.
    """
    shipped = shipped_experiments()
    if name_or_path in shipped:
        text = shipped[name_or_path].read_text(encoding="utf-8")
    elif os.path.isfile(name_or_path):  # pathlib would raise for a name that is too long
        text = read_text(Path(name_or_path), error=ConfigError)
    else:
        raise UnknownExperimentError(
            f"There is no experiment {name_or_path!r}.{did_you_mean(name_or_path, shipped)}",
            hint=f"Shipped experiments: {', '.join(shipped)}. Or give the path of a YAML file.",
        )
    values = parse_yaml(text, where=name_or_path)
    values.setdefault("name", Path(name_or_path).stem)
    for override in overrides:
        _apply(values, override)
    return experiment_from_dict(values, where=name_or_path)


def experiment_from_dict(values: Mapping[str, Any], *, where: str = "experiment") -> Experiment:
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        raise _explain(error.errors(), where) from None


def inference_of(record: Mapping[str, Any]) -> InferenceConfig:
    """How a network is asked, from the experiment in its checkpoint or export; one of an earlier version says nothing of it.

    Raises ConfigError.
    """
    experiment = record.get("experiment")
    try:
        return _INFERENCE.validate_python(experiment.get("inference", {}) if isinstance(experiment, Mapping) else {})
    except ValidationError as error:
        raise ConfigError("The settings of inference are damaged.", hint=str(error.errors()[0]["msg"])) from None


def recorded_settings(path: Path) -> dict[str, Any]:
    """{"section.key": value} as a run's experiment.yaml holds them, where settings of other versions and beyond today's bounds are as good as any.
    What it does not know has today's default. Raises ConfigError."""
    recorded = flatten(experiment_to_dict(Experiment()))
    for section, values in parse_yaml(read_text(path, error=ConfigError), where=str(path)).items():
        for key, value in values.items() if isinstance(values, Mapping) else [("", values)]:
            name = f"{section}.{key}" if key else section
            # No deeper than settings go: a few lines of YAML can name each other to any depth and number.
            if any(isinstance(part, (Mapping, list, tuple, set)) for part in (value if isinstance(value, list) else [value])):
                raise ConfigError(f"{path}: {str(name)[:80]} is no value of a setting.", hint="It is not the file that the run wrote.")
            recorded[name] = value
    return recorded


def experiment_to_dict(experiment: Experiment) -> dict[str, Any]:
    """Plain data only (safe for YAML, JSON and ``torch.load(weights_only=True)``)."""
    return _ADAPTER.dump_python(experiment, mode="json")


def experiment_to_yaml(experiment: Experiment) -> str:
    return yaml.safe_dump(experiment_to_dict(experiment), sort_keys=False, allow_unicode=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}: the keys that ``--set`` takes."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'WORD'?", or nothing where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def read_text(path: Path, *, error: type[ScanvitError]) -> str:
    """The file's text; an unreadable one is an error of our own tree."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path} cannot be read: {cause}.", hint="It must be a UTF-8 text file that you may read.") from None


class _Loader(yaml.SafeLoader):
    """With the place of what cannot be built, and without keys that stand twice, of which PyYAML would take the last."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as cause:  # 2024-02-30 is read as a date, !!bool x as a bool
            raise ConstructorError(None, None, f"{str(node.value)[:80]!r} cannot be read: {cause}", node.start_mark) from None

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node


def load_yaml(text: str) -> Any:
    """As ``yaml.safe_load``, but that a key may not stand twice. Raises yaml.YAMLError and nothing else."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def parse_yaml(text: str, *, where: str, error: type[ScanvitError] = ConfigError) -> dict[str, Any]:
    """A YAML document that is a mapping; anything else raises ``error``."""
    try:
        values = load_yaml(text)
    except yaml.YAMLError as cause:
        mark = getattr(cause, "problem_mark", None)  # the exception's own text shows lines of the file, and calls it "<unicode string>"
        place, problem = (f", line {mark.line + 1}, column {mark.column + 1}", cause.problem) if mark else ("", str(cause))  # type: ignore[attr-defined]
        raise error(f"{where} is not valid YAML{place}: {' '.join(problem.split())}.", hint="Mend the file.") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise error(f"{where} holds no mapping of settings.", hint="Write it as 'key: value' lines.")
    return values


def split_override(override: str) -> tuple[str, str]:
    """``section.key=value`` -> (key, value). Raises ConfigError or UnknownKeyError."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override!r} is not of the form section.key=value.", hint="For example: --set optimizer.lr=3e-4")
    known = _known_keys()
    if key not in known and not any(name.startswith(f"{key}.") for name in known):
        raise _unknown_key(key, "--set")
    return key, text


def check_key(key: str, *, where: str) -> None:
    """Raises UnknownKeyError for what is no single setting."""
    if key not in _known_keys():
        raise _unknown_key(key, where)


def _apply(values: dict[str, Any], override: str) -> None:
    key, text = split_override(override)
    *sections, leaf = key.split(".")
    for section in sections:
        if (child := values.get(section)) is None:  # missing, or "section:" with nothing behind it
            child = values[section] = {}
        if not isinstance(child, dict):
            raise _unknown_key(key, "--set")
        values = child
    try:
        values[leaf] = load_yaml(text)
    except yaml.YAMLError:
        values[leaf] = text


def _explain(errors: list[ErrorDetails], where: str) -> ConfigError:
    # A misspelt key also shows up as other errors further on, so it is told first.
    first = next((e for e in errors if e["type"] in _UNKNOWN_KEY), errors[0])
    key = _key(first)
    if first["type"] in _UNKNOWN_KEY:
        return _unknown_key(key, where)
    value = first["input"]
    shown = repr(value) if len(repr(value)) < 80 else f"a {type(value).__name__}"
    reasons = dict.fromkeys(_reason(e) for e in errors if _key(e) == key)  # several for a union of types
    return ConfigError(f"{where}: {key} is {shown}: {', or '.join(reasons)}.", hint="Mend the value, or leave the key out for its default.")


def _reason(error: ErrorDetails) -> str:
    if error["type"] == "missing":  # of a pair: pydantic says "field required"
        return "an entry is missing"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}"


def _key(error: ErrorDetails) -> str:
    """The setting that an error is about, without the steps into a union or a list that pydantic adds behind it."""
    parts = [str(part) for part in error["loc"]]
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    known = _known_keys()
    return next((prefix for prefix in prefixes if prefix in known), prefixes[0] if prefixes else "the experiment")


@cache
def _known_keys() -> frozenset[str]:
    return frozenset(flatten(experiment_to_dict(Experiment())))


def _unknown_key(key: str, where: str) -> UnknownKeyError:
    known = list(flatten(experiment_to_dict(Experiment())))
    sections = list(dict.fromkeys(k.split(".")[0] for k in known))
    section, _, leaf = key.rpartition(".")
    siblings = [k for k in known if section and k.startswith(f"{section}.")]
    elsewhere = [k for k in known if "." in k and f"_{k}".replace(".", "_").endswith(f"_{leaf}")]  # the right word in a wrong section, or in none
    meant = did_you_mean(key, siblings or elsewhere or (known if section else sections))
    if elsewhere and not siblings:
        meant = f" Did you mean {' or '.join(map(repr, elsewhere[:3]))}?"
    return UnknownKeyError(f"{where}: {key!r} is no setting.{meant}", hint=f"Settings there: {', '.join(siblings or sections)}")
