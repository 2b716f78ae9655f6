"""Sources to a pack: select, decode, drop duplicates, split by patient, write, audit."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ..core.contract import PixelContract
from ..core.errors import EmptyClassError, QuarantineError, SourcesError
from .archives import open_archive
from .audit import Gate, run_gates, write_audit
from .decoding import Batch, decode_batches, open_work_folder, plan_batches, read_batch
from .duplicates import find_duplicates, later_copies, merge_patients, near_duplicate_groups
from .manifest import SCHEMA, write_manifest
from .output import beside, make_way, output_lock, replacing
from .pack import MANIFEST, Pack, seal_pack
from .selection import Quarantined, Selection, select
from .sources import SPLITS, Sources, load_sources, sources_from_dict, sources_root, sources_to_dict
from .splits import assign_splits

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how many are done, of how many)."""
_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    pack: Path
    fingerprint: str
    images_in: int
    """Images found in the sources: each is in the pack or in the quarantine."""
    counts: Mapping[str, Mapping[str, int]]
    """{split: {class: images}}."""
    patients: Mapping[str, int]
    """{split: patients}."""
    quarantined: Mapping[str, Sequence[Quarantined]]
    """{reason: files}."""
    ignored: int
    """Files that are no images, or that ``include`` leaves out."""
    reused: int
    """Images that an earlier, interrupted run had decoded."""
    warnings: Sequence[str]
    gates: Sequence[Gate]
    time_s: float


@dataclass(frozen=True, slots=True)
class _Image:
    """A readable image on its way into the pack."""

    source: str
    class_name: str
    patient_id: str
    kept_split: str | None
    row: dict[str, Any]
    batch: int

    @property
    def where(self) -> tuple[str, str]:
        return self.source, self.row["path"]


def prepare(
    sources: Path | str | Sources,
    out: Path | str,
    *,
    root: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Make the pack ``out`` from a sources file, or from one folder, archive or .npz.

    ``root``: what the sources' paths are relative to, by default the folder of the sources file. ``settings``: replace values of the sources
    file: image_size_px, channels, max_quarantine_share, near_duplicates, seed. ``workers``: decoding processes, by default one a core.

    The same sources and settings give the byte-identical pack, whatever the number of workers. Killed at any time and run again, it does not
    decode again what was finished. Raises SourcesError, ArchiveError, QuarantineError, EmptyClassError, PackError or StorageError; then no
    pack is written, and one that stood at ``out`` before still stands.
    """
    start_s = time.monotonic()
    out = Path(out).absolute()
    if root is None:
        root = Path.cwd() if isinstance(sources, Sources) else sources_root(sources)
    spec = _override(sources if isinstance(sources, Sources) else load_sources(sources), settings or {})
    with output_lock(out):
        make_way(out, overwrite=overwrite)
        selections = _select_all(spec, Path(root), progress)
        job = _Job(spec, selections, out, workers or os.cpu_count() or 1, progress or (lambda *_: None))
        summary = job.run()
    return replace(summary, time_s=time.monotonic() - start_s)


class _Job:
    """One preparation, under the lock of its output."""

    def __init__(self, spec: Sources, selections: list[Selection], out: Path, workers: int, progress: Progress) -> None:
        self.spec, self.selections, self.out, self.workers, self.progress = spec, selections, out, workers, progress
        self.contract = PixelContract(image_size_px=spec.image_size_px, channels=spec.channels)
        self.work = beside(out, "work")

    def run(self) -> PrepareSummary:
        open_work_folder(self.work, self.selections, self.contract)
        batches = plan_batches(self.selections, self.work)
        reused = self._decode(batches)
        images, quarantined = self._collect(batches)
        total = sum(len(selection.candidates) for selection in self.selections)
        _check_share([q for q in quarantined if q.reason == "unreadable"], total, self.spec.max_quarantine_share)
        images, rejected = _drop_duplicates(images)
        quarantined += rejected
        images, split_patients, rejected = _resolve_near_duplicates(images, self.spec)
        quarantined += rejected
        images_in = total + sum(len(selection.quarantined) for selection in self.selections)
        assert len(images) + len(quarantined) == images_in, "every image is in the pack or in the quarantine"
        class_names = _class_names(self.selections, images)
        splits = _assign(images, split_patients, class_names, self.spec)
        fingerprint, gates = self._write(batches, images, splits, quarantined, class_names)
        shutil.rmtree(self.work, ignore_errors=True)
        by_reason: dict[str, list[Quarantined]] = {}
        for entry in quarantined:
            by_reason.setdefault(entry.reason, []).append(entry)
        pack = Pack.open(self.out)
        return PrepareSummary(
            pack=self.out,
            fingerprint=fingerprint,
            images_in=images_in,
            counts=pack.counts,
            patients=pack.patients,
            quarantined=by_reason,
            ignored=sum(selection.ignored for selection in self.selections),
            reused=reused,
            warnings=_warnings(self.selections),
            gates=gates,
            time_s=0.0,
        )

    def _decode(self, batches: list[Batch]) -> int:
        total, done = sum(len(batch.paths) for batch in batches), 0

        def on_images(count: int) -> None:
            nonlocal done
            done += count
            self.progress("Decoding", done, total)

        return decode_batches(self.selections, batches, self.contract, workers=self.workers, on_images=on_images)

    def _collect(self, batches: list[Batch]) -> tuple[list[_Image], list[Quarantined]]:
        """Readable images, sorted by source and path, and everything that is quarantined so far."""
        images: list[_Image] = []
        quarantined = [entry for selection in self.selections for entry in selection.quarantined]
        candidates = [iter(selection.candidates) for selection in self.selections]
        for number, batch in enumerate(batches):
            source = self.selections[batch.source].source.name
            for row in read_batch(batch).rows:
                candidate = next(candidates[batch.source])
                assert candidate.path == row["path"], "batches follow the order of the candidates"
                if "error" in row:
                    quarantined.append(Quarantined(source, row["path"], "unreadable", row["error"]))
                else:
                    images.append(_Image(source, candidate.class_name, candidate.patient_id, candidate.split, row, number))
        order = {selection.source.name: index for index, selection in enumerate(self.selections)}
        images.sort(key=lambda image: (order[image.source], image.row["path"]))
        return images, quarantined

    def _write(
        self, batches: list[Batch], images: list[_Image], splits: list[str], quarantined: list[Quarantined], class_names: tuple[str, ...]
    ) -> tuple[str, list[Gate]]:
        with replacing(self.out) as folder:
            rows = _write_rows(folder, images, splits)
            self._write_arrays(folder, batches, images, splits, rows)
            lines = [json.dumps(entry.__dict__, ensure_ascii=True) for entry in sorted(quarantined, key=lambda q: (q.source, q.path))]
            (folder / "quarantine.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
            fingerprint = seal_pack(folder, class_names=class_names, contract=self.contract, settings=sources_to_dict(self.spec))
            pack = Pack.open(folder)
            gates = run_gates(pack, progress=self.progress)
            write_audit(pack, gates)
        return fingerprint, gates

    def _write_arrays(self, folder: Path, batches: list[Batch], images: list[_Image], splits: list[str], rows: list[int]) -> None:
        sizes = Counter(splits)
        arrays = {s: npy.open_memmap(folder / f"{s}.npy", mode="w+", dtype=np.uint8, shape=(sizes[s], *self.contract.shape)) for s in SPLITS}
        by_batch: dict[int, list[int]] = {}
        for index, image in enumerate(images):
            by_batch.setdefault(image.batch, []).append(index)
        for number, batch in enumerate(batches):
            members = by_batch.get(number, [])
            pixels = read_batch(batch).pixels if members else None
            for index in members:
                assert pixels is not None
                arrays[splits[index]][rows[index]] = pixels[images[index].row["index"]]
            self.progress("Writing", number + 1, len(batches))
        for array in arrays.values():
            array.flush()


def _override(spec: Sources, settings: Mapping[str, Any]) -> Sources:
    values = sources_to_dict(spec)
    for key, value in settings.items():
        if key == "seed":
            values["split"]["seed"] = value
        else:
            values[key] = value
    return sources_from_dict(values, where="the command line")


def _select_all(spec: Sources, root: Path, progress: Progress | None) -> list[Selection]:
    selections = []
    for index, source in enumerate(spec.sources):
        if progress:
            progress("Listing", index, len(spec.sources))
        selections.append(select(source, open_archive(root / source.path)))
    if progress:
        progress("Listing", len(spec.sources), len(spec.sources))
    found = sorted({candidate.class_name for selection in selections for candidate in selection.candidates})
    if not found:
        raise SourcesError(f"No image was found in {', '.join(source.name for source in spec.sources)}.", hint="Images are JPEG or PNG files in class folders.")
    if len(found) < 2:
        raise SourcesError(f"There is only one class, {found[0]!r}.", hint="Two or more are needed: give class patterns, or one folder a class.")
    return selections


def _check_share(unreadable: list[Quarantined], total: int, allowed: float) -> None:
    if total and len(unreadable) > allowed * total:
        examples = "; ".join(f"{entry.source}: {entry.path}: {entry.detail}" for entry in unreadable[:_EXAMPLES])
        raise QuarantineError(
            f"{len(unreadable)} of {total} images cannot be read ({len(unreadable) / total:.1%}; {allowed:.1%} are allowed): {examples}",
            hint="Fetch them again, or allow more: --max-quarantine-share.",
        )


def _drop_duplicates(images: list[_Image]) -> tuple[list[_Image], list[Quarantined]]:
    rejected = find_duplicates([(image.row["pixels_sha256"], image.class_name) for image in images])
    quarantined = []
    for index, (reason, kept) in rejected.items():
        source, path = images[index].where
        other = ": ".join(images[kept].where)
        detail = f"the same as {other}" if reason == "duplicate" else f"{images[index].class_name} here, {images[kept].class_name} in {other}"
        quarantined.append(Quarantined(source, path, reason, detail))
    return [image for index, image in enumerate(images) if index not in rejected], quarantined


def _class_names(selections: list[Selection], images: list[_Image]) -> tuple[str, ...]:
    wanted = {candidate.class_name for selection in selections for candidate in selection.candidates}
    if empty := sorted(wanted - {image.class_name for image in images}):
        raise EmptyClassError(f"The class {empty[0]!r} has no image left: all are in the quarantine.", hint="Mend its files, or remove the class.")
    return tuple(sorted(wanted))


def _assign(images: list[_Image], split_patients: list[str], class_names: tuple[str, ...], spec: Sources) -> list[str]:
    """``split_patients``: whom each image counts for when splitting. Whoever has an image in a kept split goes there with all the others."""
    index = {name: number for number, name in enumerate(class_names)}
    kept: dict[str, str] = {}
    for image, patient in zip(images, split_patients, strict=True):
        if image.kept_split is not None:
            kept.setdefault(patient, image.kept_split)
    open_ones = [(patient, index[image.class_name]) for image, patient in zip(images, split_patients, strict=True) if patient not in kept]
    splits = assign_splits([patient for patient, _ in open_ones], [label for _, label in open_ones], shares=spec.split, seed=spec.split.seed)
    assigned = {patient: split for (patient, _), split in zip(open_ones, splits, strict=True)}
    return [image.kept_split or kept.get(patient) or assigned[patient] for image, patient in zip(images, split_patients, strict=True)]


def _resolve_near_duplicates(images: list[_Image], spec: Sources) -> tuple[list[_Image], list[str], list[Quarantined]]:
    """The images that go on, whom each counts for when splitting, and the copies that are dropped."""
    patients = [image.patient_id for image in images]
    if spec.near_duplicates == "keep":
        return images, patients, []
    groups = near_duplicate_groups([image.row["perceptual_hash"] for image in images], patients)
    if spec.near_duplicates == "move":
        return images, merge_patients(groups, patients), []
    rejected = later_copies(groups, patients, [image.kept_split for image in images])
    quarantined = [
        Quarantined(*images[index].where, "near-duplicate", f"nearly the same as {': '.join(images[head].where)}") for index, head in rejected.items()
    ]
    kept = [image for index, image in enumerate(images) if index not in rejected]
    return kept, [image.patient_id for image in kept], quarantined


def _write_rows(folder: Path, images: list[_Image], splits: list[str]) -> list[int]:
    """Write the manifest and return each image's row in the array of its split."""
    counter: Counter[str] = Counter()
    rows = []
    for split in splits:
        rows.append(counter[split])
        counter[split] += 1
    order = sorted(range(len(images)), key=lambda i: (SPLITS.index(splits[i]), rows[i]))
    columns: dict[str, list[Any]] = {field.name: [] for field in SCHEMA}
    for i in order:
        image = images[i]
        entry = {key: image.row[key] for key in ("path", "sha256", "perceptual_hash", "width_px", "height_px", "format")}
        entry |= {"image_id": image.row["sha256"][:20], "class_name": image.class_name, "split": splits[i], "row": rows[i]}
        entry |= {"patient_id": image.patient_id, "source": image.source}
        for name, values in columns.items():
            values.append(entry[name])
    assert len(set(columns["image_id"])) == len(images), "80 bits of SHA-256 tell different files apart"
    write_manifest(folder / MANIFEST, columns)
    return rows


def _warnings(selections: list[Selection]) -> list[str]:
    warnings = []
    for selection in selections:
        name = selection.source.name
        if not selection.knows_patients:
            warnings.append(f"{name}: nothing tells the patients, so each image counts as its own patient. Splits may share patients unseen.")
        if selection.keeps_splits:
            warnings.append(f"{name}: the splits that it came with are kept.")
        elif selection.source.split == "auto" and any("/train/" in f"/{c.path}" for c in selection.candidates):
            warnings.append(f"{name}: it has not all of train, val and test, so its images are split anew.")
    return warnings
