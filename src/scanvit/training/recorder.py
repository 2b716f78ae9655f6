"""The one callback of a run: events, checkpoints, early stopping and the orderly answer to SIGTERM."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from ..core.config import TrainerConfig
from ..core.errors import CheckpointError, DivergedError, PreemptedError, RunError
from ..core.events import EventLog
from ..core.loading import experiment_to_dict, flatten
from ..model.checkpoint import save_checkpoint
from ..model.registered import FILE_NAME
from .arrivals import Arrivals
from .checkpoints import Writer, on_host, promote, replace_by_link
from .host import Host, Saved
from .module import ClassificationModule
from .progress import Progress
from .world import Council, make_sums_repeatable, refuse_unlike_experiments

log = logging.getLogger(__name__)


class RunRecorder(Checkpoint):
    """Derives from Lightning's ``Checkpoint`` because those callbacks see an epoch's end after the module has.

    Only rank zero writes events and shows progress; saving and stopping are decided by all ranks together.
    """

    def __init__(self, run_dir: Path, *, events: EventLog | None, progress: Progress, audit: list[dict[str, Any]], host: Host | None = None) -> None:
        """``events`` is None on every rank but zero. ``audit``: the pack's findings, carried into ``checkpoint.pth``."""
        self.run_dir, self.events, self.progress, self.audit = run_dir, events, progress, audit
        self.host = host
        self.folder = run_dir / "checkpoints"
        self.writer, self.arrivals = Writer(), Arrivals()
        self.best_val_loss, self.best_epoch = math.inf, 0
        self.terminated = self.interrupted = False
        self._is_stepping = False
        self._saved_at = self._window_at = self._epoch_at = self._steps_end_at = time.monotonic()
        self._window_images = self._epoch_images = 0
        self._train_time_s = self._checkpoint_time_s = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_val_loss": self.best_val_loss,
            "best_epoch": self.best_epoch,
            "train_time_s": self._train_time_s,
            "checkpoint_time_s": self._checkpoint_time_s,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_val_loss, self.best_epoch = state_dict["best_val_loss"], state_dict["best_epoch"]
        self._train_time_s, self._checkpoint_time_s = state_dict["train_time_s"], state_dict.get("checkpoint_time_s", 0.0)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._has_best = (self.folder / "best.ckpt").exists()
        self.council = Council(timeout_s=self._settings(pl_module).timeout_s)
        assert isinstance(pl_module, ClassificationModule)
        # Here, before networks of unlike shapes are tied together.
        refuse_unlike_experiments(self.council.gather(flatten(experiment_to_dict(pl_module.experiment))))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM as a request to write a checkpoint at the next step's end, and stop; and an interrupt from the keyboard, where nobody else
        hears it. Signals come to the main thread alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signal.SIGTERM: signal.signal(signal.SIGTERM, self._on_sigterm)}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_sigint)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        make_sums_repeatable(trainer.strategy.model)
        _refuse_unlike_processes(self.council.gather((trainer.global_step, trainer.precision)))
        if self._lacks_best():
            log.warning("%s is missing. The run ends without it unless a later epoch is better than epoch %d.", self.run_dir / FILE_NAME, self.best_epoch)
        self._saved_at = self._window_at = self._epoch_at = time.monotonic()
        assert isinstance(pl_module, ClassificationModule)
        trainer.should_stop = self._patience_is_over(trainer, pl_module.position.epoch)  # true where the run was killed just after that decision
        step = pl_module.schedule_step(trainer.global_step)
        self.progress.start(steps_per_epoch=pl_module.steps_per_epoch, max_epochs=int(trainer.max_epochs or 0), step=step)
        self._is_stepping = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_at = self._window_at = time.monotonic()
        self._epoch_images = self._window_images = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        images = len(batch[0]) * trainer.world_size
        self._window_images += images
        self._epoch_images += images
        assert isinstance(pl_module, ClassificationModule)
        self.progress.advance(pl_module.schedule_step(trainer.global_step))
        if trainer.global_step % self._settings(pl_module).log_every_n_steps == 0:
            self._record_step(trainer, outputs["loss"])
        self.arrivals.collect()
        self.writer.check()
        if trainer.is_last_batch:
            self.arrivals.collect(wait=True)
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)  # once an epoch: its steps are at their end when the device says so
            self._steps_end_at = time.monotonic()
            return  # validation comes next, and the epoch's end saves
        due = trainer.is_global_zero and time.monotonic() - self._saved_at >= self._settings(pl_module).checkpoint_every_s
        if self.host:
            due = (due and self.host.has_room(True)) or self._is_requested(self.host)
        if self.council.any(due or self.terminated):
            self._save(trainer)
            if self.host:
                self._finish_writing()
                self.host.on_checkpoint(Saved(epoch=pl_module.position.epoch, step=trainer.global_step, metrics=None))
            self._stop_if_terminated(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ClassificationModule)
        epoch, metrics = pl_module.position.epoch, pl_module.epoch_metrics
        improved = metrics["val_loss"] < self.best_val_loss
        if improved:
            self.best_val_loss, self.best_epoch = metrics["val_loss"], epoch
        elapsed_s = time.monotonic() - self._epoch_at
        self._train_time_s += elapsed_s
        # last.ckpt comes last: killed anywhere before, the run takes the epoch's end again and writes the same once more.
        # Where no epoch has given a number yet, the first is kept all the same. A best one that somebody deleted is not replaced by a worse one.
        is_kept = improved or (self.best_epoch == 0 and not self.council.any(trainer.is_global_zero and self._has_best))
        if is_kept:
            with self._counting():
                trainer.save_checkpoint(self.folder / "best.ckpt")
                if trainer.is_global_zero:
                    self._has_best = True
                    self._export(pl_module, epoch=epoch, step=trainer.global_step)
        if trainer.is_global_zero:
            images_per_s = self._epoch_images / max(self._steps_end_at - self._epoch_at, 1e-9)
            metrics = metrics | {"epoch_time_s": elapsed_s, "train_time_s": self._train_time_s, "checkpoint_time_s": self._checkpoint_time_s}
            metrics["images_per_s"] = images_per_s
            if self.events:
                self.events.metrics(metrics, epoch=epoch, step=trainer.global_step)
            self.progress.epoch(epoch, metrics, best=improved)
        self._save(trainer, like=self.folder / "best.ckpt" if is_kept else None)
        if self.host and self.council.any(trainer.is_global_zero and self.host.has_room(False)):
            self._finish_writing()
            self.host.on_checkpoint(Saved(epoch=epoch, step=trainer.global_step, metrics=metrics))
        self._stop_if_terminated(trainer)
        trainer.should_stop = trainer.should_stop or self._patience_is_over(trainer, epoch)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._is_stepping = False
        self.writer.close()
        self.progress.stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._is_stepping = False
        self._finish_writing()
        self.writer.close()
        self.progress.stop()

    @staticmethod
    def _settings(module: L.LightningModule) -> TrainerConfig:
        assert isinstance(module, ClassificationModule)
        return module.experiment.trainer

    def _record_step(self, trainer: L.Trainer, loss: Tensor) -> None:
        assert isinstance(trainer.lightning_module, ClassificationModule)
        images, self._window_images = self._window_images, 0
        epoch = trainer.lightning_module.position_at(trainer.global_step - 1).epoch
        self.arrivals.send(loss, partial(self._write_step, step=trainer.global_step, epoch=epoch, lr=_lr(trainer), images=images))

    def _write_step(self, loss: float, *, step: int, epoch: int, lr: float, images: int) -> None:
        now = time.monotonic()
        images_per_s, self._window_at = images / max(now - self._window_at, 1e-9), now
        self.progress.rate(images_per_s, loss)
        if self.events:
            self.events.metrics({"train_loss_step": loss, "lr": lr}, epoch=epoch, step=step)

    def _save(self, trainer: L.Trainer, *, like: Path | None = None) -> None:
        """Write last.ckpt, and keep the one before. ``like``: a checkpoint of this very moment, to take over."""
        with self._counting():
            self.arrivals.collect(wait=True)
            if like is None:
                trainer.save_checkpoint(self.folder / "next.ckpt")  # all ranks: it has a barrier inside
            elif trainer.is_global_zero:
                self.writer.do(replace_by_link, like, self.folder / "next.ckpt")
            if trainer.is_global_zero:
                self.writer.do(promote, self.folder)
        self._saved_at = self._window_at = time.monotonic()
        self._window_images = 0

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Time that training waits for a checkpoint."""
        start = time.monotonic()
        yield
        self._checkpoint_time_s += time.monotonic() - start

    def refuse_without_best(self) -> None:
        """Raises DivergedError or CheckpointError where a training that has come to its end leaves nothing to be used."""
        if not math.isfinite(self.best_val_loss):
            raise DivergedError("Training diverged: val_loss was never a number.", hint="Begin a new run with a lower optimizer.lr.")
        if self._lacks_best():
            raise CheckpointError(
                f"{self.run_dir / FILE_NAME}, the weights of the best epoch ({self.best_epoch}), was deleted, and no later epoch was better.",
                hint=f"Bring a copy back, then: scanvit train --resume {self.run_dir}. Without one, begin a new run.",
            )

    def _lacks_best(self) -> bool:
        """Whether a best epoch is known whose weights somebody took away. On rank zero alone, where they are written."""
        return self.best_epoch > 0 and self.events is not None and not (self.run_dir / FILE_NAME).exists()

    def _finish_writing(self) -> None:
        with self._counting():
            self.writer.wait()

    def _export(self, module: ClassificationModule, *, epoch: int, step: int) -> None:
        """Write ``checkpoint.pth``: the weights for use, with all that is needed to use them rightly."""
        keys = ("val_loss", "val_accuracy")
        weights, arrived = on_host(module.evaluated.state_dict())
        self.writer.do(arrived)
        self.writer.do(
            save_checkpoint,
            self.run_dir / FILE_NAME,
            state_dict=weights,
            class_names=module.class_names,
            contract=module.contract,
            experiment=experiment_to_dict(module.experiment),
            fingerprint=module.experiment.data.fingerprint or "",
            audit=self.audit,
            metrics={"epoch": epoch, "step": step} | {k: module.epoch_metrics[k] for k in keys},
        )

    def _patience_is_over(self, trainer: L.Trainer, epoch: int) -> bool:
        patience = self._settings(trainer.lightning_module).early_stopping_patience
        return bool(patience) and epoch - self.best_epoch >= patience

    def _on_sigterm(self, signum: int, frame: Any) -> None:
        self.terminated = True  # acted on at the next step's end, when no rank is inside a collective

    def _on_sigint(self, signum: int, frame: Any) -> None:
        if self.interrupted or not self._is_stepping:
            raise KeyboardInterrupt
        self.terminated = self.interrupted = True
        log.warning("Stopping after this step, with a checkpoint. Interrupt again not to wait.")

    def _is_requested(self, host: Host) -> bool:
        request = host.request()
        self.terminated = self.terminated or request == "stop"
        return request != "go on"

    def _stop_if_terminated(self, trainer: L.Trainer) -> None:
        if self.council.any(self.terminated):
            self._finish_writing()
            raise PreemptedError(
                f"Training was asked to stop and wrote a checkpoint at step {trainer.global_step}.",
                hint=f"Go on with: scanvit train --resume {self.run_dir}",
            )


def _refuse_unlike_processes(starts: list[tuple[int, str]]) -> None:
    """``starts``: (step, precision) by rank."""
    for rank, (step, precision) in enumerate(starts):
        if step != starts[0][0]:
            hint = "Every machine has to see the same run folder: share it."
            raise RunError(f"Process 0 starts at step {starts[0][0]}, but process {rank} at step {step}.", hint=hint)
        if precision != starts[0][1]:
            hint = "Their machines differ: choose for all of them, --set trainer.precision=32-true."
            raise RunError(f"Process 0 trains in {starts[0][1]}, but process {rank} in {precision}.", hint=hint)


def _lr(trainer: L.Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])
