"""Settings of a run on a cluster, and what travels to its workers."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scanvit.cluster.settings import STATE, ClusterSettings, cache_folder, load_settings, parse_resources, travelling
from scanvit.core.errors import ConfigError, RunMissingError
from scanvit.core.loading import load_experiment, shipped_experiments
from scanvit.storage.atomic import write_json


def test_resources_are_read() -> None:
    assert parse_resources("GPU=1, CPU=8,special=0.5") == {"GPU": 1.0, "CPU": 8.0, "special": 0.5}
    assert parse_resources("") == {}


@pytest.mark.parametrize("text", ["GPU", "GPU=", "=1", "GPU=-1", "GPU=nan", "GPU=inf", "GPU=a"])
def test_what_is_no_resource_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is no resource"):
        parse_resources(text)


@pytest.mark.parametrize(
    "values", [{"num_workers": 0}, {"keep": 0}, {"max_failures": -2}, {"wait_s": 0.0}, {"name": "../up"}, {"name": ""}, {"num_workers": 2, "min_workers": 3}]
)
def test_impossible_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ClusterSettings(**values)


def test_a_worker_gets_a_gpu_and_what_it_is_given_goes_before() -> None:
    assert ClusterSettings().per_worker(cpus=2) == {"CPU": 2}
    assert ClusterSettings(use_gpu=True, resources={"CPU": 8.0}).per_worker(cpus=1) == {"CPU": 8.0, "GPU": 1.0}
    assert ClusterSettings(use_gpu=True, resources={"GPU": 0.5}).per_worker(cpus=1) == {"CPU": 1, "GPU": 0.5}


@pytest.mark.parametrize(
    ("settings", "overrides", "sentence"),
    [
        (ClusterSettings(num_workers=2), ["trainer.devices=3"], "trainer.devices is 3, but on the cluster it would be 2"),
        (ClusterSettings(), ["trainer.num_nodes=2"], "trainer.num_nodes is 2, but on the cluster it would be 1"),
        (ClusterSettings(), ["trainer.accelerator=gpu"], "trainer.accelerator is gpu, but on the cluster it would be cpu"),
        (ClusterSettings(use_gpu=True), ["trainer.accelerator=cpu"], "trainer.accelerator is cpu, but on the cluster it would be gpu"),
    ],
)
def test_what_the_cluster_decides_is_not_dropped_from_the_experiment(settings: ClusterSettings, overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        settings.settle(load_experiment("tiny", overrides))
    assert re.search(r"--num-workers|--use-gpu", str(caught.value.hint))


@pytest.mark.parametrize("name", shipped_experiments())
def test_every_shipped_experiment_runs_on_a_cluster_and_again(name: str) -> None:
    settings = ClusterSettings(num_workers=2)
    settled = settings.settle(load_experiment(name))
    assert (settled.trainer.devices, settled.trainer.accelerator) == (2, "cpu")
    assert settings.settle(settled) == settled


def test_settings_are_read_back_as_they_were_noted(tmp_path: Path) -> None:
    settings = ClusterSettings(num_workers=3, resources={"CPU": 2.0}, storage="s3://ray", name="first-1")
    write_json(tmp_path / STATE, asdict(settings))
    assert load_settings(tmp_path) == settings
    with pytest.raises(RunMissingError):
        load_settings(tmp_path / "other")


def test_only_storage_and_tracking_travel() -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": "a", "MLFLOW_TRACKING_URI": "http://m", "OS_AUTH_URL": "k", "ST_KEY": "s", "HOME": "/root", "RAY_AUTH_TOKEN": "t"}
    assert set(travelling(environment)) == {"AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI", "OS_AUTH_URL", "ST_KEY"}


def test_a_relative_tracking_file_is_the_driver_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert travelling({"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}) == {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}


def test_the_cache_is_chosen_by_its_variable(tmp_path: Path) -> None:
    assert cache_folder({"SCANVIT_CACHE": str(tmp_path)}) == tmp_path
    assert cache_folder({}) == Path.home() / ".cache" / "scanvit"
