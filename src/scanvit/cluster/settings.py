"""What a run on a cluster is given besides its experiment."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..core.config import Experiment
from ..core.errors import ConfigError, RunMissingError
from ..storage.mlflow_client import absolute_uri

TRAVELLING = ("AWS_", "OS_", "ST_", "MLFLOW_TRACKING_", "MLFLOW_S3_")
"""Beginnings of the variables that workers need to reach storage, packs and tracking."""


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    num_workers: int = 1
    """Processes of the run; each trains on its share of the global batch."""
    min_workers: int | None = None
    """Go on with as few where the cluster has no more room, and take in more as it grows. None: always ``num_workers``."""
    resize_every_s: float = 60.0
    """How often such a run looks whether the cluster has grown."""
    use_gpu: bool = False
    resources: Mapping[str, float] = field(default_factory=dict)
    """A worker's, on top of one GPU with ``use_gpu`` and the CPUs that ``cpus`` says."""
    storage: str | None = None
    """s3://BUCKET/FOLDER or a folder that every node sees. None: inside the run folder, for a cluster on this machine."""
    pack: str | None = None
    """Where the run's pack is, as ``packs.source_of`` reads it; noted for a run that is continued elsewhere."""
    name: str | None = None
    """Of the run's folder in the storage. None: the run folder's name and a random key."""
    keep: int = 3
    """Checkpoints of finished epochs with the lowest val_loss that stay in the storage, besides the newest one of any kind."""
    max_failures: int = 3
    """How often lost or failed workers are started again before the run fails."""
    wait_s: float = 600.0
    """How long, in all, the run waits for room on the cluster."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ConfigError(f"The number of workers is {self.num_workers}.", hint="Use 1 or more.")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ConfigError(f"{self.name!r} cannot be a run's name.", hint="Use letters, digits, '.', '_' and '-', at most 100.")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ConfigError(f"The least number of workers is {self.min_workers}, of {self.num_workers}.", hint="Use 1 or more, and at most --num-workers.")
        if not self.resize_every_s > 0:
            raise ConfigError(f"The time between looks for more room is {self.resize_every_s:g} s.", hint="Use a number above 0.")
        if self.keep < 1:
            raise ConfigError(f"The number of checkpoints to keep is {self.keep}.", hint="Use 1 or more.")
        if self.max_failures < -1:
            raise ConfigError(f"The number of failures to survive is {self.max_failures}.", hint="Use 0 or more, or -1 for no limit.")
        if not self.wait_s > 0:
            raise ConfigError(f"The time to wait for the cluster is {self.wait_s:g} s.", hint="Use a number above 0.")

    @property
    def needed_workers(self) -> int:
        """Without so many, the run waits."""
        return self.min_workers or self.num_workers

    def per_worker(self, *, cpus: float) -> dict[str, float]:
        """The resources of one worker; ``cpus`` are those it gets unless told otherwise."""
        return {"CPU": cpus} | ({"GPU": 1.0} if self.use_gpu else {}) | dict(self.resources)

    def settle(self, experiment: Experiment) -> Experiment:
        """With what the cluster decides: so that ``scanvit train RUN/experiment.yaml`` repeats the run with as many processes on one machine.

        Raises ConfigError where the experiment asks for something else.
        """
        decided = replace(experiment.trainer, devices=self.num_workers, num_nodes=1, accelerator="gpu" if self.use_gpu else "cpu")
        for key, hint in _SAID_BY.items():
            asked, value = getattr(experiment.trainer, key), getattr(decided, key)
            if asked not in ("auto", value):
                raise ConfigError(f"trainer.{key} is {asked}, but on the cluster it would be {value}.", hint=f"{hint}; leave trainer.{key} out.")
        return replace(experiment, trainer=decided)


_SAID_BY = {
    "devices": "Say how many processes train with --num-workers",
    "num_nodes": "Ray chooses the nodes of the --num-workers processes",
    "accelerator": "Say that workers train on GPUs with --use-gpu, and without it that they do not",
}
STATE = "cluster.json"
OWN_STORAGE = "ray"
"""The storage of a run that was given none, in its run folder: it goes where that goes."""


def load_settings(run_dir: Path) -> ClusterSettings:
    """Those that a run on a cluster was started with. Raises RunMissingError."""
    file = run_dir / STATE
    if not file.is_file():
        raise RunMissingError(f"{run_dir} is no run on a cluster: it has no {STATE}.", hint="Give the folder that scanvit ray train made.")
    settings = ClusterSettings(**json.loads(file.read_text(encoding="utf-8")))
    if (run_dir / OWN_STORAGE / str(settings.name)).is_dir():  # older versions noted where that was, perhaps before the folder was moved
        settings = replace(settings, storage=None)
    return without_own_storage(settings, run_dir)


def without_own_storage(settings: ClusterSettings, run_dir: Path) -> ClusterSettings:
    """A storage that is the run folder's own counts as none, however it is written."""
    if settings.storage and Path(settings.storage.removeprefix("file://")).expanduser().resolve() == run_dir.resolve() / OWN_STORAGE:
        return replace(settings, storage=None)
    return settings


def parse_resources(text: str) -> dict[str, float]:
    """``"GPU=1,CPU=8"`` -> {"GPU": 1.0, "CPU": 8.0}. Raises ConfigError."""
    resources = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, amount = part.partition("=")
        try:
            value = float(amount)
        except ValueError:
            value = math.nan
        if not equals or not name.strip() or not math.isfinite(value) or value < 0:
            raise ConfigError(f"{part!r} is no resource.", hint="Write NAME=AMOUNT, for example GPU=1,CPU=8.")
        resources[name.strip()] = value
    return resources


def travelling(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that go with a run to its workers. They hold secrets: never shown, logged or written to a file."""
    found = {name: value for name, value in environment.items() if name.startswith(TRAVELLING)}
    return {name: absolute_uri(value) if name == "MLFLOW_TRACKING_URI" else value for name, value in found.items()}  # workers stand in other folders


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """SCANVIT_CACHE, or ``~/.cache/scanvit``: a node's copies of packs and the folders of running workers."""
    chosen = (os.environ if environment is None else environment).get("SCANVIT_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "scanvit"
