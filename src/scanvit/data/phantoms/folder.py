"""A folder of phantom patients: nine classes of drawn chest X-rays and B-scans, with flaws planted on purpose.

    DIR/chest/CLASS/phantom-0001_1.png     DIR/metadata.csv   path, class, patient_id, age, sex, flaw
    DIR/oct/CLASS/phantom-0201-1.jpeg      DIR/sources.yaml   for ``scanvit data prepare DIR/sources.yaml -o PACK``

Age, sex, file format, pose and exposure are drawn apart from the class, so that none of them gives it away.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from PIL import Image

from ...core.errors import ConfigError, DataError, StorageError
from ...core.runtime import derive_seed
from ...storage.atomic import atomic_folder, remove_leftovers
from ..output import output_lock
from ..workers import worker_pool
from . import chest, oct

CHEST_CLASSES = {f"lung-{finding}": finding for finding in chest.FINDINGS}
OCT_CLASSES = {f"lung-oct-{finding}": finding for finding in oct.FINDINGS}
CLASS_NAMES = tuple(sorted(CHEST_CLASSES | OCT_CLASSES))

Flaw = Literal["truncated", "empty", "no-image", "duplicate", "duplicate-other-patient"]

_BATCH_PATIENTS = 4
_NOTE = b"This file is no image, whatever its name says.\n"


@dataclass(frozen=True, kw_only=True)
class PhantomSummary:
    """What ``draw_phantoms`` wrote."""

    images: int
    """Whole images, without the planted duplicates."""
    patients: int
    classes: Mapping[str, int]
    """{class: whole images}."""
    flaws: Mapping[str, int]
    """{kind of planted flaw: files}, on top of ``images``."""
    bytes: int
    """Of all image files."""


@dataclass(frozen=True, kw_only=True)
class _Patient:
    patient_id: str
    class_name: str
    extension: Literal["png", "jpeg"]
    images: int
    age: int
    sex: Literal["F", "M"]
    seed: int

    def path(self, number: int, extension: str | None = None) -> str:
        """Of the patient's image ``number`` (from 1) inside the folder."""
        joint = "-" if self.class_name in OCT_CLASSES else "_"
        return f"{_folder_of(self.class_name)}/{self.patient_id}{joint}{number}.{extension or self.extension}"

    def image(self, number: int, extension: str | None = None) -> bytes:
        """The file of image ``number``: a pure function of the patient."""
        image_seed = derive_seed(self.seed, number)
        if self.class_name in OCT_CLASSES:
            pixels = oct.draw_oct(OCT_CLASSES[self.class_name], patient_seed=self.seed, image_seed=image_seed)
        else:
            pixels = chest.draw_chest(CHEST_CLASSES[self.class_name], patient_seed=self.seed, image_seed=image_seed)
        picture = Image.fromarray(pixels)
        stream = io.BytesIO()
        if (extension or self.extension) == "png":
            picture.save(stream, "PNG", compress_level=1)
        else:
            picture.save(stream, "JPEG", quality=80 + image_seed % 16)
        return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class _Planted:
    """A flawed file, filed under ``patient``."""

    flaw: Flaw
    patient: _Patient
    path: str
    data: bytes


def draw_phantoms(
    out: Path | str,
    *,
    patients_per_class: int,
    seed: int = 0,
    flaws: bool = True,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> PhantomSummary:
    """Draw ``patients_per_class`` phantom patients of each of the nine classes, two to four images each, into the new folder ``out``.

    ``flaws``: plant truncated, empty and text files, and byte-identical copies within and across patients of a class; the column ``flaw`` of
    metadata.csv names each. ``progress`` is called with (images drawn, images). ``workers``: drawing processes, by default one a core.

    The same arguments give byte-identical files for one version of Pillow, whatever the number of workers. The folder appears when it is
    complete. Raises ConfigError for a count below 1, StorageError where ``out`` exists or cannot be written, and
    PackError where another process is writing it.
    """
    out = Path(out).absolute()
    if patients_per_class < 1:
        raise ConfigError(f"patients_per_class is {patients_per_class}.", hint="Draw at least one patient of each class.")
    if os.path.lexists(out):
        raise StorageError(f"{out} already exists.", hint="Choose a new folder, or remove that one first.")
    patients = _plan(patients_per_class, seed)
    with output_lock(out), _new_folder(out) as folder:
        for class_name in CLASS_NAMES:
            (folder / _folder_of(class_name)).mkdir(parents=True)
        size_bytes = _draw_all(patients, folder, workers or os.cpu_count() or 1, progress or (lambda *_: None))
        planted = _plant(patients, folder, seed) if flaws else []
        _write_metadata(patients, planted, folder / "metadata.csv")
        _write_sources(folder / "sources.yaml")
    classes: Counter[str] = Counter()
    for patient in patients:
        classes[patient.class_name] += patient.images
    return PhantomSummary(
        images=classes.total(),
        patients=len(patients),
        classes=dict(classes),
        flaws=dict(Counter(file.flaw for file in planted)),
        bytes=size_bytes + sum(len(file.data) for file in planted),
    )


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    remove_leftovers(out)  # of a killed run; the lock keeps other writers away
    with atomic_folder(out) as folder:
        yield folder


def _folder_of(class_name: str) -> str:
    return f"{'oct' if class_name in OCT_CLASSES else 'chest'}/{class_name}"


def _plan(patients_per_class: int, seed: int) -> list[_Patient]:
    patients: list[_Patient] = []
    for class_name in CLASS_NAMES:
        for index in range(patients_per_class):
            patient_seed = derive_seed("phantom", seed, class_name, index)
            rng = np.random.default_rng(derive_seed(patient_seed, "card"))
            patients.append(
                _Patient(
                    patient_id=f"phantom-{len(patients) + 1:04d}",
                    class_name=class_name,
                    extension="png" if rng.random() < 0.4 else "jpeg",
                    images=int(rng.integers(2, 5)),
                    age=int(rng.integers(21, 90)),
                    sex="F" if rng.random() < 0.5 else "M",
                    seed=patient_seed,
                )
            )
    return patients


def _draw_all(patients: Sequence[_Patient], folder: Path, workers: int, progress: Callable[[int, int], None]) -> int:
    """Write every patient's images; returns their bytes."""
    batches = [patients[start : start + _BATCH_PATIENTS] for start in range(0, len(patients), _BATCH_PATIENTS)]
    total, done, size_bytes = sum(patient.images for patient in patients), 0, 0
    for images, written_bytes in _batches_drawn(batches, folder, workers):
        done, size_bytes = done + images, size_bytes + written_bytes
        progress(done, total)
    return size_bytes


def _batches_drawn(batches: Sequence[Sequence[_Patient]], folder: Path, workers: int) -> Iterator[tuple[int, int]]:
    # Starting processes takes longer than drawing a handful of patients.
    if workers <= 1 or len(batches) <= 2:
        yield from (_draw_batch(batch, folder) for batch in batches)
        return
    try:
        with worker_pool(min(workers, len(batches))) as pool:
            for future in as_completed([pool.submit(_draw_batch, batch, folder) for batch in batches]):
                yield future.result()
    except BrokenProcessPool:
        raise DataError("A drawing process was killed, most likely because the machine ran out of memory.", hint="Run it again with fewer workers.") from None


def _draw_batch(patients: Sequence[_Patient], folder: Path) -> tuple[int, int]:
    images = size_bytes = 0
    for patient in patients:
        for number in range(1, patient.images + 1):
            images += 1
            size_bytes += (folder / patient.path(number)).write_bytes(patient.image(number))
    return images, size_bytes


def _plant(patients: Sequence[_Patient], folder: Path, seed: int) -> list[_Planted]:
    """Broken files and copies beside the whole images, each under the next free number of some patient."""
    rng = np.random.default_rng(derive_seed("phantom", seed, "flaws"))
    used = {patient.patient_id: patient.images for patient in patients}
    images = sum(used.values())
    planted: list[_Planted] = []

    def plant(flaw: Flaw, patient: _Patient, data: bytes, extension: str | None = None) -> None:
        used[patient.patient_id] += 1
        planted.append(_Planted(flaw=flaw, patient=patient, path=patient.path(used[patient.patient_id], extension), data=data))

    def pick(count: int) -> list[_Patient]:
        return [patients[index] for index in rng.permutation(len(patients))[:count]]

    for patient in pick(max(1, images // 350)):
        whole = patient.image(used[patient.patient_id] + 1, "jpeg")
        plant("truncated", patient, whole[: int(len(whole) * rng.uniform(0.2, 0.7))], "jpeg")
    plant("empty", pick(1)[0], b"")
    plant("no-image", pick(1)[0], _NOTE, "png")
    for patient in pick(max(1, images // 150)):
        plant("duplicate", patient, (folder / patient.path(1)).read_bytes())
    for patient in pick(max(1, images // 350)):
        others = [p for p in patients if p.class_name == patient.class_name and p is not patient]
        if others:
            other = others[int(rng.integers(len(others)))]
            plant("duplicate-other-patient", other, (folder / patient.path(1)).read_bytes(), patient.extension)
    for file in planted:
        (folder / file.path).write_bytes(file.data)
    return planted


def _write_metadata(patients: Sequence[_Patient], planted: Sequence[_Planted], path: Path) -> None:
    rows: list[tuple[str, _Patient, str]] = [(p.path(number), p, "") for p in patients for number in range(1, p.images + 1)]
    rows += [(file.path, file.patient, file.flaw) for file in planted]
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("path", "class", "patient_id", "age", "sex", "flaw"))
        table.writerows((name, p.class_name, p.patient_id, p.age, p.sex, flaw) for name, p, flaw in sorted(rows, key=lambda row: row[0]))


def _write_sources(path: Path) -> None:
    classes = {name: f"chest/{name}/*" for name in CHEST_CLASSES} | {name: f"oct/{name}/*" for name in OCT_CLASSES}
    patients = {"file": "metadata.csv", "image": "path", "patient": "patient_id"}
    sources = [{"name": "phantom", "path": ".", "include": ["chest/*", "oct/*"], "classes": classes, "patients": patients}]
    head = "# Phantom images: drawn, not taken.    scanvit data prepare sources.yaml -o PACK\n"
    path.write_text(head + yaml.safe_dump({"sources": sources}, sort_keys=False), encoding="utf-8")
