"""Runs on a real Ray cluster, with checkpoints in a real object store: killed, stopped, refused, sent as jobs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
from tests.integration.cluster_harness import RAY, RayCluster, wait_for
from tests.integration.conftest import SOURCES, ObjectStore, Scanvit
from tests.integration.test_notebooks import run as run_notebook
from tests.integration.training_runs import SETTINGS, assert_same
from tests.mlflow_server import MlflowServer
from tests.ports import free_port

from scanvit.data.pack import Pack
from scanvit.storage.mlflow_client import connect

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
]
EPOCHS = 20
# Small batches make a run that lasts long enough to be disturbed, and one that is held is not given up meanwhile.
LONG = (f"trainer.max_epochs={EPOCHS}", "trainer.per_device_batch_size=2", "trainer.checkpoint_every_s=0.5", "trainer.timeout_s=600")
RECIPE = [x for s in [*SETTINGS, *LONG] for x in ("--set", s)]
TRACKED = ["--set", "tracking.mlflow=true", "--set", "tracking.drain_timeout_s=500"]
ONE_EPOCH = [x for s in [*SETTINGS, "trainer.max_epochs=1"] for x in ("--set", s)]


class Client:
    """Scanvit's commands against the module's cluster and store."""

    def __init__(self, cluster: RayCluster, dashboard: int, store: ObjectStore, folder: Path) -> None:
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.cluster, self.folder = cluster, folder
        names = ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
        self.environment = {name: cluster.client_environment[name] for name in names} | store.environment()
        self.environment |= {"SCANVIT_CACHE": str(folder / "cache"), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_API_SERVER_ADDRESS": self.dashboard}
        self.scanvit = Scanvit(folder)

    def __call__(self, *args: str | Path, code: int = 0, **environment: str) -> str:
        return self.scanvit(*args, code=code, **self.environment | environment)

    def start(self, *args: str | Path, **environment: str) -> subprocess.Popen[str]:
        return self.scanvit.start(*args, **self.environment | environment)

    def all_at_once(self, *commands: tuple[tuple[str | Path, ...], int, dict[str, str]]) -> list[str]:
        """What commands say that do nothing but fail: (arguments, exit code, environment) each. Most of their time is that of their start."""
        started = [(self.start(*args, **environment), code) for args, code, environment in commands]
        said = ["".join(process.communicate(timeout=300)) for process, _ in started]
        assert [process.returncode for process, _ in started] == [code for _, code in started], said
        assert not any("Traceback" in text for text in said)
        return said


@pytest.fixture(scope="module")
def client(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One machine with two CPUs, a job server and a token; buckets for runs and packs."""
    dashboard = free_port()
    options = {"num-cpus": 2, "include-dashboard": "true", "dashboard-port": dashboard, "dashboard-agent-listen-port": free_port()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # a job says "python"
    for bucket in ("runs", "packs"):
        object_store.put(bucket, {})
    folder = tmp_path_factory.mktemp("client")
    with RayCluster(head_options=options, PYTHONPATH=str(SOURCES), PATH=path, SCANVIT_CACHE=str(folder / "node")) as cluster:
        client = Client(cluster, dashboard, object_store, folder)
        yield client
        client.scanvit.close()


@pytest.fixture(scope="module")
def plain(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by DDP, undisturbed."""
    folder = tmp_path_factory.mktemp("plain")
    Scanvit(folder)("train", "tiny", "--pack", small_pack, "--run-dir", "run", *RECIPE, "--set", "trainer.devices=2")
    return folder / "run"


def read_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """The first line of the output that matches; what comes before is dropped."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"{pattern!r} is not in the output:\n{''.join(seen)}{process.stderr.read() if process.stderr else ''}")


def workers(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Process ids of both ranks, once both have started."""
    found: dict[int, int] = {}
    while len(found) < 2:
        rank, pid = map(int, read_until(process, r"worker (\d) started on .* \(process (\d+)\)").groups())
        found[rank] = pid
    return found[0], found[1]


@contextlib.contextmanager
def held(process: subprocess.Popen[str], pattern: str) -> Iterator[int]:
    """Once a line of the output matches, the training stands still for as long as the block lasts: no machine is too fast to be disturbed. Gives
    the process of rank zero, whose threads go on."""
    first, second = workers(process)
    read_until(process, pattern)
    os.kill(second, signal.SIGSTOP)
    try:
        yield first
    finally:
        with contextlib.suppress(ProcessLookupError):  # Ray ends it where the other one is gone
            os.kill(second, signal.SIGCONT)


def processes_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    own = psutil.Process(process.pid)
    return [own, *own.children(recursive=True)]


def listening_on(process: psutil.Process) -> list[tuple[str, int]]:
    try:
        found = [connection.laddr for connection in process.net_connections("inet") if connection.status == psutil.CONN_LISTEN]
        return [(address.ip.removeprefix("::ffff:"), address.port) for address in found]
    except psutil.NoSuchProcess:
        return []


def status_of(url: str, **headers: str) -> int:
    try:
        with urlopen(Request(url, headers=headers), timeout=20) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def stored(client: Client, name: str) -> list[str]:
    """Folders of the run's checkpoints in the store."""
    return re.findall(r"checkpoint_\d\S+", client("data", "ls", f"s3:runs/{name}"))


def test_a_run_whose_worker_is_killed_is_the_run_of_plain_ddp(client: Client, small_pack: Path, plain: Path) -> None:
    tracking = client.folder / "mlflow.db"
    options = ("--pack", small_pack, "--num-workers", "2", "--storage", "s3://runs", "--name", "killed", "--run-dir", "runs/killed")
    process = client.start("ray", "train", "tiny", *options, *RECIPE, *TRACKED, MLFLOW_TRACKING_URI=f"sqlite:///{tracking}")
    with held(process, r"epoch +2/") as worker:
        wait_for(lambda: stored(client, "killed"), "a checkpoint in the store: it travels beside the training", every_s=0.5)
        os.kill(worker, signal.SIGKILL)
    read_until(process, r"going on from the checkpoint of step \d+")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err

    run_dir = client.folder / "runs" / "killed"
    assert_same(run_dir, plain)
    with sqlite3.connect(tracking) as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)], "one run, whatever happened to its workers"
        epochs = database.execute("select count(distinct step) from metrics where key = 'val_loss'").fetchone()
    assert epochs == (EPOCHS,)
    kinds = [json.loads(line)["kind"] for line in (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (kinds.count("start"), kinds.count("resume"), kinds.count("end")) == (1, 1, 1)
    assert len(stored(client, "killed")) in (3, 4), "the three best and the newest"
    assert "report.html" in client("evaluate", run_dir)


def test_a_job_that_is_stopped_goes_on_from_the_store_alone(client: Client, small_pack: Path, plain: Path) -> None:
    client("data", "push", "s3:packs/small", small_pack)
    (client.folder / "runtime.json").write_text(json.dumps({"env_vars": {"SCANVIT_CACHE": str(client.folder / "node"), "OMP_NUM_THREADS": "1"}}))
    options = ("--runtime-env", "runtime.json", "--pack", "s3://packs/small", "--num-workers", "2", "--storage", "s3://runs")
    process = client.start("ray", "submit", "tiny", "--name", "job", *options, *RECIPE, "--follow")
    with held(process, r"first step after"):
        assert "asked to stop" in client("ray", "stop", "job")
        read_until(process, r"stopping: the workers write a checkpoint first")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 83, out + err
    assert "wrote a checkpoint at step" in out
    assert "STOPPED" in client("ray", "status")
    assert "epoch   1/" in client("ray", "logs", "job")

    out = client("ray", "submit", "--resume", "s3://runs/job", "--runtime-env", "runtime.json", "--follow")
    assert "going on from the checkpoint of step" in out
    client("data", "pull", "s3:runs/job/run", client.folder / "pulled")
    assert_same(client.folder / "pulled", plain)


def test_a_job_sent_by_rays_own_command_trains_and_tells_its_exit_code(client: Client, small_pack: Path) -> None:
    """Row E4: ``ray job submit --runtime-env runtime.json --working-dir . -- python -m scanvit ...``."""
    work = client.folder / "work"
    work.mkdir()
    (work / "mine.yaml").write_text("trainer: {max_epochs: 1, threads: 1}\ntracking: {mlflow: false}\nmodel: {depth: 1, dim: 8, stem_widths: [4, 4]}\n")
    variables = {"DATA_PATH": str(small_pack), "SCANVIT_CACHE": str(client.folder / "node"), "OMP_NUM_THREADS": "1"}
    (work / "runtime.json").write_text(json.dumps({"env_vars": variables}))
    submit = [RAY, "job", "submit", "--address", client.dashboard, "--runtime-env", "runtime.json", "--working-dir", ".", "--", "python", "-m", "scanvit"]

    def send(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*submit, *args], env=os.environ | client.environment, cwd=work, capture_output=True, text=True, timeout=300, check=False)

    done = send("ray", "train", "mine.yaml", "--num-workers", "2", "--storage", str(client.folder / "kept"), "--name", "by-ray")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (client.folder / "kept" / "by-ray" / "run" / "checkpoint.pth").is_file()
    assert send("train", "no-such-experiment").returncode == 1  # Ray's own client tells no more than that
    assert re.search(r"FAILED\s+11\s", client("ray", "status"))


def test_the_notebook_sends_a_run_and_fetches_it(client: Client, small_pack: Path, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"RAY_BUCKET": "runs", "MLFLOW_TRACKING_URI": mlflow_server.uri, "SCANVIT_EXAMPLE_PACK": str(small_pack)}
    printed = run_notebook("submit_to_ray.ipynb", monkeypatch, client.folder, **client.environment | where)
    assert "error" not in printed
    assert "SUCCEEDED" in printed
    assert len(re.findall(r"^epoch \d  val_loss \d", printed, flags=re.MULTILINE)) == 2
    run_id = re.search(r"^run id (\w+)$", printed, flags=re.MULTILINE)
    assert run_id
    assert connect(mlflow_server.uri).get_run(run_id[1]).info.status == "FINISHED"
    assert (client.folder / "on-ray" / "run" / "checkpoint.pth").is_file()


def test_storage_that_a_node_cannot_use_is_refused_before_anything_starts(client: Client, small_pack: Path) -> None:
    def options(name: str, storage: str) -> tuple[str | Path, ...]:
        return ("ray", "train", "tiny", "--pack", small_pack, "--num-workers", "2", "--run-dir", f"runs/{name}", "--storage", storage)

    missing, away, keys = client.all_at_once(
        (options("missing", "s3://no-such-bucket"), 81, {}),
        (options("away", "s3://runs"), 81, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}),
        (options("keys", "s3://runs"), 81, {"AWS_SECRET_ACCESS_KEY": "wrong"}),
    )
    assert "storage s3://no-such-bucket" in missing
    assert "does the bucket exist?" in missing
    assert re.search(r"On the node \S+ the storage s3://runs", away)
    assert "AWS_ENDPOINT_URL" in away
    assert "AWS_SECRET_ACCESS_KEY" in keys
    assert "wrong" not in keys


def test_a_wrong_token_and_a_missing_cluster_are_told_at_once(client: Client, small_pack: Path) -> None:
    def options(name: str) -> tuple[str | Path, ...]:
        return ("ray", "train", "tiny", "--pack", small_pack, "--run-dir", f"runs/{name}")

    wrong = {"RAY_AUTH_TOKEN": "0" * 64}
    refused, unknown, missing, no_head, no_server = client.all_at_once(
        (options("refused"), 80, wrong),
        (("ray", "status"), 80, wrong),
        (options("missing-cluster"), 80, {"RAY_ADDRESS": "127.0.0.1:9"}),
        (options("no-head"), 10, {"RAY_ADDRESS": client.dashboard}),
        (("ray", "status", "--address", "http://127.0.0.1:9"), 80, {}),
    )
    assert "refused this token" in refused
    assert "RAY_AUTH_TOKEN_PATH" in unknown
    assert "asks for no token" not in unknown
    assert "No Ray cluster answers at 127.0.0.1:9" in missing
    assert "no address of a cluster's head" in no_head
    assert "No job server answers" in no_server


def test_more_than_the_cluster_has_is_waited_for_and_then_refused(client: Client, small_pack: Path) -> None:
    command = ["ray", "train", "tiny", "--pack", str(small_pack), "--num-workers", "3", "--run-dir", "runs/three", "--wait", "3"]
    # Whoever still waits in Ray when the connection is gone meets memory that was freed: filled by the C library, and met within two seconds.
    code = f"import sys, time; from scanvit.cli import main; code = main({command!r}); time.sleep(2.5); sys.exit(code)"
    environment = client.scanvit.environment() | client.environment | {"MALLOC_PERTURB_": "165"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=client.folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 82, done.stdout + done.stderr
    assert "waiting for 3 workers (CPU 3): the cluster has 1 node with CPU 2 (2 free)" in done.stdout


def test_a_pack_that_the_nodes_do_not_see_is_copied_to_the_storage(client: Client, small_pack: Path) -> None:
    """The driver alone sees the pack: it is mounted in a name space of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting needs root and unshare (Debian: util-linux)")
    hidden = client.folder / "hidden"
    hidden.mkdir()
    seen_here_alone = ("unshare", "--mount", "sh", "-c", f'mount --bind {small_pack} {hidden} && exec "$@"', "sh")
    options = ("--pack", hidden, "--num-workers", "1", "--storage", "s3://runs", "--run-dir", "runs/hidden", *ONE_EPOCH)
    process = client.scanvit.start("ray", "train", "tiny", *options, prefix=seen_here_alone, **client.environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert not list(hidden.iterdir())
    fingerprint = Pack.open(small_pack).fingerprint
    assert "train.npy" in client("data", "ls", f"s3:runs/packs/{fingerprint}")
    assert Pack.open(client.folder / "node" / "packs" / fingerprint).fingerprint == fingerprint, "a copy in the node's cache"


def test_a_run_that_diverges_is_not_started_again(client: Client, small_pack: Path) -> None:
    options = ("--num-workers", "1", "--storage", "s3://runs", "--run-dir", "runs/diverged", *ONE_EPOCH, "--set", "optimizer.lr=1e30")
    said = client("ray", "train", "tiny", "--pack", small_pack, *options, code=46)
    assert said.count("worker 0 started") <= 1


def test_a_cluster_of_its_own_stops_with_a_checkpoint_and_goes_on(scanvit: Scanvit, object_store: ObjectStore, small_pack: Path, plain: Path) -> None:
    """On a pack in Swift; what it starts listens on loopback."""
    clean = object_store.environment() | {"RAY_AUTH_TOKEN_PATH": str(scanvit.folder / "secret" / "token"), "SCANVIT_CACHE": str(scanvit.folder / "cache")}
    clean |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    object_store.put("swift-packs", {})
    scanvit("data", "push", "swift:swift-packs/small", small_pack, **clean)
    options = ("--pack", "swift:swift-packs/small", "--num-workers", "2", "--run-dir", "run", "--dashboard", "127.0.0.1")
    process = scanvit.start("ray", "train", "tiny", *options, *RECIPE, **clean)
    dashboard = read_until(process, r"dashboard: (http://127\.0\.0\.1:\d+),")[1]
    with held(process, r"epoch +2/"):
        open_ports = {port for one in processes_of(process) for address, port in listening_on(one) if address != "127.0.0.1"}
        assert len(open_ports) <= 1, "but for the meeting point of the workers, whose address PyTorch does not let anybody choose"
        assert status_of(f"{dashboard}/api/jobs/") == 401
        token = (scanvit.folder / "secret" / "token").read_text(encoding="ascii")
        assert status_of(f"{dashboard}/api/jobs/", Authorization=f"Bearer {token}") == 200
        process.send_signal(signal.SIGTERM)
        read_until(process, r"stopping: the workers write a checkpoint first")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 75, out + err
    assert "scanvit ray train --resume run" in err
    assert len(re.findall(r"^epoch ", out, flags=re.MULTILINE)) <= 2, "the workers hear of it within their next steps, 24 to an epoch"
    assert os.stat(scanvit.folder / "secret" / "token").st_mode & 0o077 == 0
    assert "going on from the checkpoint of step" in scanvit("ray", "train", "--resume", "run", **clean)
    assert_same(scanvit.folder / "run", plain)
    assert "finished already" in scanvit("ray", "train", "--resume", "run", **clean)
