"""From a command to a run: open its folder and start ``fit``, in this process or, by PyTorch's elastic agent, in several new ones."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from ..core.config import Experiment
from ..core.errors import PreemptedError, RunError
from ..core.events import read_events
from ..core.runtime import available_devices
from ..data.pack import Pack
from .fit import FitResult, fit
from .run_folder import bind, load_run, locked, open_run


def launch(experiment: Experiment, pack: Pack, run_dir: Path, *, show_progress: bool = False) -> FitResult:
    """Start a run, or continue an unfinished one with the same settings, in as many processes as ``trainer.devices`` asks for.

    Raises PackMismatchError, RunExistsError, RunError for a run that another process trains, and what ``fit`` raises.
    """
    experiment = bind(experiment, pack)
    with locked(run_dir):
        open_run(run_dir, experiment)
        _, found = available_devices(experiment.trainer.accelerator)
        devices = found if experiment.trainer.devices == "auto" else experiment.trainer.devices
        if devices == 1:
            return fit(experiment, pack, run_dir, show_progress=show_progress)
        return _launch_processes(devices, pack, run_dir, show_progress=show_progress)


def _launch_processes(devices: int, pack: Pack, run_dir: Path, *, show_progress: bool) -> FitResult:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Without this each process would take all cores and they would only hinder each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        start_method="spawn",
    )
    try:
        results = elastic_launch(config, _worker)(str(run_dir), str(pack.path), show_progress)
    except ChildFailedError as error:
        ends = [event["values"] for event in read_events(run_dir) if event["kind"] == "end"]
        if ends and ends[-1]["status"] == "preempted":
            raise PreemptedError(ends[-1]["reason"], hint=f"Go on with: scanvit train --resume {run_dir}") from None
        rank, failure = error.get_first_failure()
        raise RunError(
            f"Process {rank} of {devices} ended with exit code {failure.exitcode}: {failure.message}", hint=f"Go on with: scanvit train --resume {run_dir}"
        ) from None
    return results[0]


def _worker(run_dir: str, pack: str, show_progress: bool) -> FitResult:
    return fit(load_run(Path(run_dir)), Pack.open(Path(pack)), Path(run_dir), show_progress=show_progress)
