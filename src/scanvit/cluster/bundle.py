"""A run's state on its way through the storage: what a worker on another node needs to go on as if nothing had happened.

A bundle is a folder with the files below and, written last, ``bundle.json`` with their SHA-256: one without it, or with a file that does not
fit, was never finished and is passed over. The events go with the checkpoint, so that after a restart no step is missing from them and none is
in twice; ``tracking.json`` goes along, so that they keep going to the same MLflow run.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ClusterStorageError
from ..storage.atomic import write_json
from ..storage.checksum import sha256_file
from .storage import Storage, insist

_log = logging.getLogger(__name__)

MANIFEST = "bundle.json"
LAST = "checkpoints/last.ckpt"
# tracking.json before events.jsonl: it must never be ahead of the events that it counts.
FILES = ("tracking.json", "environment.json", "gpu-info.txt", "events.jsonl", "checkpoint.pth", "checkpoints/best.ckpt", LAST)
_NOTES = "checkpoint_manager_snapshot.json"
_APPENDED = {"events.jsonl"}


def snapshot(run_dir: Path, folder: Path, *, step: int) -> Path:
    """Hold a running run's files still in ``folder``: by other names for the same bytes, since all but the events are replaced, never changed."""
    for name in FILES:
        source, target = run_dir / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in _APPENDED:
                shutil.copyfile(source, target)
            else:
                os.link(source, target)
    write_json(folder / MANIFEST, {"format": 1, "step": step})
    return folder


def upload(folder: Path, storage: Storage, values: Mapping[str, Any], *, names: Sequence[str] = FILES) -> None:
    """Bring the files of ``folder`` to ``storage``, its manifest with ``values`` last. Raises OSError."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in names if (folder / name).is_file()}
    manifest = {"format": 1, "files": files} | dict(values)
    storage.make()
    for parent in sorted({os.path.dirname(name) for name in files} - {""}):
        storage.below(parent).make()
    for name in files:
        storage.upload(folder / name, name)
    storage.write(MANIFEST, json.dumps(manifest, indent=2).encode())


def read_manifest(storage: Storage) -> dict[str, Any] | None:
    """None for a bundle that is not complete. Raises OSError where the storage cannot be read."""
    try:
        manifest = json.loads(storage.read(MANIFEST))
        return manifest if isinstance(manifest["files"], dict) and isinstance(manifest["step"], int) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def newest(storage: Storage) -> list[tuple[Storage, dict[str, Any]]]:
    """The complete bundles of a run, the one with most steps first."""

    def look() -> list[tuple[Storage, dict[str, Any]]]:
        places = [storage.below(name) for name in storage.folders() if name.startswith("checkpoint")]  # as Ray names them
        found = [(place, manifest) for place in places if (manifest := read_manifest(place)) is not None]
        return sorted(found, key=lambda pair: (pair[1]["step"], pair[0].path), reverse=True)

    return insist(look, what=f"Reading {storage.address}")


def download(storage: Storage, manifest: Mapping[str, Any], run_dir: Path, *, names: Sequence[str] = FILES) -> str | None:
    """Put a bundle's files into ``run_dir``. Returns what is wrong with it, or None where every byte is right."""
    for name in names:
        expected = manifest["files"].get(name)
        if expected is None:
            continue
        temporary = run_dir / f"{name}.arriving"
        try:
            insist(lambda name=name, temporary=temporary: storage.download(name, temporary), what=f"Reading {storage.address}/{name}")  # type: ignore[misc]
        except FileNotFoundError:
            return f"{name} is missing"
        if sha256_file(temporary) != expected["sha256"]:
            temporary.unlink()
            return f"{name} fails its checksum"
        os.replace(temporary, run_dir / name)
    return None


def forget_broken_notes(storage: Storage) -> None:
    """Remove Ray Train's own notes about a run's checkpoints where it would refuse them: cut short with the controller that wrote them, of
    another version of Ray, or naming a checkpoint that is gone. The bundles do not need them."""
    import ray

    if not storage.exists(_NOTES):
        return
    try:
        notes = json.loads(storage.read(_NOTES))
        there = set(storage.folders())
        whole = notes["ray_version"] == ray.__version__ and all(result["checkpoint_dir_name"] in there for result in notes["checkpoint_results"])
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        _log.warning("Ray's notes about the checkpoints in %s are damaged or of another version, and not used.", storage.address)
        storage.delete(_NOTES)


def sweep(storage: Storage) -> None:
    """Remove, at a run's end, the checkpoints that Ray Train does not count: of workers that died before it had heard of them. Raises OSError."""
    try:
        counted = {result["checkpoint_dir_name"] for result in json.loads(storage.read(_NOTES))["checkpoint_results"]}
    except (ValueError, KeyError, TypeError):
        return
    for name in storage.folders():
        if name.startswith("checkpoint_") and name not in counted:
            storage.below(name).delete_folder()


def restore(storage: Storage, run_dir: Path, *, say: Callable[[str], None]) -> int | None:
    """Fill ``run_dir`` from the newest bundle that is whole: its optimizer step, or None where the run has none yet.

    ``say`` is told of those that are not. Raises ClusterStorageError where there are bundles but every one is damaged: starting over must be
    somebody's decision.
    """
    damaged = []
    for place, manifest in newest(storage):
        fault = download(place, manifest, run_dir) if LAST in manifest["files"] else f"it holds no {LAST}"
        if fault is None:
            return int(manifest["step"])
        say(f"the checkpoint of step {manifest['step']} in {place.address} is damaged: {fault}; the one before it is used")
        damaged.append(place)
        for name in FILES:
            (run_dir / name).unlink(missing_ok=True)
    if damaged:
        raise ClusterStorageError(
            f"Every checkpoint in {storage.address} is damaged.", hint="Remove that folder and the run folder to train from the beginning, or restore a copy."
        )
    return None
