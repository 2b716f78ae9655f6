"""Sources to a pack: select, decode, drop duplicates, split by patient, write, audit."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..core.contract import PixelContract
from ..core.errors import QuarantineError, SourcesError
from ..storage.scratch import scratch_in
from .archives.open import open_archive
from .attributes import attribute_names
from .audit import Gate, run_gates, write_audit
from .batches import Batch, plan_batches, read_rows
from .decoding import Engine, decode_batches, open_work_folder
from .file_rows import owned
from .file_rows import quarantined as unusable
from .image_table import ImageTable, ImageTableBuilder
from .keep import check_salt, salt_setting
from .lineage import child_settings
from .output import beside, make_way, output_lock, refuse_inside, replacing
from .pack import Pack, seal_pack
from .pack_writer import write_arrays, write_rows
from .placement import place
from .ray_decoding import require_ray
from .selection import Quarantined, Selection, select
from .sources import DICOM_PATIENT, Sources, load_sources, reads, sources_file, sources_from_dict, sources_root, sources_to_dict

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


def prepare(
    sources: Path | str | Sources,
    out: Path | str,
    *,
    root: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int | None = None,
    engine: Engine = "local",
    keep: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PrepareSummary:
    """Make the pack ``out`` from a sources file, or from one folder, archive or .npz.

    ``root``: what the paths in a sources file are relative to, by default its folder. ``settings``: replace values of the sources
    file: image_size_px, channels, max_quarantine_share, near_duplicates, seed. ``workers``: decoding processes, by default one a core.
    ``engine``: ray spreads the decoding over a cluster instead (data.ray_decoding). ``keep``: an earlier pack whose patients stay where
    they are (data.keep).

    The same sources, settings and earlier pack give the byte-identical pack, whatever decodes. Killed at any time and run again, it does not
    decode again what was finished. Raises SourcesError, ArchiveError, QuarantineError, EmptyClassError, PackError or StorageError; then no
    pack is written, and one that stood at ``out`` before still stands.
    """
    start_s = time.monotonic()
    out = Path(out).absolute()
    spec = _override(sources if isinstance(sources, Sources) else load_sources(sources), settings or {})
    root = _root_of(sources, root)
    if engine == "ray":
        require_ray()
    refuse_inside(out, ((root / source.path, reads(source)) for source in spec.sources))
    with output_lock(out), scratch_in(out.parent):
        make_way(out, overwrite=overwrite)
        earlier = None if keep is None else Pack.open(keep)
        if earlier:
            check_salt(earlier, spec.sources)
        selections = _select_all(spec, root, progress)
        job = _Job(spec, selections, out, earlier, progress or (lambda *_: None))
        summary = job.run(partial(decode_batches, workers=workers or os.cpu_count() or 1, engine=engine))
    return replace(summary, time_s=time.monotonic() - start_s)


class _Job:
    """One preparation, under the lock of its output."""

    def __init__(self, spec: Sources, selections: list[Selection], out: Path, earlier: Pack | None, progress: Progress) -> None:
        self.spec, self.selections, self.out, self.earlier, self.progress = spec, selections, out, earlier, progress
        self.contract = PixelContract(image_size_px=spec.image_size_px, channels=spec.channels)
        self.work = beside(out, "work")
        self.source_names = [selection.source.name for selection in selections]
        self.class_names = sorted({name for selection in selections for name in selection.candidates.class_names})

    def run(self, decode: Callable[..., int]) -> PrepareSummary:
        open_work_folder(self.work, self.selections, self.contract)
        batches = plan_batches(self.selections, self.work, self.contract)
        reused = decode(self.selections, batches, self.contract, on_images=self._count_images(batches))
        ignored = sum(selection.ignored for selection in self.selections)
        warnings = _warnings(self.selections)
        with replacing(self.out) as folder:
            images_in, quarantined, kept_warnings = self._fill(folder, batches)
            # The audit needs memory of its own: it does not have to find room beside what is written already.
            self.selections.clear()
            batches.clear()
            fingerprint, gates = self._seal(folder)
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
            ignored=ignored,
            reused=reused,
            warnings=[*warnings, *kept_warnings],
            gates=gates,
            time_s=0.0,
        )

    def _count_images(self, batches: list[Batch]) -> Callable[[int], None]:
        total, done = sum(map(len, batches)), 0

        def on_images(count: int) -> None:
            nonlocal done
            done += count
            self.progress("Decoding", done, total)

        return on_images

    def _collect(self, batches: list[Batch]) -> tuple[ImageTable, list[Quarantined]]:
        """Readable images, sorted by source and path, and everything that is quarantined so far."""
        table = ImageTableBuilder(self.class_names, attribute_names([selection.source for selection in self.selections]))
        quarantined = [entry for selection in self.selections for entry in selection.quarantined]
        candidates = [iter(selection.candidates) for selection in self.selections]
        for number, batch in enumerate(batches):
            candidate = None
            for row in read_rows(batch):
                if candidate is None or candidate.path != row["file"]:  # a volume has several rows
                    candidate = next(candidates[batch.source])
                assert candidate.path == row["file"], "batches follow the order of the candidates"
                if "error" in row:
                    quarantined.append(unusable(self.source_names[batch.source], row))
                else:
                    given = self.selections[batch.source].attributes(candidate) | row.get("attributes", {})
                    table.append(batch.source, owned(candidate, row), row, batch=number, attributes=given)
        images = table.finish()
        images.sort()
        return images, quarantined

    def _fill(self, folder: Path, batches: list[Batch]) -> tuple[int, list[Quarantined], Sequence[str]]:
        """Write manifest, arrays and quarantine; return the images found, what is in the quarantine, and what there is to say about the earlier pack."""
        images, quarantined = self._collect(batches)
        found = len(images) + len(quarantined)  # a volume is several images
        decoded = found - sum(len(selection.quarantined) for selection in self.selections)
        _check_share([q for q in quarantined if q.reason == "unreadable"], decoded, self.spec.max_quarantine_share)
        placed = place(images, self.spec, class_names=self.class_names, source_names=self.source_names, earlier=self.earlier, contract=self.contract)
        quarantined += placed.quarantined
        assert len(images) + len(quarantined) == found, "every image is in the pack or in the quarantine"
        write_rows(folder, images, placed.splits, class_names=self.class_names, source_names=self.source_names)
        write_arrays(folder, batches, images, placed.splits, shape=self.contract.shape, progress=partial(self.progress, "Writing"))
        with open(folder / "quarantine.jsonl", "w", encoding="ascii") as file:
            for entry in sorted(quarantined, key=lambda q: (q.source, q.path)):
                file.write(f"{json.dumps(entry.__dict__, ensure_ascii=True)}\n")
        return found, quarantined, placed.warnings

    def _seal(self, folder: Path) -> tuple[str, list[Gate]]:
        settings = sources_to_dict(self.spec) | salt_setting(self.spec.sources)
        if self.earlier:
            settings = child_settings(self.earlier, settings, step="keep")
        fingerprint = seal_pack(folder, class_names=tuple(self.class_names), contract=self.contract, settings=settings)
        pack = Pack.open(folder)
        gates = run_gates(pack, progress=self.progress)
        write_audit(pack, gates)
        return fingerprint, gates


def _root_of(sources: Path | str | Sources, root: Path | str | None) -> Path:
    if isinstance(sources, Sources):
        return Path(root) if root is not None else Path.cwd()
    if root is not None and sources_file(sources) is None:
        raise SourcesError(f"{sources} is itself the source: it holds no paths for the root {root}.", hint="Leave --root out, or give a sources file.")
    return Path(root) if root is not None else sources_root(sources)


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
        selections.append(select(source, open_archive(root / source.path, reads=reads(source))))
    if progress:
        progress("Listing", len(spec.sources), len(spec.sources))
    found = sorted({name for selection in selections for name in selection.candidates.class_names})
    if not found:
        raise _nothing_found(selections)
    if len(found) < 2:
        raise SourcesError(f"There is only one class, {found[0]!r}.", hint="Two or more are needed: give class patterns, or one folder a class.")
    return selections


def _nothing_found(selections: list[Selection]) -> SourcesError:
    names = ", ".join(selection.source.name for selection in selections)
    if unplaced := [entry for selection in selections for entry in selection.quarantined]:
        return SourcesError(
            f"None of the {len(unplaced)} images in {names} can be used. {unplaced[0].path}: {unplaced[0].detail}.",
            hint="Put the images of each class into a folder of its name and give the folder above; or write a sources file (docs/data.md).",
        )
    hint = "Images are JPEG, PNG or DICOM files in class folders."
    if all(selection.source.patient != DICOM_PATIENT for selection in selections):
        hint += " DICOM files without an ending need a sources file with 'patient: dicom' (docs/data.md)."
    elif any(selection.source.include for selection in selections):
        hint += " Look also at the patterns of 'include'."
    return SourcesError(f"No image was found in {names}, among {sum(selection.ignored for selection in selections)} other files.", hint=hint)


def _check_share(unreadable: list[Quarantined], total: int, allowed: float) -> None:
    if total and len(unreadable) > allowed * total:
        examples = "; ".join(f"{entry.source}: {entry.path}: {entry.detail}" for entry in unreadable[:_EXAMPLES])
        raise QuarantineError(
            f"{len(unreadable)} of {total} images cannot be read ({len(unreadable) / total:.1%}; {allowed:.1%} are allowed): {examples}",
            hint="Convert other formats to PNG, fetch damaged files again, or allow more: --max-quarantine-share.",
        )


def _warnings(selections: list[Selection]) -> list[str]:
    warnings = []
    for selection in selections:
        name = selection.source.name
        if not selection.knows_patients:
            they_say = any(path.lower().endswith((".dcm", ".dicom")) for path in selection.candidates.paths)
            warnings.append(
                f"{name}: nothing tells the patients, so each image counts as its own patient. Splits may share patients unseen: "
                f"say in a sources file who they are ({'patient: dicom takes it from the files; ' if they_say else ''}docs/data.md)."
            )
        if selection.undescribed and selection.source.metadata:
            total, file = len(selection.candidates), selection.source.metadata.file
            warnings.append(f"{name}: {file} says nothing of {selection.undescribed:,} of its {total:,} images.")
        if selection.keeps_splits:
            warnings.append(f"{name}: the splits that it came with are kept.")
        elif selection.source.split == "auto" and any("/train/" in f"/{path}" for path in selection.candidates.paths):
            warnings.append(f"{name}: it has not all of train, val and test, so its images are split anew.")
    return warnings
