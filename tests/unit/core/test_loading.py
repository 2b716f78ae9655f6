"""Names, files and overrides become a checked experiment, or one clear error."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scanvit.core.config import Experiment
from scanvit.core.errors import ConfigError, ScanvitError, UnknownExperimentError, UnknownKeyError
from scanvit.core.loading import (
    experiment_from_dict,
    experiment_to_dict,
    experiment_to_yaml,
    flatten,
    load_experiment,
    parse_yaml,
    recorded_settings,
    shipped_experiments,
)


def test_the_defaults_are_the_reference_recipe() -> None:
    reference = load_experiment("reference")
    assert (reference.optimizer.name, reference.optimizer.lr, reference.schedule.name) == ("adam", 1e-4, "constant")
    assert (reference.trainer.per_device_batch_size, reference.trainer.max_epochs) == (32, 12)
    assert (reference.model.dim, reference.model.depth, reference.model.heads, reference.model.mlp_dim) == (64, 16, 16, 256)


def test_overrides_change_single_settings_and_read_exponents_without_a_dot() -> None:
    experiment = load_experiment("reference", ["optimizer.lr=3e-4", "trainer.max_epochs=2", "model.stem_widths=[8,8,8]", "name=mine"])
    assert experiment.optimizer.lr == 3e-4
    assert experiment.trainer.max_epochs == 2
    assert experiment.model.stem_widths == (8, 8, 8)
    assert experiment.name == "mine"


@pytest.mark.parametrize(
    ("override", "kind", "says"),
    [
        ("trainer.max_epoch=2", UnknownKeyError, "Did you mean 'trainer.max_epochs'?"),
        ("trainr.max_epochs=2", UnknownKeyError, "Did you mean 'trainer.max_epochs'?"),
        ("lr=1", UnknownKeyError, "Did you mean 'optimizer.lr'?"),
        ("trainer_.lr=1", UnknownKeyError, "Did you mean 'optimizer.lr'?"),
        ("epochs=1", UnknownKeyError, "Did you mean 'schedule.warmup_epochs' or 'trainer.max_epochs'?"),
        ("seed.x=2", UnknownKeyError, "'seed.x' is no setting"),
        ("optimizer.lr=fast", ConfigError, "optimizer.lr is 'fast'"),
        ("optimizer.betas=[0.9]", ConfigError, "optimizer.betas is [0.9]: an entry is missing."),
        ("optimizer.lr=-1", ConfigError, "optimizer.lr is -1"),
        ("optimizer.name=sgd", ConfigError, "optimizer.name is 'sgd'"),
        ("trainer.devices=many", ConfigError, "trainer.devices is 'many'"),
        ("trainer.devices=0", ConfigError, "trainer.devices is 0: input should be greater than or equal to 1, or input should be 'auto'."),
        ("trainer.devices=-1", ConfigError, "trainer.devices is -1: input should be greater than or equal to 1"),
        ("trainer.devices=true", ConfigError, "trainer.devices is True: input should be a valid integer"),
        ("trainer.threads=0", ConfigError, "trainer.threads is 0: input should be greater than or equal to 1"),
        ("trainer.threads=true", ConfigError, "trainer.threads is True: input should be a valid integer"),
        ("trainer.timeout_s=1e+15", ConfigError, "trainer.timeout_s is '1e+15': input should be less than or equal to 604800"),
        ("trainer.checkpoint_every_s=.inf", ConfigError, "trainer.checkpoint_every_s is inf: input should be a finite number"),
        ("optimizer.lr=.nan", ConfigError, "optimizer.lr is nan: input should be "),
        ("optimizer.betas=[1.5, 0.9]", ConfigError, "optimizer.betas is 1.5: input should be less than 1."),
        ("tracking.system_metrics_every_s=1.0e+12", ConfigError, "tracking.system_metrics_every_s is 1000000000000.0: input should be less than"),
        ("tracking.experiment_name=''", ConfigError, "tracking.experiment_name is ''"),
        ("augment.mixup=0.001", ConfigError, "augment.mixup is 0.001: input should be 0 (off), or 0.01 to 1000"),
        ("augment.mixup=1.0e+39", ConfigError, "augment.mixup is 1e+39: input should be 0 (off), or 0.01 to 1000"),
        ("augment.mixup=-1", ConfigError, "augment.mixup is -1: input should be 0 (off)"),
        ("trainer=3", ConfigError, "trainer is 3"),
        ("max_epochs", ConfigError, "section.key=value"),
        ("=3", ConfigError, "section.key=value"),
        ("name=../../etc", ConfigError, "name is '../../etc'"),
    ],
)
def test_a_wrong_override_is_named_with_the_remedy(override: str, kind: type[ScanvitError], says: str) -> None:
    with pytest.raises(kind) as caught:
        load_experiment("reference", [override] if override != "seed.x=2" else ["seed=1", override])
    assert says in caught.value.message
    assert caught.value.hint


def test_of_a_misspelt_section_the_sections_are_told_and_not_every_setting() -> None:
    with pytest.raises(UnknownKeyError, match=r"Did you mean 'optimizer.weight_decay'") as caught:
        load_experiment("reference", ["optimzer.weight_decay=0"])
    assert caught.value.hint == f"Settings there: {', '.join(experiment_to_dict(Experiment()))}"


def test_yaml_that_is_none_is_told_by_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^mine.yaml is not valid YAML, line 2, column 7: mapping values are not allowed here\.$"):
        parse_yaml("sources:\n  a: b: c\n", where="mine.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nname: 2024-02-30\n", "line 2, column 7: '2024-02-30' cannot be read: day is out of range for month."),
        ("a: !!bool x\n", "line 1, column 4: 'x' cannot be read"),
        ("a: {b: 1,\n b: 2}\n", "line 2, column 2: the key 'b' stands twice."),
        ("a: " + "[" * 5000, "nested too deeply"),
    ],
    ids=["date", "tag", "key", "depth"],
)
def test_what_yaml_cannot_build_is_told_by_its_place(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, where="mine.yaml")
    assert says in caught.value.message


def test_a_key_that_an_anchor_brings_may_be_set_anew() -> None:
    assert parse_yaml("a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\n", where="")["c"] == {"x": 2, "y": 3}


def test_an_override_that_is_no_yaml_is_a_text() -> None:
    assert load_experiment("reference", ["tracking.experiment_name=2026-11-31"]).tracking.experiment_name == "2026-11-31"


def test_an_unknown_experiment_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownExperimentError, match="Did you mean 'reference'") as caught:
        load_experiment("refrence")
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in shipped_experiments())


def test_a_name_that_is_too_long_for_a_file_is_no_experiment() -> None:
    with pytest.raises(UnknownExperimentError):
        load_experiment("long" * 100)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [\n", "1: 2\n", "\x00", "&a [*a]"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_experiment(str(tmp_path / "x.yaml"))


def test_an_experiment_survives_its_own_yaml(tmp_path: Path) -> None:
    experiment = load_experiment("tiny", ["optimizer.betas=[0.8, 0.95]"])
    (tmp_path / "experiment.yaml").write_text(experiment_to_yaml(experiment))
    assert load_experiment(str(tmp_path / "experiment.yaml")) == experiment


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8
    )
)
def test_any_yaml_content_is_an_experiment_or_a_config_error(values: object) -> None:
    content = yaml.safe_load(yaml.safe_dump(values))
    if isinstance(content, dict):
        with contextlib.suppress(ConfigError):
            experiment_from_dict(content)


def test_recorded_settings_are_as_they_are_in_the_file_and_else_todays(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("name: mine\ntrainer: {timeout_s: 1000000, gone: 1}\nmodel: {stem_widths: [8, 8]}\n")
    found = recorded_settings(tmp_path / "experiment.yaml")
    assert (found["name"], found["trainer.timeout_s"], found["trainer.gone"], found["model.stem_widths"]) == ("mine", 1_000_000, 1, [8, 8])
    assert found["optimizer.lr"] == Experiment().optimizer.lr


@pytest.mark.parametrize("text", ["trainer: &a\n  x: *a\n", "trainer: {x: {y: 1}}\n", "trainer: {x: [[1]]}\n", "a: &a [1]\nb: [*a, *a]\n"])
def test_recorded_settings_of_a_depth_that_none_has_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "experiment.yaml").write_text(text)
    with pytest.raises(ConfigError, match="is no value of a setting"):
        recorded_settings(tmp_path / "experiment.yaml")


def test_flatten_names_every_leaf_as_set_takes_it() -> None:
    flat = flatten(experiment_to_dict(Experiment()))
    assert flat["optimizer.lr"] == 1e-4
    assert all(not isinstance(value, dict) for value in flat.values())
