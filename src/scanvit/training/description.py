"""What a run is, as the first events of its record and as files beside it: settings, environment, machine, data set, tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import __version__
from ..core.config import Experiment
from ..core.events import EventLog
from ..core.loading import experiment_to_dict
from ..core.runtime import World, describe_environment, gpu_info
from ..data.pack import Pack
from ..storage.atomic import write_json, write_text


def open_events(experiment: Experiment, pack: Pack, run_dir: Path, checkpoint: Path | None) -> EventLog:
    """The run's record, begun with what describes the run, or reopened where it continues from ``checkpoint``."""
    events = EventLog(run_dir)
    environment = describe_environment()
    write_json(run_dir / "environment.json", environment)
    write_text(run_dir / "gpu-info.txt", gpu_info())
    if checkpoint is None:
        world_size = World.from_environment().world_size
        events.write("start", experiment=experiment_to_dict(experiment), fingerprint=experiment.data.fingerprint, world_size=world_size)
        events.write("tags", **_tags(experiment, pack, environment))
        events.write("dataset", **describe_pack(pack))
    else:
        events.write("resume", checkpoint=checkpoint.name)
    for path in ("experiment.yaml", "environment.json", "gpu-info.txt"):  # of a continued run, those of the machine that it continues on
        events.write("artifact", path=path)
    return events


def describe_pack(pack: Pack) -> dict[str, Any]:
    """Plain data: what the data set was, with the verdict of its audit at this moment."""
    gates = pack.audit()
    return {
        "name": pack.path.resolve().name,
        "path": str(pack.path.resolve()),
        "fingerprint": pack.fingerprint,
        "shape": list(pack.contract.shape),
        "counts": {split: dict(counts) for split, counts in pack.counts.items()},
        "patients": dict(pack.patients),
        "audit": {str(gate["gate"]): str(gate["verdict"]) for gate in gates},
        "audit_verdict": audit_verdict(gates),
    }


def audit_verdict(gates: list[dict[str, Any]]) -> str:
    """fail, acknowledged or pass: the worst of the gates; "not audited" where there are none."""
    verdicts = {gate.get("verdict") for gate in gates}
    return next((verdict for verdict in ("fail", "acknowledged") if verdict in verdicts), "pass" if gates else "not audited")


def _tags(experiment: Experiment, pack: Pack, environment: dict[str, Any]) -> dict[str, Any]:
    tags = {
        "scanvit.version": __version__,
        "scanvit.experiment": experiment.name,
        "scanvit.fingerprint": experiment.data.fingerprint or "",
        "scanvit.audit": audit_verdict(pack.audit()),
        "mlflow.note.content": experiment.description,
    }
    if environment["git_commit"]:
        tags["mlflow.source.git.commit"] = environment["git_commit"]
    return {key: value for key, value in tags.items() if value}
