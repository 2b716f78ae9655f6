"""Compose command lines are lists; engines are found, missing, or silent."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from scanvit.cluster.jobs import read_runtime_env
from scanvit.core.errors import ConfigError, EngineError, PlatformStateError, PortTakenError
from scanvit.platform import compose
from scanvit.platform.compose import Compose, command, detect, environment
from scanvit.platform.engine import engine_for
from scanvit.platform.native.engine import Native
from scanvit.platform.services import services_of
from scanvit.platform.settings import Settings, init
from scanvit.platform.state import State

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return init(tmp_path, {})[0]


@pytest.fixture
def fake_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that notes how it was called, and answers by the script beside it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "docker").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nenv > {tmp_path}/environment\n[ -f {tmp_path}/answer ] && . {tmp_path}/answer\nexit 0\n'
    )
    (programs / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/bin{os.pathsep}/usr/bin")
    return tmp_path


def test_the_overlay_of_the_accelerator_and_the_profiles_are_on_the_command_line(settings: Settings) -> None:
    words = command("docker", settings, ("mlflow", "ray"), "up", "--detach")
    assert words[:6] == ["docker", "compose", "--project-name", settings["COMPOSE_PROJECT_NAME"], "--env-file", str(settings.folder / ".env")]
    assert words[6:] == ["--file", str(DEPLOY / "compose.yaml"), "--profile", "mlflow", "--profile", "ray", "up", "--detach"]
    cuda = replace(settings, values={**settings.values, "SCANVIT_ACCELERATOR": "cuda"})
    assert command("docker", cuda, (), "ps")[6:] == ["--file", str(DEPLOY / "compose.yaml"), "--file", str(DEPLOY / "compose.cuda.yaml"), "ps"]
    assert command("podman", cuda, (), "ps")[-3:] == ["--file", str(DEPLOY / "compose.podman.yaml"), "ps"]
    assert not [secret for secret in settings.secrets() if secret in " ".join(words)]


def test_the_shell_does_not_outvote_the_file(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS", "SCANVIT_BIND"):
        monkeypatch.setenv(name, "of the shell")
    monkeypatch.setenv("DOCKER_HOST", "kept")
    assert "of the shell" not in environment(settings).values()
    assert environment(settings)["DOCKER_HOST"] == "kept"


def test_an_engine_is_found_or_the_package_is_named(fake_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert detect() == detect("docker") == "docker"
    (fake_engine / "answer").write_text('[ "$1" = info ] && exit 1')
    with pytest.raises(EngineError, match="does not answer"):
        detect()
    monkeypatch.setenv("PATH", str(fake_engine))
    with pytest.raises(EngineError, match="Neither docker compose nor podman compose") as caught:
        detect()
    assert "--native" in (caught.value.hint or "")
    with pytest.raises(EngineError, match="podman compose is not installed") as caught:
        detect("podman")
    assert "docker-compose" in (caught.value.hint or ""), "podman-compose knows too little (docs/containers.md)"


def test_a_port_that_the_engine_finds_taken_is_told_as_such(settings: Settings, fake_engine: Path) -> None:
    (fake_engine / "answer").write_text('echo "Error: Bind for 127.0.0.1:8000 failed: port is already allocated" >&2; exit 1')
    with pytest.raises(PortTakenError, match="8000"):
        Compose("docker").start(settings, ("mlflow",))


def test_an_image_that_cannot_be_fetched_is_named_before_anything_starts(settings: Settings, fake_engine: Path) -> None:
    """Compose itself would start none of the services, name no image, and the platform would be stuck with the profile."""
    model = {"services": {"mlflow": {"image": "scanvit-mlflow:1", "build": {"context": ".."}}, "grafana": {"image": "grafana/grafana:1"}}}
    pull = 'case "$*" in *" pull "*) echo "Error response from daemon: lookup registry: network is unreachable" >&2; exit 18;; esac'
    (fake_engine / "answer").write_text(f"{pull}\ncat <<'END'\n{json.dumps(model)}\nEND\n")
    with pytest.raises(EngineError, match=r"the image grafana/grafana:1: .*network is unreachable") as caught:
        Compose("docker").preflight(settings, ("mlflow", "monitoring"))
    assert "docker load" in (caught.value.hint or "")
    assert (fake_engine / "calls").read_text().splitlines()[-1].endswith("pull --quiet --policy missing grafana")


def test_an_image_that_cannot_be_built_is_told_by_what_the_build_said(settings: Settings, fake_engine: Path) -> None:
    lines = [
        "#8 11.51 ERROR: No matching distribution found for torch==2.13.0+rocm7.2",
        "#8 11.52 error: PyTorch did not come from https://download.example/whl.",
        '#8 ERROR: process "/bin/bash -c bash /install-torch" did not complete successfully: exit code: 1',
        "------",
        " > [torch 1/1] RUN bash /install-torch:",
        "11.52 error: PyTorch did not come from https://download.example/whl.",
        "------",
        'failed to solve: process "/bin/bash -c bash /install-torch" did not complete successfully: exit code: 1',
    ]
    (fake_engine / "answer").write_text("cat >&2 <<'END'\n" + "\n".join(lines) + "\nEND\nexit 17\n")
    with pytest.raises(EngineError, match=r"for the platform: error: PyTorch did not come from https://download.example/whl\.$"):
        Compose("docker").start(settings, ("ray",))


def test_jobs_from_this_machine_are_told_where_the_services_are_for_the_nodes(settings: Settings, fake_engine: Path) -> None:
    """`scanvit ray submit` sends along what client.env says, and 127.0.0.1 is another place in a container."""
    Compose("docker").start(settings, ("mlflow", "ray"))
    own = {name: value for name, value in settings.client_environment().items() if "127.0.0.1" in value and name != "RAY_API_SERVER_ADDRESS"}
    inside = read_runtime_env(settings.folder / "runtime.json")["env_vars"]
    assert inside == {"DATA_PATH": "/mnt/object", **dict.fromkeys(own, "http://store:8333"), "MLFLOW_TRACKING_URI": "http://mlflow:8000"}
    elsewhere = replace(settings, values={**settings.values, "STORE_ENDPOINT_URL": "https://s3.example.org"})
    Compose("docker").start(elsewhere, ("ray",))
    assert read_runtime_env(settings.folder / "runtime.json")["env_vars"]["AWS_ENDPOINT_URL"] == "https://s3.example.org"


def test_containers_that_ended_are_failures(settings: Settings, fake_engine: Path) -> None:
    rows = [("mlflow", "exited", 1), ("store-init", "exited", 0), ("store", "running", 0)]
    lines = [json.dumps({"Service": name, "State": state, "ExitCode": code}) for name, state, code in rows]
    (fake_engine / "answer").write_text("cat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    assert Compose("docker").failures(settings) == {"mlflow": "its container ended with exit code 1"}


def test_restarts_are_those_that_the_engine_counts(settings: Settings, fake_engine: Path) -> None:
    rows = [{"Service": name, "Name": f"scanvit-{name}-1"} for name in ("mlflow", "store")]
    lines = "\n".join(map(json.dumps, rows))
    (fake_engine / "answer").write_text(f"[ \"$1\" = inspect ] && {{ printf '2\\n0\\n'; exit 0; }}\ncat <<'END'\n{lines}\nEND\n")
    assert Compose("docker").restarts(settings) == {"mlflow": 2, "store": 0}
    assert (fake_engine / "calls").read_text().splitlines()[-1].endswith("scanvit-mlflow-1 scanvit-store-1")
    (fake_engine / "answer").write_text("")
    assert Compose("docker").restarts(settings) == {}


def test_a_missing_folder_of_images_is_told_before_containers_start(settings: Settings, tmp_path: Path) -> None:
    absent = replace(settings, values={**settings.values, "DATA_PATH": str(tmp_path / "absent")})
    with pytest.raises(ConfigError, match="DATA_PATH"):
        Compose("docker").preflight(absent, ("ray",))


def test_the_files_come_from_the_checkout_or_the_installed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert compose.deploy_folder() == DEPLOY
    package = tmp_path / "site-packages" / "scanvit"
    monkeypatch.setattr(compose, "__file__", str(package / "platform" / "compose.py"))
    with pytest.raises(EngineError, match="compose files are missing"):
        compose.deploy_folder()
    (package / "deploy").mkdir(parents=True)
    (package / "deploy" / "compose.yaml").touch()
    assert compose.deploy_folder() == package / "deploy"


def test_what_runs_one_way_is_not_started_the_other_way() -> None:
    state = State(engine="native", profiles=("mlflow",))
    assert isinstance(engine_for(state, None), Native)
    with pytest.raises(PlatformStateError, match="runs by native"):
        engine_for(state, "docker")


def test_the_same_services_run_both_ways_but_those_that_need_containers() -> None:
    profiles = ("mlflow", "ray", "jupyter", "monitoring")
    native, containers = ([s.name for s in services_of(profiles, native=native)] for native in (True, False))
    assert set(containers) - set(native) == {"ray-worker-2", "grafana"}
    assert [s.name for s in services_of(("ray",), native=False)] == ["store", "ray-head", "ray-worker-1", "ray-worker-2"]
