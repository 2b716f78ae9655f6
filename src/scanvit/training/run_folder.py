"""The run folder: made once, continued until it is finished, never shared by two runs or two processes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

from ..core.config import Experiment, TrackingConfig
from ..core.errors import ConfigError, PackMismatchError, RunError, RunExistsError, RunMissingError
from ..core.events import read_events
from ..core.loading import experiment_from_dict, experiment_to_dict, experiment_to_yaml, flatten, load_experiment, parse_yaml, read_text
from ..data.pack import Pack
from ..storage.atomic import remove_leftovers, storage_errors, write_text
from ..storage.workplace import is_at
from .tracking_state import FILE_NAME as TRACKING

SETTINGS = "experiment.yaml"
_BESIDE = {".lock", ".tracking.lock", TRACKING}
"""What may lie in a folder before its run begins."""
_PLACE = frozenset({"data.pack"})  # the same pack in another place
_HOW = ("devices", "num_nodes", "threads", "timeout_s", "checkpoint_every_s", "log_every_n_steps", "eval_batch_size")
_MAY_CHANGE = _PLACE | {f"trainer.{key}" for key in _HOW} | {f"tracking.{field.name}" for field in fields(TrackingConfig)}
"""What a run may go on with otherwise than it began: where and how it is computed and watched, never what is computed (docs/reliability.md)."""


def bind(experiment: Experiment, pack: Pack) -> Experiment:
    """The experiment with the pack's place and fingerprint filled in. Raises PackMismatchError where it names another fingerprint."""
    wanted = experiment.data.fingerprint
    if wanted and wanted != pack.fingerprint:
        raise PackMismatchError(
            f"{pack.path} has the fingerprint {pack.fingerprint[:12]}, but the experiment was made on {wanted[:12]}.",
            hint="Use the pack that it was made on, or start a new run on this one with --pack.",
        )
    return replace(experiment, data=replace(experiment.data, pack=str(pack.path.resolve()), fingerprint=pack.fingerprint))


def refuse_idle_processes(pack: Pack, processes: int) -> None:
    """Raises ConfigError where a process would have no image to train or to validate on. Of an empty split ``fit`` tells more."""
    for split in ("train", "val"):
        if 0 < (images := pack.size(split)) < processes:
            ways = "trainer.devices, trainer.num_nodes; on a cluster --num-workers"
            hint = f"Train in at most {images} processes ({ways}), or prepare a pack with more images in {split}."
            raise ConfigError(f"{pack.path} has {images} images in {split} for {processes} processes: each needs one.", hint=hint)


def open_run(run_dir: Path, experiment: Experiment) -> bool:
    """Make the run folder, or take up an unfinished run with the same recipe: whether it continues one. What may change on the way (other
    processes, other tracking) is written down by ``note_settings``, once it has proved possible.

    Raises RunExistsError for a finished run, for one with other settings, and for a folder with anything else in it.
    """
    if (run_dir / SETTINGS).is_file():
        refuse_other_settings(run_dir, experiment, may_differ=_MAY_CHANGE)
        if is_finished(run_dir):
            raise RunExistsError(f"{run_dir} holds a finished run.", hint="Choose another --run-dir, or leave it out for a new one.")
        return True
    for name in (SETTINGS, TRACKING):  # of a start that was killed
        remove_leftovers(run_dir / name)
    if run_dir.is_dir() and any(path.name not in _BESIDE for path in run_dir.iterdir()):
        raise RunExistsError(f"{run_dir} is not empty and holds no run.", hint="Choose another --run-dir, or leave it out for a new one.")
    write_text(run_dir / SETTINGS, experiment_to_yaml(experiment))
    return False


def note_settings(run_dir: Path, experiment: Experiment) -> None:
    """Write down with what an opened run goes on, for ``--resume``. The pack's place stays the one that the run began with."""
    if (run_dir / SETTINGS).is_file():
        recorded = load_run(run_dir)
        experiment = replace(experiment, data=recorded.data)
        if experiment == recorded:
            return
    write_text(run_dir / SETTINGS, experiment_to_yaml(experiment))


def load_run(run_dir: Path) -> Experiment:
    """The resolved experiment of a run. Raises RunMissingError, ConfigError."""
    return load_experiment(str(_settings_file(run_dir)))


def load_tracking(run_dir: Path) -> TrackingConfig:
    """How a run is tracked. Its other settings may be of another version, or beyond today's bounds. Raises RunMissingError, ConfigError."""
    path = _settings_file(run_dir)
    values = parse_yaml(read_text(path, error=ConfigError), where=str(path))
    return experiment_from_dict({"tracking": values.get("tracking", {})}, where=str(path)).tracking


def _settings_file(run_dir: Path) -> Path:
    if not (run_dir / SETTINGS).is_file():
        raise RunMissingError(f"{run_dir} is no run: it has no {SETTINGS}.", hint="Give the folder that scanvit train made.")
    return run_dir / SETTINGS


def is_finished(run_dir: Path) -> bool:
    """Whether the training came to its end: by its epochs or by early stopping."""
    return any(event["kind"] == "end" and event["values"].get("status") == "finished" for event in read_events(run_dir))


@contextmanager
def locked(run_dir: Path) -> Iterator[int]:
    """Keep every other process out of the run folder. The lock goes with the process, however it ends, and with those that were handed
    the descriptor that this gives.

    Raises RunError where another process has it, and RunMissingError in place of whatever goes wrong once somebody took the folder away.
    """
    with storage_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        if not _take(descriptor, fcntl.LOCK_EX, tries=3):  # someone may be looking whether it is free
            raise RunError(f"{run_dir} is being trained by another process.", hint="Wait for it to end, or choose another --run-dir.")
        try:
            yield descriptor
        except Exception as error:
            if is_at(descriptor, run_dir / ".lock"):
                raise
            hint = "If it was moved, go on with it where it is now. If it was deleted, begin again: the same command makes a new one."
            raise RunMissingError(f"{run_dir} was deleted or moved while it was at work.", hint=hint) from error
    finally:
        os.close(descriptor)


def is_being_trained(run_dir: Path) -> bool:
    """Whether a process on this machine holds the run folder."""
    try:
        descriptor = os.open(run_dir / ".lock", os.O_RDONLY)  # who looks may have no right to write
    except OSError:
        return False
    try:
        return not _take(descriptor, fcntl.LOCK_SH, tries=1)
    finally:
        os.close(descriptor)


def _take(descriptor: int, kind: int, *, tries: int) -> bool:
    for left in reversed(range(tries)):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except OSError:
            if left:
                time.sleep(0.05)
    return False


def refuse_other_settings(run_dir: Path, experiment: Experiment, *, may_differ: Collection[str] = _PLACE) -> None:
    """Raises RunExistsError where the folder was made with other settings; the pack may have moved."""
    old, new = flatten(experiment_to_dict(load_run(run_dir))), flatten(experiment_to_dict(experiment))
    for key in new:
        if key not in may_differ and old.get(key) != new[key]:
            raise RunExistsError(
                f"{run_dir} holds a run with {key} = {old.get(key)}, not {new[key]}.",
                hint=f"Choose another --run-dir, or continue that run unchanged: scanvit train --resume {run_dir}",
            )
