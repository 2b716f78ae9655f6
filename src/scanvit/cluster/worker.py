"""What runs in each worker of Ray Train: take up the newest state, train by ``fit``, bring every checkpoint to the storage."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..core.config import Experiment
from ..core.errors import ConfigError, DataError, DivergedError, PreemptedError, RunError, ScanvitError
from ..core.loading import experiment_to_yaml
from ..data.pack import Pack
from ..storage.atomic import write_json, write_text
from ..training.host import Host, Request, Saved
from ..training.imports import quick_imports
from ..training.run_folder import SETTINGS, bind, locked
from . import bundle
from .board import BoardProgress
from .packs import PackSource, obtain
from .preflight import node_address
from .settings import cache_folder
from .storage import Storage, insist

INSIDE_EPOCH = 1e30
"""Reported as val_loss by a checkpoint inside an epoch: no number, and it would count as the best; so it is the worst."""
_PENDING = 4
"""Checkpoints at epochs' ends that may wait for the storage at the same time."""
_PREPARE_S = 3600.0
"""For how long the workers wait for the slowest one's pack and state."""
_LAST_UPLOADS_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What the driver hands every worker."""

    experiment: Experiment
    name: str
    """Of the run folder, for whoever lists runs."""
    storage: Storage
    """Of this run alone."""
    pack: PackSource
    environment: Mapping[str, str] = field(repr=False)
    """Variables with the addresses and secrets of tracking and packs."""
    tracking: Mapping[str, Any]
    """tracking.json as it is at the run's start."""
    ships: bool
    threads: int


def work(assignment: Assignment, board: Any) -> None:
    """The train function. A fault that no new worker would mend ends the run at once, by an outcome on the board instead of an exception."""
    import ray.train

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    os.environ.update(assignment.environment)
    progress = BoardProgress(board, rank=rank)
    progress.join(node=node_address(ray), world_size=world_size)
    progress.mark("workers started")
    with _folder(assignment.name, rank) as run_dir:
        pack, fault = _prepare(assignment, run_dir, progress, reads=context.get_local_rank() == 0)
        if fault is not None or pack is None:
            if rank == 0:
                ray.get(board.end.remote({"error": fault}))
            return
        progress.mark("pack and state")
        _train(assignment, pack, run_dir, progress)


def _prepare(assignment: Assignment, run_dir: Path, progress: BoardProgress, *, reads: bool) -> tuple[Pack | None, ScanvitError | None]:
    """The pack, and the run folder as the newest checkpoint left it; or the first rank's error, on all ranks.

    ``reads``: whether this process compares the arrays with the pack's SHA-256, as one of each node does at every start.
    """
    from torch import distributed

    pack, fault, step = None, None, None
    # A group of its own, more patient than the training's: one node may have a large pack to fetch.
    group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=_PREPARE_S)) if distributed.is_initialized() else None
    try:
        pack = obtain(assignment.pack, cache_folder())
        if reads:
            pack.verify(("train", "val"))
        write_text(run_dir / SETTINGS, experiment_to_yaml(bind(assignment.experiment, pack)))
        step = bundle.restore(assignment.storage, run_dir, say=progress.announce)
        if step is None:
            write_json(run_dir / "tracking.json", dict(assignment.tracking))
        else:
            progress.announce(f"going on from the checkpoint of step {step}")
    except ScanvitError as error:
        fault = error
    found: list[Any] = [(fault, step)]
    if group is not None:
        found = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, (fault, step), group=group)
    fault = next((error for error, _ in found if error is not None), None)
    if fault is None and len({chosen for _, chosen in found}) > 1:
        raise RunError("The workers see different checkpoints in the storage.", hint="Is it one store for all nodes?")  # a new start may mend it
    return pack, fault


def _train(assignment: Assignment, pack: Pack, run_dir: Path, progress: BoardProgress) -> None:
    import ray

    from ..core.runtime import available_devices

    with quick_imports():
        from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer

        from ..training.fit import fit
        from ..training.world import ddp_options

    progress.mark("imports")
    courier = _Courier(assignment, run_dir, progress)
    host = Host(
        strategy=RayDDPStrategy(**ddp_options(assignment.experiment.trainer, available_devices(assignment.experiment.trainer.accelerator)[0])),
        plugins=(RayLightningEnvironment(),),
        prepare=prepare_trainer,
        progress=progress,
        threads=assignment.threads,
        ships=assignment.ships,
        on_checkpoint=courier.hand_over,
        has_room=courier.has_room,
        request=courier.request,
    )
    experiment = bind(assignment.experiment, pack)
    try:
        result = fit(experiment, pack, run_dir, host=host)
    except PreemptedError as error:
        courier.wait()
        if not progress.stop_requested:
            raise
        if progress.rank == 0:
            ray.get(progress.board.end.remote({"stopped": error.message}))
        return
    except (ConfigError, DataError, DivergedError) as error:  # on all ranks; a new start would end the same way
        courier.wait()
        if progress.rank == 0:
            ray.get(progress.board.end.remote({"error": error}))
        return
    except BaseException:
        courier.wait(_LAST_UPLOADS_S)  # what is on its way to the storage is read from the folder that goes next
        raise
    courier.wait()
    if progress.rank == 0:
        outcome = {"best_epoch": result.best_epoch, "best_val_loss": result.best_val_loss, "tracking_uri": result.tracking_uri, "tracked": result.tracked}
        place = assignment.storage.below("run")
        values = {"step": -1, "outcome": outcome}
        insist(lambda: bundle.upload(run_dir, place, values, names=(SETTINGS, *bundle.FILES)), what=f"Writing {place.address}")
        ray.get(progress.board.end.remote(outcome))
    progress.tell(state="finished")


class _Courier:
    """Brings checkpoints from the run folder of rank zero to the storage, beside the training."""

    def __init__(self, assignment: Assignment, run_dir: Path, progress: BoardProgress) -> None:
        self.storage, self.run_dir, self.progress = assignment.storage, run_dir, progress
        self.outbox = run_dir.parent / "outbox"
        self.outbox.mkdir()
        self._idle = threading.Condition()
        self._pending = 0
        self._warned = False

    def hand_over(self, saved: Saved) -> None:
        """On all ranks: Ray's report is a barrier."""
        import ray.train

        metrics = {"val_loss": INSIDE_EPOCH}
        if saved.metrics is not None and math.isfinite(saved.metrics["val_loss"]):
            metrics = {name: float(saved.metrics[name]) for name in ("val_loss", "val_accuracy")}
        checkpoint = None
        if self.progress.rank == 0:
            folder = bundle.snapshot(self.run_dir, Path(tempfile.mkdtemp(dir=self.outbox)), step=saved.step)
            checkpoint = ray.train.Checkpoint.from_directory(str(folder))
            with self._idle:
                self._pending += 1
        try:
            ray.train.report(
                metrics | {"epoch": saved.epoch, "step": saved.step},
                checkpoint=checkpoint,
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
                checkpoint_upload_fn=self._upload,
                delete_local_checkpoint_after_upload=True,
            )
        except BaseException:
            if checkpoint is not None:
                self._done()
            raise

    def _upload(self, checkpoint: Any, name: str) -> Any:
        import json

        import ray.train

        place, folder = self.storage.below(name), Path(checkpoint.path)
        try:
            step = json.loads((folder / bundle.MANIFEST).read_bytes())["step"]
            insist(lambda: bundle.upload(folder, place, {"step": step}), what=f"Writing {place.address}")
        finally:
            self._done()
        self.progress.board.keep.remote(step)
        return ray.train.Checkpoint(place.path, place.filesystem)

    def has_room(self, inside_epoch: bool) -> bool:
        with self._idle:
            return self._pending < (1 if inside_epoch else _PENDING)

    def _done(self) -> None:
        with self._idle:
            self._pending -= 1
            self._idle.notify_all()

    def wait(self, timeout_s: float | None = None) -> None:
        """Until all that was handed over is in the storage, or has failed to get there."""
        with self._idle:
            self._idle.wait_for(lambda: self._pending == 0, timeout_s)

    def request(self) -> Request:
        if self.progress.stop_requested:
            return "stop"
        if not self._warned and _node_is_leaving():
            self._warned = True
            return "save"
        return "go on"


def _node_is_leaving() -> bool:
    """Whether Ray has marked this worker as one whose group will lose a node. ``ray.train.get_preemption_info`` tells the same to all ranks
    together, but as a barrier: too dear after every step. The ranks agree on their own, by the training's process group."""
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info is not None
    except (ImportError, AttributeError):  # an older Ray, or one that keeps it elsewhere
        return False


@contextlib.contextmanager
def _folder(name: str, rank: int) -> Any:
    """A worker's own folder on its node, gone at the end. What workers that were killed have left behind is removed."""
    parent = cache_folder() / "workers"
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f"{name}.{rank}.*"):
        with contextlib.suppress(RunError, OSError), locked(old):
            shutil.rmtree(old)
    own = Path(tempfile.mkdtemp(dir=parent, prefix=f"{name}.{rank}."))
    try:
        with locked(own):
            (own / name).mkdir()  # the run folder has the run's name: the tracking server shows it
            yield own / name
    finally:
        shutil.rmtree(own, ignore_errors=True)
