"""A search through the command line: killed and started again, it ends as the one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.integration.cluster_harness import wait_for
from tests.integration.conftest import Scanvit
from tests.integration.training_runs import SETTINGS, last_step

from scanvit.core.events import read_events
from scanvit.storage.mlflow_client import connect
from scanvit.training.tracking_state import TrackingState

# MLflow's store, opened here to look inside, calls what its own dependencies deprecate.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.slow]

TRIALS = 3


def arguments(pack: Path, out: Path, *settings: str) -> list[str | Path]:
    fixed = [s for s in SETTINGS if not s.startswith("tracking.")]
    pairs = [x for s in [*fixed, "optimizer.lr=loguniform(1e-4, 1e-2)", "model.pool=choice(cls, mean)", *settings] for x in ("--set", s)]
    return ["tune", "tiny", "--pack", pack, "--out", out, "--trials", str(TRIALS), "--pruner", "none", *pairs]


@pytest.fixture(scope="module")
def undisturbed(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    told = Scanvit(folder)(*arguments(small_pack, folder / "tune", "tracking.mlflow=false"))
    assert "3 complete" in told
    return folder / "tune"


def results(folder: Path) -> list[dict[str, Any]]:
    trials = json.loads((folder / "tune.json").read_text())["trials"]
    return [{key: value for key, value in trial.items() if key != "time_s"} for trial in trials]


def wait_until_under_way(run_dir: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while last_step(run_dir) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def the_trial_of(search: subprocess.Popen[str]) -> psutil.Process:
    (trial,) = (child for child in psutil.Process(search.pid).children() if "scanvit.training.tuning.trial_process" in child.cmdline())
    return trial


def is_pending(signum: int, process: psutil.Process) -> bool:
    """Whether the signal waits for a process that stands still."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return bool(int(status.split("ShdPnd:")[1].split()[0], 16) >> (signum - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells which signals a process has not taken yet")
def test_killed_and_interrupted_it_loses_no_trial_and_ends_the_same(scanvit: Scanvit, small_pack: Path, undisturbed: Path) -> None:
    connect(f"sqlite:///{scanvit.folder / 'mlflow.db'}").search_experiments()  # its tables take seconds: not in a trial's last ones
    out = scanvit.folder / "tune"
    command = arguments(small_pack, out, "tracking.drain_timeout_s=500")
    killed = scanvit.start(*command)
    wait_until_under_way(out / "trials" / "0000", killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    interrupted = scanvit.start(*command)
    wait_until_under_way(out / "trials" / "0001", interrupted)
    trial = the_trial_of(interrupted)
    trial.suspend()  # else it may have come to its end before the search has heard the interrupt
    wait_for(lambda: trial.status() == psutil.STATUS_STOPPED, "the trial stands still")
    os.kill(interrupted.pid, signal.SIGINT)
    wait_for(lambda: is_pending(signal.SIGTERM, trial), "the search asks the trial to stop")
    trial.resume()
    told = "".join(interrupted.communicate(timeout=600))
    assert interrupted.returncode == 130, told
    assert "goes on" in told
    assert "Traceback" not in told
    said = scanvit(*command)
    assert "trial   1  goes on" in said
    assert [log.read_text() for log in sorted((out / "trials").glob("*.log"))] == [""] * TRIALS, "nothing to complain of"
    assert results(out) == results(undisturbed), "the same settings, and the same figures from them"
    assert [event["values"]["status"] for event in read_events(out) if event["kind"] == "end"] == ["preempted", "finished"]
    assert len(list((out / "trials").glob("*/experiment.yaml"))) == TRIALS
    assert_tracked(out)
    assert "best epoch" in scanvit("train", out / "best.yaml", "--run-dir", scanvit.folder / "best", "--set", "tracking.mlflow=false")
    assert "not 3" in scanvit(*command, "--seed", "3", code=42)


def assert_tracked(out: Path) -> None:
    """One run for the search, and one below it for each trial, all ended."""
    state = TrackingState.load(out)
    client = connect(str(state.uri))
    runs = client.search_runs([client.get_experiment_by_name("scanvit").experiment_id])
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == state.run_id]
    assert sorted(run.info.run_name for run in below) == [f"{number:04d}" for number in range(TRIALS)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == TRIALS + 1
    assert client.get_run(str(state.run_id)).data.metrics["trials"] == TRIALS


def test_a_search_in_which_everything_fails_says_why(scanvit: Scanvit, small_pack: Path) -> None:
    settings = ("tracking.mlflow=false", "optimizer.lr=loguniform(1e30, 1e35)", "trainer.max_epochs=1", "augment.mixup=0")
    told = scanvit(*arguments(small_pack, scanvit.folder / "tune", *settings), code=45)
    assert "None of 3 trials came to a figure" in told
    assert "diverged" in told


def test_a_folder_that_is_deleted_meanwhile_is_told(scanvit: Scanvit, small_pack: Path) -> None:
    out = scanvit.folder / "tune"
    process = scanvit.start(*arguments(small_pack, out, "trainer.max_epochs=500", "tracking.mlflow=false"))
    wait_until_under_way(out / "trials" / "0000", process)
    out.rename(scanvit.folder / "elsewhere")
    told = "".join(process.communicate(timeout=120))
    assert process.returncode == 41, told
    assert f"{out} was deleted or moved while it was at work" in " ".join(told.split())


def test_mistakes_are_told_before_anything_is_trained(scanvit: Scanvit, small_pack: Path) -> None:
    def tuned(*words: str, code: int) -> str:
        return scanvit("tune", "tiny", "--pack", small_pack, "--out", scanvit.folder / "tune", *words, code=code)

    assert "empty range" in tuned("--set", "optimizer.lr=uniform(1, 1)", code=10)
    assert "Did you mean 'optimizer.lr'" in tuned("--set", "optimizer.rl=uniform(0, 1)", code=12)
    assert "cannot be 2" in tuned("--set", "loss.label_smoothing=uniform(0, 2)", code=10)
    assert "is no time" in tuned("--time", "soon", code=2)
    (scanvit.folder / "space.yaml").write_text("optimizer.lr: 3")
    assert "is no range" in tuned("--space", str(scanvit.folder / "space.yaml"), code=10)
    assert not (scanvit.folder / "tune").exists()
