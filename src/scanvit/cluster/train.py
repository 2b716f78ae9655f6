"""``train``: bring a run folder to its end on a Ray cluster. The driver's side; ``worker`` is the other.

In the storage a run has a folder of its own, NAME-KEY: Ray Train's checkpoints, each a bundle (``bundle``), and at the end ``run``, the
finished run folder. The driver's run folder gets what it needs to go on after the driver was lost (``cluster.json``) before anything starts.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..core.config import Experiment
from ..core.errors import ClusterError, ClusterResourcesError, PreemptedError, RunExistsError, RunMissingError, ScanvitError, StorageError
from ..data.pack import Pack
from ..storage.atomic import atomic_folder, write_json
from ..storage.transfer import open_store, push
from ..training.result import FitResult
from ..training.run_folder import SETTINGS, bind, locked, note_settings, open_run, refuse_idle_processes
from ..training.shipper import Shipper
from ..training.shipping import ship_now
from . import bundle
from .packs import PackSource, obtain
from .preflight import check_nodes
from .session import connected
from .settings import OWN_STORAGE, STATE, ClusterSettings, cache_folder, load_settings, travelling, without_own_storage
from .storage import Storage, insist, open_storage
from .terminal import say
from .watch import Watch
from .worker import Assignment, work


def train(
    experiment: Experiment, pack: PackSource, run_dir: Path, settings: ClusterSettings, *, address: str | None = None, dashboard: str | None = None
) -> FitResult:
    """Start a run on the cluster at ``address`` (none: one on this machine, for the time being), or continue an unfinished one.

    Raises ClusterError and its kinds, PreemptedError when told to stop, and what ``fit`` raises. Whatever is raised, the same call goes on.
    """
    marks = {"start": time.time()}
    settings = without_own_storage(settings, run_dir)
    _refuse_change(run_dir, settings)
    opened = obtain(pack, cache_folder())
    pack = replace(pack, fingerprint=opened.fingerprint)
    asked, settings = settings, _without_idle_workers(settings, opened)
    if experiment.trainer.devices == asked.num_workers:
        experiment = replace(experiment, trainer=replace(experiment.trainer, devices=settings.num_workers))
    experiment = bind(settings.settle(experiment), opened)
    with locked(run_dir):
        open_run(run_dir, experiment)
        name, storage = _place(run_dir, replace(asked, pack=str(pack)))
        finished = None
        with contextlib.suppress(OSError):  # storage that cannot be used is told of below, with all that is known
            finished = bundle.read_manifest(storage.below("run"))
        if finished is not None:  # the driver was lost after the run's end
            return _collect(experiment, run_dir, storage, finished)
        cpus = max(1, (os.cpu_count() or 1) // settings.num_workers) if address is None else 1
        resources = settings.per_worker(cpus=cpus)
        needed = math.ceil(resources["CPU"] * settings.num_workers)
        connection = connected(
            address,
            cpus=max(needed, os.cpu_count() or 1),
            gpus=_gpus(settings),
            silence_s=experiment.trainer.timeout_s,  # workers notice each other's; that of one alone Ray Train has to notice
            dashboard=dashboard,
            say=say,
        )
        with connection as ray:
            marks["cluster"] = time.time()
            if not check_nodes(ray, storage, pack) and pack.path is not None:
                pack = _publish(opened, pack, storage)
            assignment = Assignment(
                experiment=experiment,
                name=run_dir.resolve().name,
                storage=storage,
                pack=pack,
                environment=travelling(os.environ),
                tracking=_tracking(experiment, run_dir),
                ships=_is_one_machine(ray) or not _tracking_is_local(experiment, run_dir),
                threads=max(1, int(resources["CPU"])),
            )
            note_settings(run_dir, experiment)
            for file in (SETTINGS, STATE, "tracking.json"):  # with these, any machine can go on: --resume STORAGE/NAME
                insist(lambda file=file: storage.upload(run_dir / file, file), what=f"Writing {storage.address}")  # type: ignore[misc]
            insist(lambda: bundle.forget_broken_notes(storage), what=f"Reading {storage.address}")
            marks["nodes checked"] = time.time()
            with Watch(ray, settings, resources, marks) as watch:
                outcome = watch.follow(_trainer(assignment, watch, name, settings, resources))
        _check(outcome, run_dir, storage)
        manifest = bundle.read_manifest(storage.below("run"))
        if manifest is None:
            raise ClusterError(f"The run ended, but {storage.address}/run is not there.", hint=f"Go on with: scanvit ray train --resume {run_dir}")
        with contextlib.suppress(OSError):
            bundle.sweep(storage)
        return _collect(experiment, run_dir, storage, manifest)


def take_up(address: str, run_dir: Path) -> None:
    """Fill a new run folder with what goes on with the run in the storage at ``address``. Raises RunMissingError, RunExistsError."""
    if run_dir.exists():
        raise RunExistsError(f"{run_dir} is there already.", hint="Choose another --run-dir, or continue the run in it: scanvit ray train --resume RUN")
    storage = open_storage(address, os.environ)
    with atomic_folder(run_dir) as folder:
        for file in (STATE, SETTINGS, "tracking.json"):
            try:
                storage.download(file, folder / file)
            except OSError as error:
                reason = " ".join(str(error).split())[:200]
                raise RunMissingError(f"{address} holds no run on a cluster: {reason}.", hint="Give the folder STORAGE/NAME of a run.") from None
        place, _, name = storage.address.rpartition("/")  # where the run is, wherever it began: its storage may be in the run folder that it began in
        write_json(folder / STATE, asdict(replace(load_settings(folder), storage=place, name=name)))


def _refuse_change(run_dir: Path, settings: ClusterSettings) -> None:
    """Raises RunExistsError where the folder's run was started with another storage, name or number of workers."""
    if not (run_dir / STATE).is_file():
        return
    known = load_settings(run_dir)
    settings = replace(settings, name=settings.name or known.name)
    for key in ("storage", "num_workers", "name"):
        if getattr(known, key) != getattr(settings, key):
            raise RunExistsError(
                f"{run_dir} holds a run with {key.replace('_', ' ')} {getattr(known, key)}, not {getattr(settings, key)}.",
                hint=f"Choose another --run-dir, or continue that run unchanged: scanvit ray train --resume {run_dir}",
            )


def _without_idle_workers(settings: ClusterSettings, pack: Pack) -> ClusterSettings:
    """With no more workers than images, where it may have fewer. Raises ConfigError where even the least number is too many."""
    refuse_idle_processes(pack, settings.needed_workers)
    images, split = min(((pack.size(split), split) for split in ("train", "val") if pack.size(split)), default=(settings.num_workers, ""))
    if images >= settings.num_workers:
        return settings
    say(f"{pack.path} has {images} images in {split}: at most so many workers train, not {settings.num_workers}.")
    return replace(settings, num_workers=images)


def _place(run_dir: Path, settings: ClusterSettings) -> tuple[str, Storage]:
    """The run's name for Ray and its folder in the storage: as they were first chosen, when the run is continued."""
    known = load_settings(run_dir).name if (run_dir / STATE).is_file() else None
    name = settings.name or known or f"{run_dir.resolve().name}-{uuid.uuid4().hex[:8]}"
    write_json(run_dir / STATE, asdict(replace(settings, name=name)))
    return name, open_storage(settings.storage or str(run_dir / OWN_STORAGE), os.environ).below(name)


def _gpus(settings: ClusterSettings) -> float | None:
    return None if settings.use_gpu or "GPU" in settings.resources else 0


def _publish(opened: Pack, pack: PackSource, storage: Storage) -> PackSource:
    """Bring a pack that some node does not see to the storage, once for all runs."""
    from ..storage.remote import parse_remote

    place = f"{storage.address.rpartition('/')[0]}/packs/{opened.fingerprint}"
    if storage.is_local:  # the nodes share it
        folder = Path(place)
        try:
            if not folder.is_dir():
                with atomic_folder(folder) as temporary:
                    shutil.copytree(opened.path, temporary, dirs_exist_ok=True)
        except (OSError, StorageError):
            if not folder.is_dir():  # else another run was quicker, and its copy is as good: it appeared whole
                raise
        return replace(pack, path=str(folder))
    remote = parse_remote(place)
    push(open_store(remote, os.environ, engine="pyarrow"), opened.path)
    return PackSource(remote=remote, fingerprint=opened.fingerprint, environment=travelling(os.environ))


def _tracking(experiment: Experiment, run_dir: Path) -> Mapping[str, Any]:
    """The key of the MLflow run, made here once: whichever worker ships first makes the run, and every later one finds it."""
    shipper = Shipper(run_dir, experiment.tracking)
    shipper.state.save(run_dir)
    return asdict(shipper.state)


def _is_one_machine(ray: Any) -> bool:
    """Whether every worker sees the driver's files."""
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) == 1


def _tracking_is_local(experiment: Experiment, run_dir: Path) -> bool:
    return Shipper(run_dir, experiment.tracking).uri.startswith(("sqlite:", "file:"))


def _trainer(assignment: Assignment, watch: Watch, name: str, settings: ClusterSettings, resources: dict[str, float]) -> Any:
    from functools import partial

    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig  # what ray.train exports is typed as version 1

    storage = assignment.storage
    start_timeout_s = float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"])
    return TorchTrainer(
        partial(work, assignment, watch.board),
        torch_config=TorchConfig(backend="nccl" if settings.use_gpu else "gloo", timeout_s=math.ceil(assignment.experiment.trainer.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers if settings.min_workers is None else (settings.min_workers, settings.num_workers),
            elastic_resize_monitor_interval_s=settings.resize_every_s,
            use_gpu=settings.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(  # type: ignore[arg-type]
            name=name,
            storage_path=storage.path.rpartition("/")[0],
            storage_filesystem=storage.filesystem,
            failure_config=FailureConfig(max_failures=settings.max_failures, controller_failure_limit=max(0, math.ceil(settings.wait_s / start_timeout_s) - 1)),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.keep, checkpoint_score_attribute="val_loss", checkpoint_score_order="min"),
            callbacks=watch.callbacks(),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _check(outcome: dict[str, Any], run_dir: Path, storage: Storage) -> None:
    """Raise what the run came to, unless it came to its end. What it has reached is brought here first, to be looked at."""
    if "best_epoch" in outcome:
        return
    with contextlib.suppress(OSError, ScanvitError):
        for place, manifest in bundle.newest(storage)[:1]:
            bundle.download(place, manifest, run_dir)
    go_on = f"Go on with: scanvit ray train --resume {run_dir}"
    if isinstance(error := outcome.get("error"), ScanvitError):
        raise error
    if "stopped" in outcome:
        raise PreemptedError(outcome["stopped"], hint=go_on)
    if "waited" in outcome:
        raise ClusterResourcesError(outcome["waited"], hint=f"Ask for less, or give the cluster more. {go_on}")
    if "failed" in outcome:
        raise ClusterError(outcome["failed"], hint=go_on)


def _collect(experiment: Experiment, run_dir: Path, storage: Storage, manifest: Mapping[str, Any]) -> FitResult:
    """Bring the finished run folder here, and its events to a tracking server that the workers could not reach."""
    place = storage.below("run")
    if (fault := bundle.download(place, manifest, run_dir)) is not None:
        raise ClusterError(f"The finished run in {place.address} is damaged: {fault}.", hint=f"Go on with: scanvit ray train --resume {run_dir}")
    outcome = manifest["outcome"]
    uri, tracked = outcome["tracking_uri"], outcome["tracked"]
    is_behind = uri is None or not tracked  # no worker reached the file, or it was not done in time
    if experiment.tracking.mlflow and is_behind and _tracking_is_local(experiment, run_dir):
        tracked, uri = ship_now(run_dir, experiment.tracking), Shipper(run_dir, experiment.tracking).uri
    return FitResult(run_dir=run_dir, best_epoch=outcome["best_epoch"], best_val_loss=outcome["best_val_loss"], tracking_uri=uri, tracked=tracked)
