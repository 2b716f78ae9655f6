from __future__ import annotations

import pytest

from scanvit.core.config import Experiment
from scanvit.core.errors import ConfigError, UnknownKeyError
from scanvit.core.loading import load_experiment, shipped_experiments
from scanvit.training.tuning.space import DEFAULT_SPACE, Range, apply, check_space, parse_overrides, parse_space


@pytest.mark.parametrize(
    ("text", "kind", "ends"),
    [
        ("loguniform(1e-4,1e-2)", "loguniform", (1e-4, 1e-2)),
        (" uniform( 0 , 0.2 ) ", "uniform", (0, 0.2)),
        ("int(2, 6)", "int", (2, 6)),
        ("choice(cls, mean)", "choice", ("cls", "mean")),
        ("choice([16, 32], [32, 64])", "choice", ([16, 32], [32, 64])),
        ("choice(2026-11-29, 2026-11-30)", "choice", ("2026-11-29", "2026-11-30")),
        ("choice(0, 1e-2, true)", "choice", (0, 0.01, True)),
    ],
)
def test_a_range_is_read_and_written_again(text: str, kind: str, ends: tuple[object, ...]) -> None:
    found = Range.parse("key", text)
    assert (found.kind, found.ends) == (kind, ends)
    assert Range.parse("key", str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "3e-4",
        "uniform(1)",
        "uniform(2, 1)",
        "loguniform(0, 1)",
        "int(1.5, 3)",
        "choice(a)",
        "choice(a, a)",
        "uniform([1], 2)",
        "gauss(0, 1)",
        "choice([)",
        "choice(a, 2024-02-30)",
    ],
)
def test_what_is_no_range_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        Range.parse("optimizer.lr", text)


def test_overrides_are_told_apart() -> None:
    space, fixed = parse_overrides(["optimizer.lr=loguniform(1e-4,1e-2)", "trainer.max_epochs=3"])
    assert (list(space), fixed) == (["optimizer.lr"], ["trainer.max_epochs=3"])
    with pytest.raises(UnknownKeyError, match=r"optimizer\.lr"):
        parse_overrides(["optimizer.rl=uniform(0, 1)"])


def test_a_space_file_may_be_nested_or_dotted() -> None:
    nested = parse_space({"optimizer": {"lr": "uniform(1, 2)"}}, where="space.yaml")
    assert nested == parse_space({"optimizer.lr": "uniform(1, 2)"}, where="space.yaml")
    with pytest.raises(ConfigError, match=r"space\.yaml: optimizer\.lr"):
        parse_space({"optimizer": {"lr": 0.1}}, where="space.yaml")


def test_a_space_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match=r"loss\.label_smoothing cannot be 2"):
        check_space({"loss.label_smoothing": Range.parse("", "uniform(0, 2)")}, Experiment())
    with pytest.raises(ConfigError, match=r"augment\.mixup cannot be 0\.0004"):
        check_space({"augment.mixup": Range.parse("", "uniform(0, 0.4)")}, Experiment())
    with pytest.raises(UnknownKeyError):
        check_space({"optimizer": Range.parse("", "choice(1, 2)")}, Experiment())
    with pytest.raises(ConfigError, match="seed is no part of a recipe"):
        check_space({"seed": Range.parse("", "int(0, 9)")}, Experiment())


@pytest.mark.parametrize("name", shipped_experiments())
def test_the_default_space_suits_every_shipped_experiment(name: str) -> None:
    check_space({key: Range.parse(key, text) for key, text in DEFAULT_SPACE.items()}, load_experiment(name))


def test_settings_are_applied_by_their_names() -> None:
    changed = apply(Experiment(), {"optimizer.lr": 0.5, "model.stem_widths": [8, 16]})
    assert (changed.optimizer.lr, changed.model.stem_widths) == (0.5, (8, 16))
    assert changed.trainer == Experiment().trainer
