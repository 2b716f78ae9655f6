"""Retraining with new data: a slice of one class's final_eval pool, which no training has seen, moves into train, val and test."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..core.errors import ConfigError, DataError, SourcesError
from ..storage.scratch import scratch_in, spooled
from .array_file import array_files
from .audit import Gate, run_gates, write_audit
from .columns import encode
from .lineage import child_settings, lineage
from .manifest import ROW_GROUP_IMAGES, SCHEMA, manifest_writer
from .output import make_way, output_lock, replacing
from .pack import MANIFEST, Pack, seal_pack
from .pack_writer import rows_in_splits, split_sizes
from .sources import SPLITS, SplitConfig, sources_from_dict
from .splits import assign_splits

_POOL = SPLITS.index("final_eval")
_TEXTS = [field.name for field in SCHEMA if field.type == pa.string() and field.name != "split"]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The k-th of n parts of a pool, written k/n."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, kw_only=True)
class ExtendSummary:
    pack: Path
    fingerprint: str
    moved_patients: int
    moved: Mapping[str, int]
    """{split: images that it gained}."""
    left_patients: int
    """Patients of the class who are still in the pool."""
    counts: Mapping[str, Mapping[str, int]]
    patients: Mapping[str, int]
    gates: Sequence[Gate]
    time_s: float


def parse_slice(text: str) -> Slice:
    """Raises ConfigError for what is not k/n with 1 <= k <= n <= 1000."""
    match = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text.strip())
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of <= 1000:
        raise ConfigError(f"{text!r} is no slice.", hint="Write the third of ten as 3/10; the first is 1/10.")
    return Slice(number=number, of=of)


def slice_patients(patients: Sequence[str], part: Slice, *, used: Sequence[int], class_name: str, seed: int) -> list[str]:
    """Who of a pool is in the slice ``part``, where the slices ``used`` have left it already.

    The pool, in an order given by a hash of (seed, class, patient), is dealt out to the unused slices in turn. Taking a slice away leaves
    the others as they were, so all slices of a pool are disjoint, together complete, and differ by at most one patient, in whatever
    order they are taken. Patients who joined or left the pool since are dealt out likewise: the last slice takes whoever is left.
    """
    open_slices = [number for number in range(1, part.of + 1) if number not in used]
    order = sorted(set(patients), key=lambda patient: hashlib.blake2b(f"{seed}:{class_name}:{patient}".encode(), digest_size=16).digest())
    return order[open_slices.index(part.number) :: len(open_slices)]


def extend(pack: Path | str, out: Path | str, *, class_name: str, part: Slice, overwrite: bool = False) -> ExtendSummary:
    """Make the pack ``out`` from ``pack``, with one slice of a class's final_eval patients in train, val and test.

    A patient moves with all images, also those of other classes, and belongs to the pool of each class that they have an image of. Those who
    move are dealt out so that the totals meet the pack's own shares of train, val and test (7:2:1 where it does not say). Whoever is in
    train, val or test already stays there, and in the same row of the array. The slice is recorded in the lineage and cannot be taken twice;
    when all n slices were taken, a new round of n begins with the patients who joined the pool since.

    Pixels are copied, not decoded anew. Raises ConfigError for an unknown class or a slice that was used, DataError for an empty one,
    PackError or StorageError; then nothing is written, and a pack that stood at ``out`` before still stands.
    """
    start_s = time.monotonic()
    out = Path(out).absolute()
    parent = Pack.open(pack)
    with output_lock(out), scratch_in(out.parent):
        make_way(out, overwrite=overwrite)
        before = np.repeat(np.arange(len(SPLITS), dtype=np.int8), [parent.size(split) for split in SPLITS])
        moves, left = _choose(parent, before, class_name, part)
        after = _reassign(parent, before, moves)
        step = {"step": "extend", "class": class_name, "slice": part.number, "of": part.of}
        settings = child_settings(parent, parent.settings, **step)
        with replacing(out) as folder:
            _write_manifest(folder, parent, before, after)
            _write_arrays(folder, parent, before, after)
            if (parent.path / "quarantine.jsonl").is_file():
                shutil.copyfile(parent.path / "quarantine.jsonl", folder / "quarantine.jsonl")
            fingerprint = seal_pack(folder, class_names=parent.class_names, contract=parent.contract, settings=settings)
            child = Pack.open(folder)
            gates = run_gates(child, acknowledged=parent.acknowledged())
            write_audit(child, gates)
    child, gained = Pack.open(out), split_sizes(after[moves])
    return ExtendSummary(
        pack=out,
        fingerprint=fingerprint,
        moved_patients=parent.patients["final_eval"] - child.patients["final_eval"],
        moved={split: gained[split] for split in SPLITS if split != "final_eval"},
        left_patients=left,
        counts=child.counts,
        patients=child.patients,
        gates=gates,
        time_s=time.monotonic() - start_s,
    )


def _choose(pack: Pack, split: np.ndarray, class_name: str, part: Slice) -> tuple[np.ndarray, int]:
    """The rows of the manifest that move, bool (N,), and how many patients of the class stay in the pool."""
    if class_name not in pack.class_names:
        raise ConfigError(f"{pack.path} has no class {class_name!r}.", hint=f"Classes: {', '.join(pack.class_names)}.")
    used = _used_slices(pack, class_name, part.of)
    if part.number in used:
        left = [number for number in range(1, part.of + 1) if number not in used]
        raise ConfigError(
            f"The slice {part} of {class_name!r} is in {pack.path} already.",
            hint=f"Slices left: {', '.join(f'{number}/{part.of}' for number in left)}.",
        )
    pool = pack.rows("final_eval", "patient_id", "class_name")
    patients = pool.filter(pc.equal(pool["class_name"], class_name))["patient_id"].to_pylist()
    if not patients:
        raise DataError(f"No patient of {class_name!r} is left in final_eval of {pack.path}.", hint="Add images, or set more aside: split.final_eval.")
    chosen = slice_patients(patients, part, used=used, class_name=class_name, seed=_split_config(pack).seed)
    if not chosen:
        raise DataError(f"The slice {part} of {class_name!r} is empty: only {len(set(patients))} patients are left.", hint="Take larger slices.")
    moves = split == _POOL
    moves[moves] = pc.is_in(pool["patient_id"], value_set=pa.array(chosen)).to_numpy()
    return moves, len(set(patients)) - len(chosen)


def _used_slices(pack: Pack, class_name: str, of: int) -> list[int]:
    """Of the round that is going on."""
    used: list[int] = []
    for step in lineage(pack):
        if step.get("step") == "extend" and step.get("class") == class_name and step.get("of") == of:
            used = [*used, int(step["slice"])] if len(used) < of else [int(step["slice"])]
    return used if len(used) < of else []


def _reassign(pack: Pack, before: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """The splits with those who move dealt out; the pool itself takes no part."""
    part = np.flatnonzero((before != _POOL) | moves)
    classes = spooled((pack.class_codes(batch["class_name"]) for batch in pack.reader.batches("class_name")), np.int16)
    patients = encode(pack.reader.strings("patient_id")).take(part)
    config = _split_config(pack)
    shares = SplitConfig(train=config.train, val=config.val, test=config.test, final_eval=0, seed=config.seed)
    kept = np.where(moves, np.int8(-1), before)
    dealt = before.copy()
    dealt[part] = assign_splits(patients, classes[part], shares=shares, seed=config.seed, kept=kept[part])
    return np.where(moves, dealt, before)


def _split_config(pack: Pack) -> SplitConfig:
    values: Any = pack.settings.get("split")
    if values is None:
        return SplitConfig()
    try:
        return sources_from_dict({"sources": [{"name": "any", "path": "."}], "split": values}).split
    except (SourcesError, ConfigError) as cause:
        raise DataError(f"{pack.path} has split settings that cannot be used: {cause.message}", hint="Prepare the pack again.") from None


def _order(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The rows of the old manifest in the order of the new one: in each split, whoever was there first."""
    return np.lexsort((np.arange(len(after)), before != after, after))


def _write_manifest(folder: Path, parent: Pack, before: np.ndarray, after: np.ndarray) -> None:
    order, reader = _order(before, after), parent.reader
    rows = rows_in_splits(after[order])
    texts = {name: reader.strings(name) for name in (*_TEXTS, *parent.attributes)}
    numbers = {name: spooled((batch[name].to_numpy() for batch in reader.batches(name)), np.int32) for name in ("width_px", "height_px")}
    with manifest_writer(folder / MANIFEST, parent.attributes) as write:
        for start in range(0, len(order), ROW_GROUP_IMAGES):
            chosen = order[start : start + ROW_GROUP_IMAGES]
            columns: dict[str, Any] = {name: column.take(pa.array(chosen)).cast(pa.string()) for name, column in texts.items()}
            columns |= {name: column[chosen] for name, column in numbers.items()}
            write(columns | {"split": [SPLITS[code] for code in after[chosen].tolist()], "row": rows[start : start + ROW_GROUP_IMAGES]})


def _write_arrays(folder: Path, parent: Pack, before: np.ndarray, after: np.ndarray) -> None:
    order = _order(before, after)
    rows = np.empty(len(order), np.int64)
    rows[order] = rows_in_splits(after[order])
    start = 0
    with array_files(folder, split_sizes(after), parent.contract.shape) as files:
        for split in SPLITS:
            for piece in parent.pieces(split):
                here = slice(start, start + len(piece))
                for code, target in enumerate(SPLITS):
                    members = np.flatnonzero(after[here] == code)
                    if len(members):
                        files[target].put(rows[here][members], piece if len(members) == len(piece) else piece[members])
                start += len(piece)
