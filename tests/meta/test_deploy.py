"""The container file, the compose files and what they carry. No engine is needed; what a tool is missing for is skipped with the reason."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
OVERLAYS = [DEPLOY / "compose.cuda.yaml", DEPLOY / "compose.rocm.yaml"]
PODMAN = DEPLOY / "compose.podman.yaml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
SECRETS = {
    "POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "RAY_AUTH_TOKEN", "GRAFANA_ADMIN_PASSWORD", "JUPYTER_TOKEN",
}  # fmt: skip
PUBLISHED = {
    "postgres": {"POSTGRES_PORT:-5432": 5432}, "store": {"STORE_PORT:-9000": 8333}, "mlflow": {"MLFLOW_PORT:-8000": 8000},
    "ray-head": {"RAY_PORT:-6379": 6379, "RAY_DASHBOARD_PORT:-8265": 8265}, "jupyter": {"JUPYTER_PORT:-8888": 8888},
    "ray-client": {"RAY_CLIENT_PORT:-8889": 8888}, "prometheus": {"PROMETHEUS_PORT:-9090": 9090}, "grafana": {"GRAFANA_PORT:-3000": 3000},
}  # fmt: skip
RUN_ONCE = {"store-init"}


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]


def tool(name: str) -> str:
    """A program of this environment or of the machine; skips where there is none."""
    beside = Path(sys.executable).with_name(name)
    if path := str(beside) if beside.exists() else shutil.which(name):
        return path
    pytest.skip(f"{name} is not installed")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=environment or None)


def environment_file(folder: Path, **values: str) -> Path:
    path = folder / ".env"
    settings = {name: f"a-{name.lower()}" for name in SECRETS} | {"DATA_PATH": "/mnt/object"} | values
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8")
    return path


def test_the_compose_files_follow_the_schema() -> None:
    result = run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *map(str, [COMPOSE, *OVERLAYS]))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def compose() -> list[str]:
    docker = tool("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin")
    return [docker, "compose"]


def test_podman_is_asked_for_nothing_that_it_does_not_know(services: dict[str, dict[str, Any]]) -> None:
    """Its interface refuses a container with a start_interval. The tag that takes it away is compose's own, which no schema knows."""
    taken_away = re.findall(r"^  ([\w-]+): \{ healthcheck: \{ start_interval: !reset null, interval: \w+ \} \}$", PODMAN.read_text(encoding="utf-8"), re.M)
    assert set(taken_away) == {name for name, service in services.items() if "healthcheck" in service}


@pytest.mark.parametrize("podman", [False, True], ids=["docker", "podman"])
@pytest.mark.parametrize("overlay", [None, *OVERLAYS], ids=["cpu", "cuda", "rocm"])
def test_compose_reads_each_combination(overlay: Path | None, podman: bool, compose: list[str], tmp_path: Path) -> None:
    files = [word for path in (COMPOSE, overlay, PODMAN if podman else None) if path for word in ("-f", str(path))]
    result = subprocess.run(
        [*compose, "--env-file", str(environment_file(tmp_path)), *files, "--profile", "*", "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    resolved = json.loads(result.stdout)["services"]
    assert {port["host_ip"] for service in resolved.values() for port in service.get("ports", [])} == {"127.0.0.1"}
    assert any("start_interval" in service.get("healthcheck", {}) for service in resolved.values()) is not podman
    if overlay:
        workers = [json.dumps(resolved[f"ray-worker-{n}"], sort_keys=True) for n in (1, 2)]
        assert [f for f in ('"device_ids": ["0"]', "/dev/dri/renderD128") if f in workers[0]]
        assert [f for f in ('"device_ids": ["1"]', "/dev/dri/renderD129") if f in workers[1]]
        assert "ROCR_VISIBLE_DEVICES" not in "".join(workers), "Ray refuses it"


def test_without_secrets_compose_names_the_remedy(compose: list[str], tmp_path: Path) -> None:
    empty = tmp_path / ".env"
    empty.write_text("", encoding="utf-8")
    result = subprocess.run([*compose, "--env-file", str(empty), "-f", str(COMPOSE), "config", "-q"], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "scanvit platform init" in result.stderr


def test_no_secret_has_a_default_or_a_place_on_a_command_line(services: dict[str, dict[str, Any]]) -> None:
    text = COMPOSE.read_text(encoding="utf-8") + "".join(path.read_text(encoding="utf-8") for path in OVERLAYS)
    used = set()
    for name, rest in re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", text):
        if name in SECRETS or re.search(r"PASSWORD|SECRET|TOKEN", name):
            used.add(name)
            assert re.fullmatch(r":\?run `scanvit platform init`, which writes \.env", rest), name
    assert used == SECRETS
    for name, service in services.items():
        words = json.dumps([service.get("command", ""), service.get("entrypoint", "")])
        assert not re.search("|".join(SECRETS), words), name


def test_every_port_is_published_on_the_bind_address_alone(services: dict[str, dict[str, Any]]) -> None:
    found = {}
    for name, service in services.items():
        for port in service.get("ports", []):
            match = re.fullmatch(r"\$\{SCANVIT_BIND:-127\.0\.0\.1\}:\$\{(\w+:-\d+)\}:(\d+)", port)
            assert match, f"{name}: {port}"
            found.setdefault(name, {})[match[1]] = int(match[2])
        assert "network_mode" not in service
    assert found == PUBLISHED


def test_every_service_is_checked_limited_restarted_and_confined(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service.get("profiles"), name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"], name
        assert service["logging"]["options"]["max-size"], name
        assert "privileged" not in service
        assert set(service.get("cap_add", [])) <= {"CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"}
        if name in RUN_ONCE:
            assert service["restart"] == "no"
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name


def test_a_service_waits_for_the_health_of_what_it_needs(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] == ("service_completed_successfully" if other in RUN_ONCE else "service_healthy"), name
            assert set(service["profiles"]) <= set(services[other]["profiles"]), f"{name} needs {other}, which its profile does not start"


def test_every_image_is_pinned(services: dict[str, dict[str, Any]]) -> None:
    from scanvit import __version__

    for name, service in services.items():
        image = service["image"]
        if "build" in service or image.startswith("scanvit-"):
            assert re.fullmatch(rf"scanvit-\w+:\$\{{SCANVIT_VERSION:-{re.escape(__version__)}\}}(-cpu|-\$\{{SCANVIT_ACCELERATOR:-cpu\}})?", image), name
        else:
            assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-\w+)?", image), name
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^ARG VERSION=(.+)$", text, flags=re.MULTILINE)) == {__version__}
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+-slim-\w+$", text, flags=re.MULTILINE)


def test_the_container_file_passes_hadolint() -> None:
    result = run(tool("hadolint"), "deploy/Containerfile")
    assert result.returncode == 0, result.stdout


def test_images_run_without_root_install_by_hash_and_need_no_remote_frontend() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    for target in ("train", "jupyter", "ray", "mlflow"):
        assert re.search(r"^USER 1000:1000$", stages[target], flags=re.MULTILINE), target
        assert "HEALTHCHECK" not in stages[target], "each service has its own"
    installs = re.findall(r"pip --python \S+ install (.*)", text)
    assert installs
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    assert "# syntax=" not in text, "would be fetched at each build"
    # Each lock by itself: a change of one must not rebuild the images of the others.
    assert set(re.findall(r"source=requirements/([\w-]+)\.txt", text)) == {"build", "train", "ray", "jupyter", "mlflow", "torch-cpu", "torch-cuda"}
    assert "source=requirements," not in text


def test_the_scripts_of_the_images_pass_shellcheck() -> None:
    scripts = [
        path
        for path in [*(DEPLOY / "images").iterdir(), *(REPOSITORY / "tests" / "containers").glob("*/start")]
        if path.read_text().startswith("#!/usr/bin/env bash")
    ]
    assert len(scripts) > 4
    result = run(tool("shellcheck"), *map(str, scripts))
    assert result.returncode == 0, result.stdout
    assert all("\nset -euo pipefail\n" in path.read_text() and path.stat().st_mode & 0o111 for path in scripts)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole_and_asks_for_known_metrics(dashboard: Path) -> None:
    content = json.loads(dashboard.read_text(encoding="utf-8"))
    assert content["uid"].startswith("scanvit-")
    assert len({panel["id"] for panel in content["panels"]}) == len(content["panels"])
    recorded = "".join((REPOSITORY / "tests" / "containers" / f"{name}.metrics").read_text(encoding="utf-8") for name in ("ray", "scanvit"))
    known = set(re.findall(r"^(\w+)[{ ]", recorded, flags=re.MULTILINE)) | {"up"}
    for panel in content["panels"]:
        assert panel["datasource"] == {"type": "prometheus", "uid": "prometheus"}
        for target in panel["targets"]:
            names = set(re.findall(r"\b((?:ray|scanvit)_\w+|up)\b(?=\s*(?:[{)*/+>-]|$))", target["expr"]))
            assert names & known
            assert {n for n in names if not re.search(rf"by \([^)]*\b{n}\b", target["expr"])} <= known


def test_scanvit_gives_the_metrics_that_the_dashboards_ask_for() -> None:
    monitoring = pytest.importorskip("scanvit.training.monitoring", reason="this version serves no metrics")
    source = Path(monitoring.__file__).read_text(encoding="utf-8")
    asked = {name for path in DASHBOARDS for name in re.findall(r"\bscanvit_[a-z_]+", path.read_text(encoding="utf-8"))}
    assert asked
    assert not {name for name in asked if name not in source}


def test_grafana_finds_its_source_and_its_dashboards(services: dict[str, dict[str, Any]]) -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "scanvit.yaml").read_text(encoding="utf-8"))["providers"]
    assert source["uid"] == "prometheus"
    assert any(volume == f"./grafana/dashboards:{provider['options']['path']}:ro" for volume in services["grafana"]["volumes"])
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{provider['options']['path']}/training.json"


def test_prometheus_reaches_what_it_scrapes(services: dict[str, dict[str, Any]]) -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]}
    (target,) = jobs["scanvit"]["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert services[host]["command"][-1] == port
    assert "ray-head:/tmp/ray:ro" in services["prometheus"]["volumes"]
    assert jobs["ray"]["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
