"""The images and the stack of deploy/ on a real engine: built, brought up, used, and taken down without a trace.

Only where DOCKER_HOST names an engine, since it takes minutes and gigabytes:

    DOCKER_HOST=unix:///var/run/docker.sock .venv/bin/python -m pytest tests/integration/test_containers.py

SCANVIT_TEST_BUILD_NETWORK=host builds in the network of the machine, and TORCH_INDEX_URL names the index of the CPU build of PyTorch. Public images
that cannot be pulled are replaced by the stand-ins of tests/containers.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.ports import free_ports

from scanvit import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE = REPOSITORY / "deploy" / "compose.yaml"
STAND_INS = REPOSITORY / "tests" / "containers"
PROJECT = f"scanvit-test-{os.getpid()}"
SERVICES = ["postgres", "store", "store-init", "mlflow", "ray-head", "ray-worker-1", "ray-worker-2", "prometheus", "run-metrics", "ray-client"]
TARGETS = {"mlflow": f"scanvit-mlflow:{__version__}", **{name: f"scanvit-{name}:{__version__}-cpu" for name in ("train", "ray", "jupyter")}}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif("DOCKER_HOST" not in os.environ, reason="DOCKER_HOST names no engine (this takes minutes and gigabytes)"),
]


def docker(*arguments: str, check: bool = True, **options: Any) -> str:
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, **options)
    if check:
        assert result.returncode == 0, f"docker {' '.join(arguments)}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def _is_there(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def _build(image: str, *arguments: str) -> None:
    network = os.environ.get("SCANVIT_TEST_BUILD_NETWORK")
    docker("build", "-q", *(["--network", network] if network else []), "-t", image, *arguments)


@pytest.fixture(scope="session")
def engine() -> None:
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker with its compose plugin is not installed")
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.skip(f"no engine answers at {os.environ['DOCKER_HOST']}")


@pytest.fixture(scope="session")
def images(engine: None) -> dict[str, str]:
    for target, image in TARGETS.items():
        index = os.environ.get("TORCH_INDEX_URL", "")
        _build(image, "--target", target, "--build-arg", f"TORCH_INDEX_URL={index}", "-f", str(REPOSITORY / "deploy" / "Containerfile"), str(REPOSITORY))
    return TARGETS


@pytest.fixture(scope="session")
def public_images(engine: None) -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    for service in ("postgres", "store", "prometheus"):
        image = services[service]["image"]
        if not _is_there(image) and subprocess.run(["docker", "pull", "-q", image], capture_output=True, check=False).returncode:
            _build(image, "-f", str(STAND_INS / service / "Containerfile"), str(STAND_INS / service))


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_user_and_carries_no_tools_or_secrets(target: str, images: dict[str, str]) -> None:
    image = images[target]
    settings = json.loads(docker("image", "inspect", image))[0]["Config"]
    assert settings["User"] == "1000:1000"
    assert settings.get("Healthcheck") is None
    assert settings["Labels"]["org.opencontainers.image.version"] == __version__
    words = " ".join(settings["Env"]) + docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert not [name for name in ("PASSWORD=", "SECRET=", "TOKEN=") if name in words.upper()]
    probe = "command -v gcc cc make; ls -A /var/cache/pip /requirements 2>/dev/null; test ! -w /venv || echo writable; id -u"
    assert docker("run", "--rm", "--network", "none", image, "bash", "-c", probe).split() == ["1000"]
    program = settings["Cmd"][0]
    found = docker("run", "--rm", "--network", "none", image, "bash", "-c", f"command -v {program}").strip()
    assert Path(found).parent == Path("/venv/bin" if program == "scanvit" else "/usr/local/bin"), "its own, not another of the same name"


def test_scanvit_is_importable_in_each_image_that_trains(images: dict[str, str]) -> None:
    for target in ("train", "ray", "jupyter"):
        output = docker("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", images[target], "scanvit", "--version")
        assert __version__ in output
    code = "import scanvit.training.fit, onnxruntime, pydicom, torch; print(torch.__version__)"
    assert docker("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", images["train"], "python", "-c", code).strip().endswith("+cpu")


def _write_environment(path: Path, **paths: Path) -> None:
    names = ("POSTGRES_PORT", "STORE_PORT", "MLFLOW_PORT", "RAY_PORT", "RAY_DASHBOARD_PORT", "PROMETHEUS_PORT", "RAY_CLIENT_PORT")
    first = free_ports(len(names))
    values = {name: str(first + place) for place, name in enumerate(names)}
    values |= {
        name: secrets.token_urlsafe(24) for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "JUPYTER_TOKEN")
    }
    values |= {"GRAFANA_ADMIN_PASSWORD": secrets.token_urlsafe(24), "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # What an address must escape, so that a password is taken for what it is.
    values |= {"POSTGRES_PASSWORD": f"p/%40@:{secrets.token_urlsafe(12)}", "AWS_ACCESS_KEY_ID": "scanvit", "RAY_SHM_SIZE": "512mb"}
    values |= {name: str(value) for name, value in paths.items()}
    path.write_text("".join(f"{name}={value}\n" for name, value in values.items()), encoding="utf-8")
    path.chmod(0o600)


LIST_BUCKETS = "import boto3, json; print(json.dumps(sorted(bucket['Name'] for bucket in boto3.client('s3').list_buckets()['Buckets'])))"
LIST_ARTIFACTS = "import boto3, json; print(json.dumps([o['Key'] for o in boto3.client('s3').list_objects_v2(Bucket='mlflow')['Contents']]))"
ASK_MLFLOW = """
import base64, json, os, urllib.error, urllib.request

def ask(host, user):
    account = base64.b64encode(f"{user}:{os.environ['MLFLOW_TRACKING_PASSWORD']}".encode()).decode()
    headers = {"Host": host} | ({"Authorization": f"Basic {account}"} if user else {})
    try:
        url = "http://mlflow:8000/api/2.0/mlflow/experiments/get?experiment_id=0"
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code

print(json.dumps([ask("mlflow:8000", ""), ask("mlflow:8000", "admin"), ask("evil.example", "admin")]))
"""
LIST_RUNS = """
import json, mlflow

client = mlflow.MlflowClient()
runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
facts = [(run.info.status, len(client.get_metric_history(run.info.run_id, "val_loss")), client.list_artifacts(run.info.run_id)) for run in runs]
print(json.dumps([(status, points, [artifact.path for artifact in artifacts]) for status, points, artifacts in facts]))
"""
ASK_PROMETHEUS = """
import json, time, urllib.parse, urllib.request

def ask(query):
    with urllib.request.urlopen("http://prometheus:9090/api/v1/query?" + urllib.parse.urlencode({"query": query})) as answer:
        return json.load(answer)["data"]["result"]

for _ in range(60):
    nodes, losses = ask("count(ray_node_cpu_utilization)"), ask("scanvit_val_loss")
    if losses and nodes and nodes[0]["value"][1] == "3":
        break
    time.sleep(2)
targets = sorted((target["metric"]["job"], target["value"][1]) for target in ask("up"))
print(json.dumps([targets, [(loss["metric"]["run"], loss["value"][1]) for loss in losses]]))
"""
JOB = """
import json, os, socket
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init()
apart = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
ray.get(apart.ready(), timeout=120)

@ray.remote(num_cpus=1)
def look():
    return socket.gethostname(), os.environ["DATA_PATH"], sorted(os.listdir(os.environ["DATA_PATH"]))

places = [PlacementGroupSchedulingStrategy(apart, placement_group_bundle_index=index) for index in (0, 1)]
print("SEEN", json.dumps(ray.get([look.options(scheduling_strategy=place).remote() for place in places])))
"""


class Stack:
    def __init__(self, environment: Path) -> None:
        self.environment = environment
        self.command = ["compose", "-p", PROJECT, "--env-file", str(environment), "-f", str(COMPOSE)]

    def __call__(self, *arguments: str, **options: Any) -> str:
        return docker(*self.command, *arguments, **options)

    def run(self, service: str, script: str) -> str:
        return self("exec", "-T", service, "bash", "-euo", "pipefail", "-c", script)

    def python(self, service: str, code: str) -> Any:
        """What ``code`` prints last in the service's container, as JSON."""
        return json.loads(self("exec", "-T", service, "python", "-", input=code).splitlines()[-1])


@pytest.fixture(scope="session")
def stack(images: dict[str, str], public_images: None, small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    shutil.copytree(small_pack, folder / "data" / "pack")
    run = folder / "runs" / "first"
    run.mkdir(parents=True)
    (run / "events.jsonl").write_text('{"time": 1.0, "kind": "metrics", "epoch": 3, "step": 9, "values": {"val_loss": 0.25}}\n')
    (run / "experiment.yaml").write_text("name: tiny\n")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    _write_environment(folder / ".env", DATA_PATH=folder / "data", RUNS_PATH=folder / "runs")
    stack = Stack(folder / ".env")
    try:
        stack("up", "-d", "--wait", "--wait-timeout", "900", *SERVICES)
        yield stack
        stack("--profile", "*", "down", "-v")
        label = f"label=com.docker.compose.project={PROJECT}"
        left = [docker(kind, "ls", *(["-a"] if kind == "container" else []), "-q", "--filter", label) for kind in ("container", "volume", "network")]
        assert left == ["", "", ""]
    finally:
        stack("--profile", "*", "down", "-v", check=False)


def test_every_service_is_healthy(stack: Stack) -> None:
    found = {line["Service"]: line for line in map(json.loads, stack("ps", "-a", "--format", "json").splitlines())}
    assert set(found) == set(SERVICES)
    assert found.pop("store-init")["ExitCode"] == 0
    assert {name: line["Health"] for name, line in found.items()} == dict.fromkeys(found, "healthy")
    assert {port["URL"] for line in found.values() for port in line["Publishers"] or () if port["PublishedPort"]} == {"127.0.0.1"}


def test_buckets_are_made_once(stack: Stack) -> None:
    assert "bucket mlflow: is there" in stack("run", "--rm", "-T", "--no-deps", "store-init")
    assert stack.python("mlflow", LIST_BUCKETS) == ["mlflow", "ray"]


def test_mlflow_asks_for_the_account_and_for_a_known_host(stack: Stack) -> None:
    assert stack.python("ray-client", ASK_MLFLOW) == [401, 200, 403]


def test_no_secret_is_on_a_command_line(stack: Stack) -> None:
    secret = stack.run("mlflow", 'echo "$POSTGRES_PASSWORD $MLFLOW_AUTH_ADMIN_PASSWORD $AWS_SECRET_ACCESS_KEY"').split()
    assert len(secret) == 3
    for service in ("mlflow", "ray-head", "ray-client"):
        lines = stack.run(service, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")
        assert not [value for value in secret if value in lines]
    assert stack.run("mlflow", "stat -c %a /tmp/basic_auth.ini").strip() == "600"


def _submit(stack: Stack, *command: str, files: dict[str, str] | None = None) -> str:
    """`ray job submit` from the client container, in a folder of its own with runtime.json and ``files``."""
    files = {"runtime.json": json.dumps({"env_vars": {"DATA_PATH": "/mnt/object", "OMP_NUM_THREADS": "1"}})} | (files or {})
    write = "".join(f"cat > {name} <<'END_OF_FILE'\n{text}\nEND_OF_FILE\n" for name, text in files.items())
    return stack.run("ray-client", f"cd $(mktemp -d)\n{write}ray job submit --runtime-env runtime.json --working-dir . -- {' '.join(command)} 2>&1")


def test_a_job_submitted_by_a_client_runs_on_both_workers(stack: Stack) -> None:
    output = _submit(stack, "python", "job.py", files={"job.py": JOB})
    seen = json.loads(output.split("SEEN ")[1].splitlines()[0])
    assert {(path, tuple(listing)) for _, path, listing in seen} == {("/mnt/object", ("pack",))}
    assert len({host for host, _, _ in seen}) == 2


def test_ray_refuses_a_client_without_the_token(stack: Stack) -> None:
    wrong = ["exec", "-T", "-e", f"RAY_AUTH_TOKEN={'0' * 64}", "ray-client", "ray", "job", "list"]
    result = subprocess.run(["docker", *stack.command, *wrong], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "authentication token" in result.stdout + result.stderr


def test_a_training_on_the_cluster_is_tracked_with_its_artifacts_in_the_store(stack: Stack) -> None:
    train = ["python", "-m", "scanvit", "train", "tiny", "--pack", "/mnt/object/pack", "--run-dir", "/tmp/ray/trained"]
    train += ["--set", "trainer.max_epochs=2", "--set", "model.depth=1"]
    assert "succeeded" in _submit(stack, *train)
    ((status, points, artifacts),) = stack.python("ray-client", LIST_RUNS)
    assert status == "FINISHED"
    assert points == 2
    assert "checkpoint.pth" in artifacts
    assert any(key.endswith("/checkpoint.pth") for key in stack.python("mlflow", LIST_ARTIFACTS))


def test_prometheus_scrapes_every_node_of_ray_and_the_runs(stack: Stack) -> None:
    targets, losses = stack.python("ray-client", ASK_PROMETHEUS)
    assert losses == [["first", "0.25"]]
    assert {up for _, up in targets} == {"1"}
    jobs = [job for job, _ in targets]
    assert jobs.count("ray") >= 3, "each node's, and what the head tells of itself"
    assert set(jobs) == {"prometheus", "ray", "scanvit"}


def test_what_was_stored_outlives_the_containers_and_a_new_password_holds(stack: Stack) -> None:
    before = stack.python("ray-client", LIST_RUNS)
    assert before
    stack("stop", "mlflow", "postgres", "store")
    ended = {line["Service"]: line["ExitCode"] for line in map(json.loads, stack("ps", "-a", "--format", "json").splitlines())}
    assert ended["postgres"] == 0, "shut down, not killed"
    assert "not permitted" not in stack("logs", "postgres", "store")
    stack("rm", "-f", "mlflow", "postgres", "store")
    text = stack.environment.read_text(encoding="utf-8")
    stack.environment.write_text(re.sub(r"(?m)^(MLFLOW_TRACKING_PASSWORD=).*$", rf"\g<1>{secrets.token_urlsafe(24)}", text), encoding="utf-8")
    stack("up", "-d", "--wait", "--wait-timeout", "900", *SERVICES)
    assert stack.python("ray-client", LIST_RUNS) == before
    assert stack.python("ray-client", ASK_MLFLOW) == [401, 200, 403]
