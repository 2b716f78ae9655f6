"""The platform without containers, on real PostgreSQL, Swift, MLflow and Ray. One platform for the module; the tests go through its life in order."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.integration.conftest import ObjectStore, Scanvit
from tests.integration.test_tracking import SETTINGS
from tests.ports import free_ports

from scanvit.platform import object_store as stores
from scanvit.platform.health import ray_nodes
from scanvit.platform.native.guard import holder
from scanvit.platform.native.leftovers import end_leftovers, leftovers
from scanvit.platform.native.log_files import last_lines
from scanvit.platform.native.supervisor import LOCK_FILE, STATE_FILE
from scanvit.platform.postgres import find
from scanvit.platform.settings import Settings, load
from scanvit.platform.variables import VARIABLES

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::ResourceWarning")]


class Platform:
    def __init__(self, folder: Path, programs: Path | None = None) -> None:
        self.folder = folder
        self.runner = Scanvit(folder.parent)
        self.environment = {"SCANVIT_PLATFORM_DIR": str(folder), "PATH": f"{programs or ''}{os.pathsep}{os.environ['PATH']}"}

    def __call__(self, *args: str | Path, code: int = 0) -> str:
        return self.runner("platform", *args, code=code, **self.environment)

    @property
    def settings(self) -> Settings:
        return load(self.folder)

    def edit(self, **values: str) -> None:
        path = self.folder / ".env"
        text = path.read_text()
        for name, value in values.items():
            text = re.sub(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        path.write_text(text)

    def programs(self) -> dict[str, dict[str, Any]]:
        return json.loads((self.folder / STATE_FILE).read_text())["programs"]

    def last_words(self) -> str:
        """Of the supervisor and of all that it keeps, for a test that fails."""
        return "\n".join(f"{path.name}:\n{last_lines(path, 15)}" for path in sorted((self.folder / "logs").glob("*.log")))

    def health(self, code: int = 0) -> dict[str, dict[str, Any]]:
        lines = self("status", "--json", code=code).splitlines()
        return {row["service"]: row for row in (json.loads(line) for line in lines if line.startswith("{"))}

    def api(self, path: str, body: Any = None, password: str | None = None) -> Any:
        settings = self.settings
        pair = f"{settings['MLFLOW_TRACKING_USERNAME']}:{password or settings['MLFLOW_TRACKING_PASSWORD']}"
        headers = {"Authorization": f"Basic {b64encode(pair.encode()).decode()}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{settings.mlflow_url}/{path}", data=data, headers=headers), timeout=20) as answer:
            content = answer.read()
        return json.loads(content) if answer.headers.get_content_type() == "application/json" else content

    def runs(self) -> dict[str, Any]:
        """What users can read of all runs: by run id their names, states, parameters, histories of metrics, and artifacts with their content."""
        found = {}
        experiments = [e["experiment_id"] for e in self.api("api/2.0/mlflow/experiments/search", {"max_results": 100})["experiments"]]
        for run in self.api("api/2.0/mlflow/runs/search", {"experiment_ids": experiments}).get("runs", []):
            run_id = run["info"]["run_id"]
            keys = sorted(m["key"] for m in run["data"]["metrics"])
            history = {key: self.api(f"api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key={key}")["metrics"] for key in keys if "/" not in key}
            files = self.api(f"api/2.0/mlflow/artifacts/list?run_id={run_id}")["files"]
            content = {f["path"]: self.api(f"get-artifact?path={f['path']}&run_uuid={run_id}") for f in files if not f["is_dir"]}
            found[run_id] = (run["info"]["run_name"], run["info"]["status"], run["data"].get("params", []), history, content)
        return found


def settle(platform: Platform) -> None:
    """Ports that nobody has; three more lie behind the store's."""
    names = [name for name, variable in VARIABLES.items() if variable.kind == "port"]
    platform.edit(**{name: str(port) for name, port in zip(names, range(free_ports(4 * len(names)), 65536, 4), strict=False)})


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = 600) -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def programs(object_store: ObjectStore) -> Path:
    """Where Swift's programs are. Skips where PostgreSQL is not installed."""
    try:
        find("initdb")
    except Exception as error:
        pytest.skip(f"{error} apt install postgresql")
    return object_store.folder / "venv" / "bin"


@pytest.fixture
def make_platform(programs: Path) -> Iterator[Callable[[], Platform]]:
    made: list[Platform] = []

    def make() -> Platform:
        made.append(new_platform(programs))
        return made[-1]

    yield make
    for platform in made:
        close(platform)


@pytest.fixture(scope="module")
def platform(programs: Path) -> Iterator[Platform]:
    platform = new_platform(programs)
    platform("up", "--native")
    yield platform
    close(platform)


def new_platform(programs: Path) -> Platform:
    # Root hands PostgreSQL to another user, who cannot pass pytest's private folders.
    folder = Path(tempfile.mkdtemp(prefix="scanvit-platform-"))
    folder.chmod(0o711)
    platform = Platform(folder / "state", programs)
    platform("init")
    settle(platform)
    return platform


def close(platform: Platform) -> None:
    platform.runner.close()
    if guard := holder(platform.folder / LOCK_FILE):
        os.kill(guard, signal.SIGTERM)
        with contextlib.suppress(psutil.Error):
            psutil.Process(guard).wait(60)
    end_leftovers(platform.folder)
    shutil.rmtree(platform.folder.parent, ignore_errors=True)


def test_every_service_answers_by_its_own_protocol_on_loopback_alone_and_no_secret_shows(platform: Platform) -> None:
    health = platform.health()
    assert set(health) == {"postgres", "store", "mlflow"}
    assert health["postgres"]["detail"].startswith("PostgreSQL ")
    table = platform("status")
    settings = platform.settings
    assert settings.mlflow_url in table
    assert "MLFLOW_TRACKING_PASSWORD" in table
    assert "Uvicorn running" in platform("logs", "mlflow")
    assert "There are logs of: mlflow, postgres" in platform("logs", "nothing", code=93)
    processes = leftovers(platform.folder)
    assert len(processes) >= 8
    seen = table + "".join(path.read_text(errors="replace") for path in (platform.folder / "logs").glob("*.log"))
    seen += "".join(" ".join(process.cmdline()) for process in processes)
    assert not [name for name in VARIABLES if VARIABLES[name].kind == "secret" and settings[name] in seen]
    listening = {c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    for name in (".env", "client.env", "run/mlflow-accounts.ini", "data/store/etc/proxy-server.conf"):
        assert (platform.folder / name).stat().st_mode & 0o077 == 0, name
    with pytest.raises(urllib.error.HTTPError, match="401"):
        platform.api("api/2.0/mlflow/experiments/search", {"max_results": 1}, password="a wrong password")


def test_a_run_is_tracked_by_name_and_password_and_its_artifacts_lie_in_the_bucket(platform: Platform, small_pack: Path) -> None:
    client = dict(line.removeprefix("export ").split("=", 1) for line in (platform.folder / "client.env").read_text().splitlines())
    tracking = {name: value for name, value in client.items() if name.startswith("MLFLOW_TRACKING_")}
    arguments = ["train", "tiny", "--pack", small_pack, "--run-dir", "runs/run", *(word for s in SETTINGS for word in ("--set", s))]
    platform.runner(*arguments, **tracking)
    ((name, status, params, history, content),) = platform.runs().values()
    assert (name, status) == ("run", "FINISHED")
    assert {"key": "optimizer.name", "value": "adamw"} in params
    assert len(history["val_loss"]) == 2
    assert content["checkpoint.pth"] == (platform.folder.parent / "runs" / "run" / "checkpoint.pth").read_bytes()
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))} | tracking
    uri = f"runs:/{next(iter(platform.runs()))}/checkpoint.pth"
    command = [sys.executable, "-m", "mlflow", "artifacts", "download", "--artifact-uri", uri, "--dst-path", str(platform.folder.parent / "fetched")]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (platform.folder.parent / "fetched" / "checkpoint.pth").read_bytes() == content["checkpoint.pth"]
    told = platform.api("api/3.0/mlflow/server-info")
    assert not told["multipart_downloads_enabled"], "clients would be sent to the store, which only the server reaches by its name for it"
    objects = stores.client(platform.settings).list_objects_v2(Bucket="mlflow")["Contents"]
    assert any(item["Key"].endswith("artifacts/checkpoint.pth") for item in objects)


def test_what_dies_is_restarted(platform: Platform) -> None:
    before = platform.programs()
    for name in ("postgres", "store-container", "store", "mlflow"):
        os.kill(before[name]["pid"], signal.SIGKILL)
        wait_until(lambda name=name: platform.programs()[name]["restarts"] == before[name]["restarts"] + 1, f"{name} was not restarted")
    wait_until(lambda: all(p["state"] == "ready" for p in platform.programs().values()), "not all are ready again")
    assert all(row["healthy"] for row in platform.health().values())
    assert re.search(r"^mlflow died and was restarted \d time", platform("status"), flags=re.MULTILINE)
    assert platform.runs()


def test_a_missing_bucket_is_told_and_made(platform: Platform) -> None:
    stores.client(platform.settings).delete_bucket(Bucket="ray")
    assert "the bucket ray is missing" in platform("status", code=94)
    platform("up")
    assert platform.health()["store"]["healthy"]


def test_a_backup_brings_back_runs_metrics_and_artifacts_after_all_is_destroyed(platform: Platform) -> None:
    before = platform.runs()
    copy = platform.folder.parent / "backup"
    assert "1 runs" in platform("backup", copy)
    assert "exists" in platform("backup", copy, code=93)
    sums = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=copy, capture_output=True, text=True)
    assert (sums.returncode, sums.stdout) == (0, "")
    assert "would replace" in platform("restore", copy, code=93)

    platform("down", "--volumes")
    assert not (platform.folder / "data").exists()
    password = "another" * 3
    platform.edit(MLFLOW_TRACKING_PASSWORD=password)
    platform("up", "--native")
    assert platform.runs() == {}
    checkpoint = next(path for path in copy.rglob("checkpoint.pth"))
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is not what was backed up" in platform("restore", copy, code=63)
    assert platform.runs() == {}
    checkpoint.write_bytes(whole)
    platform("restore", copy)
    assert platform.runs() == before
    assert "MLflow" in platform.health()["mlflow"]["detail"], "the administrator has the password of .env"


def test_an_older_database_is_copied_and_upgraded_when_the_server_starts(platform: Platform) -> None:
    """In a database beside the platform's, made with the first schema that MLflow's migrations know, and a run in it."""
    code = """
import sys
from dataclasses import replace
from pathlib import Path
import sqlalchemy
from alembic import command
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from scanvit.platform import postgres
from scanvit.platform.native import mlflow_server
from scanvit.platform.settings import load
settings = load(Path(sys.argv[1]))
with postgres.connect(settings, database="postgres") as connection:
    connection.execute("CREATE DATABASE older")
settings = replace(settings, values={**settings.values, "POSTGRES_DB": "older"})
engine = sqlalchemy.create_engine(postgres.database_uri(settings))
Base.metadata.create_all(engine)
command.upgrade(_get_alembic_config(postgres.database_uri(settings)), "7ac759974ad8")
with engine.begin() as connection:
    connection.execute(sqlalchemy.text("INSERT INTO experiments (name, lifecycle_stage) VALUES ('old', 'active')"))
copy = mlflow_server.upgrade(settings)
assert copy is not None and copy.stat().st_size > 1000 and copy.stat().st_mode & 0o077 == 0, copy
assert mlflow_server.schema_revision(engine) == mlflow_server.newest_revision()
assert mlflow_server.upgrade(settings) is None
with engine.connect() as connection:
    assert connection.execute(sqlalchemy.text("SELECT name FROM experiments")).scalar() == "old"
"""
    done = subprocess.run([sys.executable, "-c", code, platform.folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "7ac759974ad8" in done.stdout


def test_a_refused_password_and_a_taken_port_are_one_sentence_each(platform: Platform, make_platform: Callable[[], Platform]) -> None:
    right = platform.settings["POSTGRES_PASSWORD"]
    platform.edit(POSTGRES_PASSWORD="0123456789abcdef")
    assert "postgres is not healthy: refuses the password in .env" in platform("status", code=94)
    platform.edit(POSTGRES_PASSWORD=right)
    env = (platform.folder / ".env").read_text()
    assert "203.0.113.1 is no address of this machine" in platform("up", "--bind", "203.0.113.1", code=10)
    assert (platform.folder / ".env").read_text() == env
    second = make_platform()
    second.edit(MLFLOW_PORT=platform.settings["MLFLOW_PORT"])
    said = second("up", "--native", code=92)
    assert re.search(rf"Port {platform.settings['MLFLOW_PORT']} is taken by \S+ \(process \d+\)", said)
    assert "MLFLOW_PORT" in said
    assert not leftovers(second.folder)


def test_a_second_command_waits_for_nobody_but_says_who_is_at_work(platform: Platform) -> None:
    monitoring = ["monitoring"] if shutil.which("prometheus") else []
    first = platform.runner.start("platform", "up", "ray", *monitoring, **platform.environment)
    try:
        wait_until(lambda: "ray-head" in platform.programs() or first.poll() is not None, "ray was not started")
    except AssertionError:
        first.kill()
        pytest.fail(f"ray was not started\n{first.communicate()}\n{platform.last_words()}")
    assert first.poll() is None, first.communicate()
    assert f"process {first.pid}" in platform("up", code=93)
    out, err = first.communicate(timeout=600)
    assert first.returncode == 0, f"{err}\n{platform.last_words()}"
    assert "ray-worker-1" in out
    assert not monitoring or re.search(r"run-metrics[ │]+1 runs", out), out


def _workers(settings: Settings) -> set[str]:
    return {node["raylet"]["nodeId"] for node in ray_nodes(settings) if not node["raylet"].get("isHeadNode")}


def test_ray_asks_for_its_token_runs_jobs_and_comes_back(platform: Platform) -> None:
    settings = platform.settings
    address = f"http://127.0.0.1:{settings['RAY_DASHBOARD_PORT']}"
    job = ["--", sys.executable, "-c", "import ray; ray.init(); print(len(ray.nodes()), 'nodes')"]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address, *job]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/nodes?view=summary", timeout=20)
    done = subprocess.run(
        ray, env=clean | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": settings["RAY_AUTH_TOKEN"]}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 nodes" in done.stdout
    listening = {c.laddr.ip for p in leftovers(platform.folder) for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    # The head counts the killed one for a while, and whoever asks it does, too: the new one is waited for.
    killed = _workers(settings)
    os.kill(platform.programs()["ray-worker-1"]["pid"], signal.SIGKILL)
    wait_until(lambda: platform.programs()["ray-worker-1"]["restarts"] == 1, "the worker was not restarted")
    wait_until(lambda: bool(_workers(settings) - killed), "the restarted worker did not join")
    platform("up")
    assert platform.health()["ray-worker-1"]["detail"].endswith("CPU")


def test_killed_itself_the_supervisor_leaves_no_orphan_and_up_finds_all_data(platform: Platform) -> None:
    before = platform.runs()
    guard = psutil.Process(holder(platform.folder / LOCK_FILE))
    (supervisor,) = [child for child in guard.children() if child.cmdline() == guard.cmdline()]
    supervisor.kill()
    wait_until(lambda: not leftovers(platform.folder), "orphans are left")
    assert {row["detail"] for row in platform.health(code=94).values()} == {"does not listen"}
    assert "postgres is not healthy: does not listen" in platform("backup", platform.folder.parent / "none", code=94)
    platform("up", "mlflow")
    assert platform.runs() == before
    psutil.Process(holder(platform.folder / LOCK_FILE)).kill()
    wait_until(lambda: not leftovers(platform.folder), "orphans are left")


def test_down_leaves_nothing_behind_and_can_be_repeated(platform: Platform) -> None:
    platform("down")
    assert not leftovers(platform.folder)
    assert not [p for p in (platform.settings.port(n) for n, v in VARIABLES.items() if v.kind == "port") if is_open(p)]
    assert (platform.folder / "data" / "postgres" / "PG_VERSION").exists()
    assert "is not up" in platform("status", code=93)
    platform("down")


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_half_finished_init_is_told_and_completed_with_what_it_has(make_platform: Callable[[], Platform]) -> None:
    platform = make_platform()
    path = platform.folder / ".env"
    whole = path.read_text()
    path.write_text("".join(line for line in whole.splitlines(keepends=True) if not line.startswith(("RAY_AUTH_TOKEN", "MLFLOW_PORT"))))
    assert "lacks MLFLOW_PORT, RAY_AUTH_TOKEN" in platform("up", "--native", code=93)
    platform("init")
    values = load(platform.folder).values
    assert values["POSTGRES_PASSWORD"] in whole
    assert values["RAY_AUTH_TOKEN"] not in whole


def test_a_store_that_runs_elsewhere_is_taken_from_the_environment(programs: Path, object_store: ObjectStore, tmp_path: Path) -> None:
    store = object_store.environment() | {"STORE_ENDPOINT_URL": f"http://127.0.0.1:{object_store.port}", "MLFLOW_BUCKET": "theirs", "RAY_BUCKET": "theirs-too"}
    Scanvit(tmp_path)("platform", "init", tmp_path / "state", **store)
    settings = load(tmp_path / "state")
    assert stores.programs(settings) == []
    assert stores.make_buckets(settings) == ["theirs", "theirs-too"]
    assert stores.make_buckets(settings) == []


def test_a_full_disk_is_one_sentence_and_leaves_no_half_made_data(make_platform: Callable[[], Platform], small_disk: Path) -> None:
    platform = make_platform()
    small_disk.chmod(0o711)
    full = Platform(small_disk / "state", Path(platform.environment["PATH"].split(os.pathsep)[0]))
    if subprocess.run(["mount", "--bind", small_disk, platform.folder.parent], capture_output=True).returncode:
        pytest.skip("this machine refuses a bind mount")
    full.folder = platform.folder
    try:
        full.environment["SCANVIT_PLATFORM_DIR"] = str(platform.folder)
        full("init")
        settle(full)
        assert "No space is left" in full("up", "--native", code=61)
        assert not (full.folder / "data" / "postgres").exists()
        assert load(full.folder)
    finally:
        subprocess.run(["umount", "--lazy", platform.folder.parent], check=True)
