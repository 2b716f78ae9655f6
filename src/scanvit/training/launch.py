"""From a command to a run: open its folder, check its pack, and start ``fit`` in this process or in several new ones.

Three ways lead to several processes: ``trainer.devices`` starts them on this machine; ``trainer.num_nodes`` and NODE_RANK, MASTER_ADDR,
MASTER_PORT on each of several; or a launcher such as ``torchrun`` has started this very process as one of them.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.config import Experiment, TrainerConfig
from ..core.errors import ConfigError, ProcessLostError, StalledError
from ..core.loading import experiment_to_dict
from ..core.runtime import World, available_devices
from ..data.pack import Pack
from .imports import quick_imports
from .processes import Node, run_processes
from .result import FitResult
from .run_folder import bind, locked, open_run, refuse_idle_processes
from .worker import Job

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

_USED_SPLITS = ("train", "val")


def launch(experiment: Experiment, pack: Pack, run_dir: Path, *, show_progress: bool = False, max_restarts: int = 0) -> FitResult:
    """Start a run, or continue an unfinished one with the same recipe, in as many processes as the experiment asks for.

    ``max_restarts``: how often all processes are started again from the newest checkpoint after one of several was lost or stalled.

    Raises PackMismatchError, PackCorruptError, RunExistsError, RunError for a run that another process trains, ConfigError for a world that
    is not the experiment's or has more processes than there are images, ProcessLostError, StalledError, and what ``fit`` raises.
    """
    experiment = bind(experiment, pack)
    if World.is_launched():
        return _take_part(experiment, pack, run_dir, show_progress=show_progress)
    node = _this_node(experiment.trainer, os.environ)
    refuse_idle_processes(pack, node.processes * node.nodes)
    with ExitStack() as opened:
        lock = _open(opened, experiment, run_dir) if node.rank == 0 else None
        pack.verify(_USED_SPLITS)
        if node.processes * node.nodes == 1:
            with quick_imports():
                from .fit import fit

            return fit(experiment, pack, run_dir, show_progress=show_progress)
        job = Job(
            experiment=experiment_to_dict(experiment),
            pack=str(pack.path),
            run_dir=str(run_dir),
            show_progress=show_progress,
            verbose=log.isEnabledFor(logging.DEBUG),
            # The processes keep the lock too: should this one be killed, nobody else may write before the last of them has ended.
            keep_fds=() if lock is None else (lock,),
        )
        return _with_restarts(job, node, experiment, max_restarts=max_restarts)


def _with_restarts(job: Job, node: Node, experiment: Experiment, *, max_restarts: int) -> FitResult:
    for restarts in range(max_restarts + 1):
        try:
            result = run_processes(job, node, patience_s=experiment.tracking.drain_timeout_s)
            return FitResult(**result | {"run_dir": Path(result["run_dir"])})
        except (ProcessLostError, StalledError) as error:
            if restarts == max_restarts:
                raise type(error)(error.message, hint=f"Go on from the newest checkpoint with: scanvit train --resume {job.run_dir}") from None
            log.warning("%s Starting again from the newest checkpoint (%d of at most %d times).", error.message, restarts + 1, max_restarts)
    raise AssertionError("unreachable")


def _open(opened: ExitStack, experiment: Experiment, run_dir: Path) -> int:
    """Lock the run folder and make or check it; the lock's descriptor."""
    lock = opened.enter_context(locked(run_dir))
    open_run(run_dir, experiment)
    return lock


def _take_part(experiment: Experiment, pack: Pack, run_dir: Path, *, show_progress: bool) -> FitResult:
    """This process is one of a launcher's. The first one opens the run; the others meet it when the process group is made."""
    world = World.from_environment()
    asked = experiment.trainer.devices
    if (asked != "auto" and asked != world.local_world_size) or experiment.trainer.num_nodes not in (1, world.num_nodes):
        raise ConfigError(
            f"The launcher started {world.local_world_size} processes on each of {world.num_nodes} machines, but trainer.devices is {asked} and "
            f"trainer.num_nodes is {experiment.trainer.num_nodes}.",
            hint="Leave both out (of a run that goes on, set trainer.devices=auto and trainer.num_nodes=1): under a launcher its own numbers hold.",
        )
    refuse_idle_processes(pack, world.world_size)
    with quick_imports():
        from .fit import fit

    with ExitStack() as opened:
        if world.rank == 0:
            _open(opened, experiment, run_dir)
        if world.local_rank == 0:
            pack.verify(_USED_SPLITS)
        return fit(experiment, pack, run_dir, show_progress=show_progress)


def _this_node(settings: TrainerConfig, environment: Mapping[str, str]) -> Node:
    """Raises ConfigError where several machines are asked for and nobody says which one this is."""
    processes = settings.devices if settings.devices != "auto" else available_devices(settings.accelerator)[1]
    if settings.num_nodes == 1:
        return Node(processes=processes)
    names = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    example = "For example: NODE_RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 scanvit train ..., and NODE_RANK=1 on the second machine."
    try:
        rank, address, port = (environment[name] for name in names)
        node = Node(processes=processes, nodes=settings.num_nodes, rank=int(rank), address=address, port=int(port))
    except KeyError as missing:
        raise ConfigError(f"trainer.num_nodes is {settings.num_nodes}, but {missing.args[0]} is not set.", hint=example) from None
    except ValueError as error:
        raise ConfigError(f"NODE_RANK and MASTER_PORT must be whole numbers: {error}.", hint=example) from None
    if not 0 <= node.rank < node.nodes:
        raise ConfigError(f"NODE_RANK is {node.rank}, but there are {node.nodes} machines: 0 to {node.nodes - 1}.", hint=example)
    return node
