"""``scanvit platform`` over a real container engine: only where DOCKER_HOST names one (tests/integration/test_containers.py says how)."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import yaml
from tests.integration.test_containers import COMPOSE, docker, engine, images, public_images, pytestmark
from tests.integration.test_platform_native import Platform, settle

from scanvit.platform.health import basic

__all__ = ["engine", "images", "public_images", "pytestmark"]  # fixtures and marks of the stack's own tests
GRAFANA = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["grafana"]["image"]


@pytest.fixture(scope="module")
def platform(images: dict[str, str], public_images: None) -> Iterator[Platform]:
    folder = Path(tempfile.mkdtemp(prefix="scanvit-platform-"))
    platform = Platform(folder / "state")
    platform("init")
    settle(platform)
    platform.edit(COMPOSE_PROJECT_NAME=folder.name)
    yield platform
    platform("down", "--volumes", "--engine", "docker")
    label = f"label=com.docker.compose.project={folder.name}"
    left = [docker(kind, "ls", *(["-a"] if kind == "container" else []), "-q", "--filter", label) for kind in ("container", "volume", "network")]
    assert left == ["", "", ""]
    shutil.rmtree(folder)


def log_run(platform: Platform) -> None:
    """A run with a metric and an artifact, by MLflow's own interface."""
    run = platform.api("api/2.0/mlflow/runs/create", {"experiment_id": "0", "run_name": "first"})["run"]["info"]["run_id"]
    platform.api("api/2.0/mlflow/runs/log-metric", {"run_id": run, "key": "loss", "value": 0.5, "timestamp": 1, "step": 1})
    url = f"{platform.settings.mlflow_url}/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/checkpoint.pth"
    urlopen(Request(url, data=b"weights", method="PUT", headers=basic(platform.settings)), timeout=60).close()


def test_up_status_backup_and_restore_are_the_same_as_without_containers(platform: Platform) -> None:
    table = platform("up")
    assert "MLFLOW_TRACKING_PASSWORD" in table
    assert not [secret for secret in platform.settings.secrets() if secret in table]
    assert {name: row["healthy"] for name, row in platform.health().items()} == {"postgres": True, "store": True, "mlflow": True}
    log_run(platform)
    before = platform.runs()
    ((_, _, _, history, content),) = before.values()
    assert (history["loss"][0]["value"], content["checkpoint.pth"]) == (0.5, b"weights")
    copy = platform.folder.parent / "backup"
    platform("backup", copy)
    platform("down", "--volumes")
    platform.edit(MLFLOW_TRACKING_PASSWORD="another" * 3)
    platform("up")
    assert platform.runs() == {}
    platform("restore", copy)
    assert platform.runs() == before
    assert "Uvicorn running" in platform("logs", "mlflow")
    assert "runs by docker" in platform("up", "--native", code=93)


def test_ray_and_the_client_that_submits_to_it_are_added_to_what_runs(platform: Platform, tmp_path: Path) -> None:
    platform.edit(DATA_PATH=str(tmp_path / "nowhere"))
    assert "which is no folder of this machine" in platform("up", "ray", code=10)
    platform.edit(DATA_PATH=str(tmp_path))
    platform("up", "ray", "ray-client")
    health = platform.health()
    assert set(health) == {"postgres", "store", "mlflow", "ray-head", "ray-worker-1", "ray-worker-2", "ray-client"}
    assert all(row["healthy"] for row in health.values())
    assert health["ray-head"]["detail"] == "Ray, 3 nodes"
    assert health["ray-client"]["detail"].startswith("Jupyter")


def test_a_run_sent_from_this_machine_is_tracked_and_stored(platform: Platform, small_pack: Path) -> None:
    images = platform.folder.parent / "images"
    shutil.copytree(small_pack, images / "pack")
    images.chmod(0o755)
    platform.edit(DATA_PATH=str(images))
    platform("up", "mlflow", "ray")
    before = platform.runs()
    options = ["--storage", "s3://ray", "--runtime-env", platform.folder / "runtime.json", "--resources-per-worker", "CPU=1", "--set", "trainer.max_epochs=1"]
    said = platform.runner("ray", "submit", "tiny", "--pack", "/mnt/object/pack", *options, "--follow", **platform.settings.client_environment())
    assert "The run is in s3://ray/" in said
    ((_, status, _, _, content),) = (run for name, run in platform.runs().items() if name not in before)
    assert (status, "checkpoint.pth" in content) == ("FINISHED", True)


def test_an_image_that_cannot_be_fetched_leaves_the_platform_as_it_was(platform: Platform) -> None:
    if not subprocess.run(["docker", "pull", "-q", GRAFANA], capture_output=True, check=False).returncode:
        pytest.skip("this machine reaches the registry")
    platform("up")
    assert f"the image {GRAFANA}" in platform("up", "monitoring", code=91)
    platform("up")
    assert "grafana" not in platform.health()


def test_a_container_that_is_gone_is_told_and_brought_back(platform: Platform) -> None:
    platform("up")
    docker("rm", "--force", f"{platform.settings['COMPOSE_PROJECT_NAME']}-postgres-1")
    assert "postgres is not healthy: does not listen" in platform("status", code=94)
    platform("up")
    assert platform.runs()
