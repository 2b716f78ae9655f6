"""The audit: gates that a pack passes or fails, each with a figure. It reads the pack alone, so it holds for any pack."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.errors import ConfigError, PackCorruptError
from ..storage.atomic import write_json
from .pack import Pack
from .sources import SPLITS

FORMAT = 1
CONFOUNDING_V = 0.3
"""Cramer's V from which source and class count as confounded: Cohen's medium effect for one degree of freedom."""
SOLE_SOURCE = 0.95
"""Share of a class from one source from which the class is named in the detail."""
TINY_CLASS_IMAGES = 5
"""Below this many images of a class in a split no figure for the class means anything."""
_EXAMPLES = 3


@dataclass(frozen=True)
class Gate:
    gate: str
    title: str
    verdict: Literal["pass", "fail", "acknowledged"]
    figure: float
    """Its unit stands in ``detail``."""
    detail: str
    reason: str | None = None
    """Of an acknowledged gate, in the words of the person who did so."""


class AuditInput:
    """The columns that gates look at, in the order of the manifest."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        manifest = pack.manifest
        self.split, self.split_names = _codes(manifest["split"])
        self.source, self.source_names = _codes(manifest["source"])
        self.class_of, self.class_names = _codes(manifest["class_name"])
        self.patient, self.patient_names = _codes(manifest["patient_id"])
        self.paths = manifest["path"]

    def pixel_groups(self) -> np.ndarray:
        """int64 (N,): the same number for images with identical pixels."""
        digests = np.empty(len(self.split), dtype="V16")
        position = 0
        for split in SPLITS:
            for image in self.pack.images(split):
                digests[position] = np.void(hashlib.blake2b(image.tobytes(), digest_size=16).digest())
                position += 1
        return np.unique(digests.view(np.uint64).reshape(-1, 2), axis=0, return_inverse=True)[1].reshape(-1)


def run_gates(pack: Pack, *, acknowledged: Mapping[str, str] | None = None) -> list[Gate]:
    """Every gate's verdict. A failed gate with a reason in ``acknowledged`` becomes acknowledged."""
    view, reasons = AuditInput(pack), acknowledged or {}
    gates = [check(view) for check in GATES]
    return [replace(g, verdict="acknowledged", reason=reasons[g.gate]) if g.verdict == "fail" and g.gate in reasons else g for g in gates]


def audit(path: Path | str, *, acknowledge: Mapping[str, str] | None = None) -> list[Gate]:
    """Judge a pack anew and write its audit.json. Reasons given earlier are kept, new ones are added."""
    pack = Pack.open(path)
    reasons = _earlier_reasons(pack) | dict(acknowledge or {})
    gates = run_gates(pack, acknowledged=reasons)
    if unknown := sorted(set(acknowledge or {}) - {gate.gate for gate in gates}):
        raise ConfigError(f"There is no gate {unknown[0]!r}.", hint=f"Gates: {', '.join(gate.gate for gate in gates)}.")
    write_audit(pack.path, gates)
    return gates


def write_audit(folder: Path, gates: list[Gate]) -> None:
    write_json(folder / "audit.json", {"format": FORMAT, "gates": [asdict(gate) for gate in gates]})


def gate_patients(view: AuditInput) -> Gate:
    """G1: a patient in two splits."""
    title = "No patient in two splits"
    spread = _groups_in_two_splits(view.patient, view.split)
    sources = view.pack.settings.get("sources", [])
    unknown = [str(source["name"]) for source in sources if not source.get("patient") and not source.get("patients")]
    if len(spread):
        names = ", ".join(str(view.patient_names[index]) for index in spread[:_EXAMPLES])
        return Gate("G1", title, "fail", float(len(spread)), f"{len(spread)} patients have images in two splits or more: {names}.")
    if unknown:
        detail = f"Nothing tells the patients of {', '.join(unknown)}: each image counts as its own, and a patient may stand in two splits unseen."
        return Gate("G1", title, "fail", 0.0, detail)
    return Gate("G1", title, "pass", 0.0, f"0 of {len(view.patient_names)} patients have images in two splits.")


def gate_identical_pixels(view: AuditInput) -> Gate:
    """G2: identical pixels in two splits."""
    title = "No identical images in two splits"
    groups = view.pixel_groups()
    spread = _groups_in_two_splits(groups, view.split)
    if not len(spread):
        return Gate("G2", title, "pass", 0.0, f"0 of {len(groups)} images have the same pixels as one in another split.")
    examples = [" = ".join(str(view.paths[int(row)]) for row in np.flatnonzero(groups == group)[:2]) for group in spread[:_EXAMPLES]]
    return Gate("G2", title, "fail", float(len(spread)), f"{len(spread)} pictures stand in two splits or more: {'; '.join(examples)}.")


def gate_confounding(view: AuditInput) -> Gate:
    """G4: how well the source tells the class, as Cramer's V of the table of classes and sources (Cramer 1946, section 21.9)."""
    title = "The source does not give the class away"
    counts = np.zeros((len(view.class_names), len(view.source_names)), np.int64)
    np.add.at(counts, (view.class_of, view.source), 1)
    if len(view.source_names) < 2:
        return Gate("G4", title, "pass", 0.0, "One source alone: there is nothing to confound within this pack.")
    value = cramers_v(counts)
    share, main = counts.max(axis=1) / counts.sum(axis=1), counts.argmax(axis=1)
    sole = [f"{view.class_names[k]} ({share[k]:.0%} from {view.source_names[main[k]]})" for k in np.flatnonzero(share >= SOLE_SOURCE)]
    detail = f"Cramer's V of class and source is {value:.2f} (0: independent, 1: the one gives the other; fails from {CONFOUNDING_V})."
    if sole:
        detail += f" Almost only from one source: {', '.join(sole)}."
    return Gate("G4", title, "fail" if value >= CONFOUNDING_V else "pass", round(value, 4), detail)


def gate_tiny_classes(view: AuditInput) -> Gate:
    """G6: empty or tiny classes in train, val or test."""
    title = "Every class has images in every split"
    pack = view.pack
    small = [
        f"{name} in {split}: {pack.counts[split][name]}"
        for split in ("train", "val", "test")
        for name in pack.class_names
        if pack.counts[split][name] < TINY_CLASS_IMAGES
    ]
    smallest = min(pack.counts[split][name] for split in ("train", "val", "test") for name in pack.class_names)
    if not small:
        return Gate("G6", title, "pass", float(smallest), f"The smallest class has {smallest} images in a split.")
    return Gate("G6", title, "fail", float(smallest), f"Fewer than {TINY_CLASS_IMAGES} images: {', '.join(small)}.")


GATES: tuple[Callable[[AuditInput], Gate], ...] = (gate_patients, gate_identical_pixels, gate_confounding, gate_tiny_classes)
"""In the order in which they are shown."""


def cramers_v(counts: np.ndarray) -> float:
    """Association of the rows and columns of a table of counts, 0..1; 0 where one of them does not vary."""
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0].astype(np.float64)
    smaller = min(counts.shape) - 1
    if smaller < 1:
        return 0.0
    total = counts.sum()
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / total
    return float(min(np.sqrt(((counts - expected) ** 2 / expected).sum() / (total * smaller)), 1.0))


def _groups_in_two_splits(groups: np.ndarray, split: np.ndarray) -> np.ndarray:
    pairs = np.unique(np.stack([groups, split]), axis=1)
    names, splits = np.unique(pairs[0], return_counts=True)
    return names[splits > 1]


def _codes(column: Any) -> tuple[np.ndarray, list[str]]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()


def _earlier_reasons(pack: Pack) -> dict[str, str]:
    try:
        return {str(gate["gate"]): str(gate["reason"]) for gate in pack.audit() if gate.get("reason")}
    except (PackCorruptError, KeyError):
        return {}  # a damaged audit.json is written anew; what it acknowledged has to be said again
