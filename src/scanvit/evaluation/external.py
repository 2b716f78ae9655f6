"""A run judged on data of another pack: its classes mapped, images that the run knows left out, and what has shifted said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..core.errors import ConfigError, DataError, PackMismatchError, RunMissingError
from ..storage.atomic import write_text
from .calibrate import calibrate_checkpoint, is_current
from .evaluate import Progress as Stages
from .evaluate import judge_trust, report_path, training_cost
from .image_facts import judged_images, judged_originals, manifest_rows
from .inference import Progress, default_processes
from .own_pack import find_own_pack
from .predictions import Predictions, concatenate, predict_split
from .report import render_report
from .saliency import Case
from .scores import Scores
from .scoring import Detail, score_on_pack
from .shift import measure_shift

if TYPE_CHECKING:
    from ..data.pack import Pack
    from ..model.checkpoint import Classifier

Shared = Literal["drop", "refuse"]
"""Images that the run was trained on or chosen by: leave them out, or judge nothing."""
_BLIND = "Copies that were cropped, turned or squeezed are not found."
_KNOWN_SPLITS = ("train", "val")
"""Of the run's own pack: what it learned from, and what its weights were chosen by."""


@dataclass(frozen=True, kw_only=True)
class External:
    """What a run said about the images of another pack that it can be judged on."""

    name: str
    """external-NAME: stands in the names of the files where a split's name stands otherwise."""
    predictions: Predictions
    notes: list[str]
    """What was left out, and what could not be checked."""


def external_name(pack: Path) -> str:
    """``external-NAME`` after the pack's folder: letters, digits, '.', '_' and '-'."""
    return "external-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", pack.resolve().name).strip("-.") or "pack")


def map_classes(theirs: Sequence[str], own: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str | None]:
    """{class of the pack: class of the run, or None where its images are left out}. ``mapping``: what the user gave, '' for left out.

    Identical names need no mapping. Raises ConfigError for a name that does not exist, and where a class is left without one.
    """
    if unknown := next((name for name in mapping if name not in theirs), None):
        raise ConfigError(f"--map {unknown}=...: the pack has no class {unknown!r}.", hint=f"Its classes: {', '.join(theirs)}.")
    if wrong := next((f"{name}={to}" for name, to in mapping.items() if to and to not in own), None):
        raise ConfigError(f"--map {wrong}: the run knows no class {wrong.split('=', 1)[1]!r}.", hint=f"Its classes: {', '.join(own)}.")
    mapped = {name: mapping.get(name, name) or None for name in theirs}
    if open_names := [name for name, to in mapped.items() if to is not None and to not in own]:
        options = " ".join(f"--map {name}=CLASS" for name in open_names)
        raise ConfigError(
            f"The run knows no class named {', '.join(map(repr, open_names))}; its classes are {', '.join(own)}.",
            hint=f"Say which each is: {options}; or leave its images out: --map {open_names[0]}=",
        )
    if not any(mapped.values()):
        raise ConfigError("Every class of the pack is left out.", hint="Map at least one: --map THEIRS=OWN")
    return mapped


def check_contract(model: Classifier, pack: Pack) -> None:
    """Raises PackMismatchError where the pack's images are not of the size and channels that the network takes. Packs hold pixels as they are, 0..255:
    the network normalises them by its own contract."""
    wanted, found = model.contract, pack.contract
    if (wanted.shape, wanted.resample) != (found.shape, found.resample):
        shown = " and ".join(f"{c.image_size_px} px with {c.channels} channel{'s' if c.channels > 1 else ''}" for c in (found, wanted))
        raise PackMismatchError(
            f"The images of {pack.path} are not what the network takes: {shown.replace(' and ', ', and the network takes ')}.",
            hint=f"Prepare them anew: scanvit data prepare SOURCES --image-size {wanted.image_size_px} --channels {wanted.channels} -o PACK",
        )


def predict_external(
    model: Classifier,
    pack: Pack,
    *,
    own_pack: Pack | None,
    data: ExternalData,
    processes: int = 1,
    progress: Progress | None = None,
) -> External:
    """``own_pack``: what the run was trained on, to find images that stand in both.

    Raises ConfigError, DataError, PackMismatchError, CheckpointError.
    """
    check_contract(model, pack)
    mapped = map_classes(pack.class_names, model.class_names, data.mapping)
    splits = [data.split] if data.split else [name for name in pack.counts if pack.size(name)]
    tables = [predict_split(model, pack, name, processes=processes, progress=progress) for name in splits]
    predictions = concatenate(tables)
    target_of = np.array([-1 if (to := mapped[name]) is None else model.class_names.index(to) for name in pack.class_names])
    predictions = replace(predictions, targets=target_of[predictions.targets])
    notes = [_mapping_note(mapped)] if any(name != to for name, to in mapped.items()) else []
    keep = predictions.targets >= 0
    if left := int((~keep).sum()):
        names = ", ".join(name for name, to in mapped.items() if to is None)
        notes.append(f"{left:,} images of the classes that were left out ({names}) are not judged.")
    if own_pack is None:
        notes.append("The pack that the run was trained on was not found: nobody looked for images that stand in both. Give it: --own-pack PACK")
    else:
        known, note = _known_images(own_pack, pack, predictions.image_ids, keep, data.shared)
        keep &= ~known
        notes.append(note)
    if not keep.any():
        raise DataError(f"No image of {pack.path} is left to judge.", hint=" ".join(notes))
    return External(name=external_name(pack.path), predictions=predictions.take(np.flatnonzero(keep).tolist()), notes=notes)


def _mapping_note(mapped: Mapping[str, str | None]) -> str:
    return "Classes were mapped: " + ", ".join(f"{name} to {to or 'nothing'}" for name, to in mapped.items()) + "."


def _known_images(own: Pack, other: Pack, image_ids: Sequence[str], asked: npt.NDArray[np.bool_], shared: Shared) -> tuple[npt.NDArray[np.bool_], str]:
    same, near = find_known_images(own, other, image_ids)
    same, near = same & asked, near & asked
    known: npt.NDArray[np.bool_] = same | near
    if not known.any():
        return known, "No image of it, nor a near copy of one, was among the images that the run was trained on or chosen by. " + _BLIND
    count = f"{int(known.sum()):,} of the {int(asked.sum()):,} images ({int(same.sum()):,} by their bytes, {int((near & ~same).sum()):,} as near copies)"
    if shared == "refuse":
        raise DataError(
            f"{count} of {other.path} are among the images that the run was trained on or chosen by.",
            hint="Leave them out with --shared drop, or give a pack without them.",
        )
    return known, f"{count} were left out: the run was trained on them, or its weights chosen by them. {_BLIND}"


def find_known_images(own: Pack, other: Pack, image_ids: Sequence[str]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which of the images of ``other`` stand in train or val of ``own``: (by SHA-256 of the file, by perceptual hash), bool (N,) each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from ..data.near_duplicates import find_near_duplicates, parse_hashes

    rows = other.columns("sha256", "perceptual_hash").take(manifest_rows(other, image_ids))
    trained = pa.concat_tables([own.rows(split, "sha256", "perceptual_hash") for split in _KNOWN_SPLITS])
    same = pc.is_in(rows["sha256"], value_set=trained["sha256"].combine_chunks()).to_numpy()
    hashes = parse_hashes([*trained["perceptual_hash"].to_pylist(), *rows["perceptual_hash"].to_pylist()])
    members, heads = find_near_duplicates(hashes).members()
    ours = np.unique(heads[members < len(trained)])
    copies = members[(members >= len(trained)) & np.isin(heads, ours)] - len(trained)
    near = np.zeros(len(rows), bool)
    near[copies] = True
    return same, near


@dataclass(frozen=True, kw_only=True)
class ExternalData:
    """What to judge a run on, and how."""

    pack: Path
    split: str | None = None
    """None: all of the pack, since the run knows none of it."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    """{class of the pack: class of the run, '' to leave its images out}; identical names map by themselves."""
    own_pack: Path | None = None
    """Where the run's own pack is now, if it was moved."""
    shared: Shared = "drop"


def evaluate_external(
    run_dir: Path,
    data: ExternalData,
    *,
    processes: int | None = None,
    draws: int = 2000,
    seed: int = 0,
    detail: Detail | None = None,
    originals: Path | None = None,
    progress: Stages | None = None,
) -> Scores:
    """Score a run on another pack than its own; write predictions-external-NAME.parquet, scores- and report-external-NAME into the run.

    Raises RunMissingError, CheckpointError, ConfigError, DataError, PackError.
    """
    from ..data.pack import Pack
    from ..model.checkpoint import load_model
    from ..model.registered import FILE_NAME

    if not run_dir.is_dir():
        raise RunMissingError(f"There is no run folder {run_dir}.", hint="Give the folder that `scanvit train` made.")
    model, pack = load_model(run_dir), Pack.open(data.pack)
    pack.verify([data.split] if data.split else [split for split in pack.counts if pack.size(split)])
    own_pack = find_own_pack(model, data.own_pack, option="--own-pack")
    told = progress or (lambda *_: None)
    if own_pack and not is_current(model.calibration):
        calibrate_checkpoint(run_dir / FILE_NAME, own_pack, progress=partial(told, "Calibrating"))
        model = load_model(run_dir)
    processes = processes or default_processes()
    judged = predict_external(model, pack, own_pack=own_pack, data=data, processes=processes, progress=partial(told, "Judging"))
    predictions, notes = judged.predictions, [*judged.notes, *_open_findings(model)]
    about: dict[str, Any] = {"run": run_dir.resolve().name, "experiment": str(model.experiment.get("name", "")), "split": judged.name}
    about |= {"audit": pack.findings(), "cost": training_cost(run_dir, model)}
    scores = score_on_pack(predictions, pack, about=about, detail=detail or Detail(), draws=draws, seed=seed)
    own = _own_test(run_dir, model, own_pack, processes=processes)
    if own is None:
        notes.append("What has shifted is not told: the run has no predictions of its own test split, and its pack was not found.")
    shift = measure_shift(own, predictions, draws=draws, seed=seed) if own else None
    trust, cases = None, list[Case]()
    if is_current(model.calibration):
        images, readings = judged_images(pack, predictions.image_ids), detail.readings if detail else None
        trust, cases = judge_trust(model, images, predictions, draws=draws, seed=seed, progress=told, readings=readings)
    else:
        why = "what was fitted on val is of an earlier version of scanvit" if model.calibration else "it was never calibrated"
        notes.append(f"What its answers can be trusted with is not told: {why}, and its pack was not found. Give it: --own-pack PACK")
    scores = replace(scores, notes=notes, shift=shift, trust=trust)
    found = judged_originals(pack, predictions.image_ids, [case.row for case in cases], originals) if originals else {}
    rendered = render_report(scores, predictions, pack=pack, run_dir=run_dir, experiment=model.experiment, cases=cases, originals=found)
    predictions.save(run_dir / f"predictions-{judged.name}.parquet")
    scores.save(run_dir)
    write_text(report_path(run_dir, judged.name), rendered.report)
    return scores


def _open_findings(model: Classifier) -> list[str]:
    """The scores carry the audit of these images; what did not pass for those that the network learned from holds for every answer of it."""
    told = [f"{gate.get('title') or gate.get('gate')} ({gate.get('verdict')})" for gate in model.audit]
    return [f"The audit of the data that the network was trained on has open findings: {', '.join(told)}."] if told else []


def is_own_pack(run_dir: Path, pack: Path) -> bool:
    """Was the run trained on this very pack? Raises CheckpointError, PackError."""
    from ..data.pack import Pack
    from ..model.checkpoint import load_model

    return Pack.open(pack).fingerprint == load_model(run_dir).fingerprint


def _own_test(run_dir: Path, model: Classifier, own_pack: Pack | None, *, processes: int) -> Predictions | None:
    """The run's own test predictions: those it holds, if these weights made them, or new ones."""
    file = run_dir / "predictions-test.parquet"
    if file.is_file():
        held = Predictions.load(file)
        if (held.fingerprint, held.checkpoint, held.temperature) == (model.fingerprint, dict(model.metrics), model.temperature):
            return held
    return predict_split(model, own_pack, "test", processes=processes) if own_pack and own_pack.size("test") else None
