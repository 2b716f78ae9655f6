"""``fit``: bring a run folder to its end. The one entry point, on a laptop, under a launcher of several processes, or on a cluster."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from ..core.config import Experiment, Precision
from ..core.errors import EmptyClassError, PreemptedError
from ..core.events import EventLog
from ..core.runtime import World, available_devices, bind_to_cores, derive_seed, has_bf16, keep_freed_memory, usable_cores
from ..data.loader import EvalLoader, TrainLoader, as_tensor, has_room
from ..data.pack import Pack
from ..evaluation.calibrate import calibrate_checkpoint
from ..evaluation.inference import batch_size
from .checkpoints import AtomicCheckpointIO, newest_intact, remove_broken_writes, saved_precision
from .description import open_events
from .host import Host
from .module import ClassificationModule
from .progress import Progress
from .recorder import RunRecorder
from .result import FitResult
from .run_folder import note_settings, refuse_idle_processes
from .shipper import FINAL_FILES
from .shipping import ShippingProcess
from .system_metrics import SystemSampler
from .world import batch_norm_sync, ddp_options

log = logging.getLogger(__name__)


def fit(experiment: Experiment, pack: Pack, run_dir: Path, *, show_progress: bool = False, host: Host | None = None) -> FitResult:
    """Train until the experiment's end, from the run's newest intact checkpoint if it has one.

    ``experiment`` must be bound to the pack (``run_folder.bind``) and ``run_dir`` opened (``run_folder.open_run``). Every process of a run
    calls this; rank, local rank and world size come from the launcher's environment. On the same machine type and number of
    processes the final weights do not depend on how often the run was interrupted. Gone on with in another number of processes, the
    run still sees each image once an epoch, but its batches, and with them its weights, are others. A ``host`` that has started the
    processes itself says how they are tied together and hears of every checkpoint.

    Raises EmptyClassError for a pack that cannot be trained on, CheckpointError where all checkpoints are damaged or the best weights are gone,
    DivergedError for a val_loss that was never a number, PreemptedError after SIGTERM, KeyboardInterrupt after one from the
    keyboard (both with a checkpoint), NoSpaceError where one cannot be written; whatever is raised, the run folder can be continued.
    """
    world = World.from_environment()
    if world.rank == 0:
        remove_broken_writes(run_dir)
    checkpoint = newest_intact(run_dir / "checkpoints")
    asked, experiment = experiment, _decided(experiment, checkpoint)
    _take_resources(experiment, world, host)
    torch.manual_seed(derive_seed("init", experiment.seed))
    module = ClassificationModule(experiment, class_names=pack.class_names, contract=pack.contract, train_counts=_train_counts(pack, world))
    if world.rank == 0:
        note_settings(run_dir, asked)  # what can be refused has been: ``--resume`` must not meet it for ever
    events = open_events(experiment, pack, run_dir, checkpoint) if world.rank == 0 else None
    progress = host.progress if host else Progress(show=show_progress and world.rank == 0)
    recorder = RunRecorder(run_dir, events=events, progress=progress, audit=pack.findings(), host=host)
    with _quiet_lightning():
        trainer = _build_trainer(experiment, recorder, run_dir, host)
    device = trainer.strategy.root_device
    data = _PackData(experiment, pack, module, device)
    if experiment.trainer.compile:
        progress.compiling()
        module.compile_steps(eval_batch_size=data.eval_batch_size, cuda_graphs=experiment.trainer.cuda_graphs and device.type == "cuda")
    ships = experiment.tracking.mlflow and (host is None or host.ships)
    with recorder.listening(), _shipped(experiment, run_dir, ships=ships and events is not None) as shipping, _quiet_lightning():
        try:
            with _sampled(experiment, events, trainer):
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
            recorder.refuse_without_best()
            if events:
                try:
                    calibrate_checkpoint(run_dir / "checkpoint.pth", pack, progress=progress.calibrating)
                finally:
                    progress.stop()
        except BaseException as error:
            _write_end(events, trainer, status="preempted" if isinstance(error, PreemptedError) else "failed", reason=str(error)[:500])
            hastily = isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)  # Lightning would end the program with exit code 1
            if hastily or (isinstance(error, PreemptedError) and recorder.interrupted):
                raise KeyboardInterrupt from None
            raise
        _write_end(events, trainer, status="finished")
    shipper = shipping.shipper() if shipping else None
    return FitResult(
        run_dir=run_dir,
        best_epoch=recorder.best_epoch,
        best_val_loss=recorder.best_val_loss,
        tracking_uri=shipper.uri if shipper else None,
        tracked=shipper is None or shipper.complete,
    )


class _PackData(L.LightningDataModule):
    """The pack as Lightning's data: the shares of this rank, on this rank's device for good where it has room for them."""

    def __init__(self, experiment: Experiment, pack: Pack, module: ClassificationModule, device: torch.device) -> None:
        super().__init__()
        self.experiment, self.pack, self.module, self.device = experiment, pack, module, device

    @property
    def eval_batch_size(self) -> int:
        asked = self.experiment.trainer.eval_batch_size
        return batch_size(self.pack.contract.shape, self.device.type) if asked == "auto" else asked

    def train_dataloader(self) -> TrainLoader:
        return TrainLoader(
            *self._tensors("train"),
            position=lambda: self.module.position,
            seed=self.experiment.seed,
            per_device_batch_size=self.experiment.trainer.per_device_batch_size,
            **self._share(),
        )

    def val_dataloader(self) -> EvalLoader:
        return EvalLoader(*self._tensors("val"), batch_size=self.eval_batch_size, **self._share())

    def _share(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size, "device": self.device}

    def _tensors(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = self.pack.images(split), np.array(self.pack.targets(split))
        home = self.device if has_room(images.nbytes, self.device) else "cpu"
        return as_tensor(images, home), as_tensor(targets, home)


def _decided(experiment: Experiment, checkpoint: Path | None) -> Experiment:
    """The experiment with ``precision: auto`` decided: by this machine where the run begins, and for good: a run that goes on elsewhere stays the same run."""
    if experiment.trainer.precision != "auto":
        return experiment
    began_with = saved_precision(checkpoint) if checkpoint else None
    is_gpu = available_devices(experiment.trainer.accelerator)[0] == "gpu"
    precision: Precision = began_with or ("bf16-mixed" if is_gpu or has_bf16() else "32-true")
    return replace(experiment, trainer=replace(experiment.trainer, precision=precision))


def _train_counts(pack: Pack, world: World) -> torch.Tensor:
    """Training images a class, (K,). Raises EmptyClassError where a class has none, or where there is nothing to validate on, ConfigError where
    a process would have no image of its own."""
    counts = torch.bincount(torch.from_numpy(np.array(pack.targets("train"))), minlength=len(pack.class_names))
    if missing := [name for name, count in zip(pack.class_names, counts, strict=True) if count == 0]:
        raise EmptyClassError(f"{pack.path} has no training image of {missing[0]!r}.", hint="Add images of that class, or leave the class out of the sources.")
    if pack.size("val") == 0:
        raise EmptyClassError(f"{pack.path} has no image in val.", hint="Prepare it with a share for val: the best epoch is chosen there.")
    refuse_idle_processes(pack, world.world_size)
    return counts


def _take_resources(experiment: Experiment, world: World, host: Host | None) -> None:
    shared = host.threads if host else max(1, usable_cores() // world.local_world_size)
    threads = shared if experiment.trainer.threads == "auto" else experiment.trainer.threads
    if world.local_rank == 0 and threads * world.local_world_size > max(usable_cores(), world.local_world_size):
        log.warning("trainer.threads is %d, for each of %d processes on %d cores: they hinder each other.", threads, world.local_world_size, usable_cores())
    torch.set_num_threads(threads)
    if available_devices(experiment.trainer.accelerator)[0] == "cpu":
        bind_to_cores(world, threads=threads)
        keep_freed_memory()


def _build_trainer(experiment: Experiment, recorder: RunRecorder, run_dir: Path, host: Host | None) -> L.Trainer:
    settings, world = experiment.trainer, World.from_environment()
    accelerator, found = available_devices(settings.accelerator)
    precision: Any = settings.precision
    strategy: Strategy | str = "auto"
    plugins: list[Any] = [AtomicCheckpointIO(recorder.writer)]
    if host:
        strategy = host.strategy
        plugins += host.plugins
    elif world.world_size > 1:
        strategy = DDPStrategy(**ddp_options(settings, accelerator))
        os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # some launchers leave it out; Lightning wants it
        plugins.append(TorchElasticEnvironment())  # the environment variables of torchrun, which our own launcher sets as well
    if settings.sync_batchnorm:
        plugins.append(batch_norm_sync(accelerator))
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=found if host else world.local_world_size,
        num_nodes=1 if host else world.num_nodes,
        strategy=strategy,
        precision=precision,
        max_epochs=settings.max_epochs,
        gradient_clip_val=settings.gradient_clip_norm or None,
        callbacks=[recorder],
        plugins=plugins,
        default_root_dir=run_dir,
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        benchmark=accelerator == "gpu",
    )
    _quiet_signals(trainer)
    return host.prepare(trainer) if host else trainer


def _quiet_signals(trainer: L.Trainer) -> None:
    """Lightning answers SIGTERM by a broadcast from inside the signal handler, which can deadlock several processes, and by another one, with
    a wait for the GPU, in every step. The recorder's own answer takes the place of both."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def _write_end(events: EventLog | None, trainer: L.Trainer, **values: Any) -> None:
    if events:
        for path in FINAL_FILES:
            events.write("artifact", step=trainer.global_step, path=path)
        events.write("end", step=trainer.global_step, **values)


@contextmanager
def _sampled(experiment: Experiment, events: EventLog | None, trainer: L.Trainer) -> Iterator[None]:
    """System metrics beside the training, on rank zero. No sample is written behind the event of the run's end."""
    if events is None:
        yield
        return
    sampler = SystemSampler(events, every_s=experiment.tracking.system_metrics_every_s, position=lambda: (trainer.current_epoch, trainer.global_step))
    sampler.start()
    try:
        yield
    finally:
        sampler.stop()


@contextmanager
def _shipped(experiment: Experiment, run_dir: Path, *, ships: bool) -> Iterator[ShippingProcess | None]:
    """Tracking beside the training. Leaving waits for the tracking server for a bounded time."""
    if not ships:
        yield None
        return
    shipping = ShippingProcess(run_dir, experiment.tracking)
    shipping.start()
    try:
        yield shipping
    finally:
        shipping.stop()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning's own notes about loaders and hardware are no news here; its warnings about our choices have been weighed."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")  # torch 2.13 under Lightning 2.6
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", module=r"torch\.(_inductor|distributed)\..*")  # hints to its own makers
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # of the position embedding alone
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
