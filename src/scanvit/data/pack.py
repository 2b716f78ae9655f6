"""The pack: decoded images in memory-mapped arrays beside a manifest, sealed by a fingerprint (docs/architecture.md)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy

from ..core.contract import PixelContract
from ..core.errors import ConfigError, PackCorruptError, PackError, PackMissingError, PackVersionError
from ..storage.atomic import write_json
from ..storage.checksum import sha256_file
from .manifest import SCHEMA, schema_with
from .manifest_reader import ManifestReader, count_manifest
from .sources import SPLITS

FORMAT = 1
MANIFEST = "manifest.parquet"
HASHED = (MANIFEST, *(f"{split}.npy" for split in SPLITS))
"""The files that the fingerprint covers, in its order."""
_FINDING = ("gate", "title", "verdict", "figure", "figure_name", "threshold", "detail", "reason")
_PIECE_BYTES = 16 << 20
_MISSING_HINT = "Make one: scanvit data prepare SOURCES -o PACK"
_CORRUPT_HINT = "Prepare the pack again."


@dataclass(frozen=True)
class Pack:
    """An opened pack. Read-only; safe to share between threads and to open in every process."""

    path: Path
    class_names: tuple[str, ...]
    """Sorted. A target is an index into it."""
    contract: PixelContract
    fingerprint: str
    """SHA-256 in hexadecimal."""
    counts: Mapping[str, Mapping[str, int]]
    """{split: {class: images}}, every split and every class."""
    patients: Mapping[str, int]
    """{split: patients}."""
    settings: Mapping[str, Any]
    """The resolved sources and split settings."""
    files: Mapping[str, Mapping[str, Any]]
    """{name: {"bytes", "sha256"}}."""

    @classmethod
    def open(cls, path: Path | str) -> Pack:
        """Check version, presence, sizes, shapes and the fingerprint's own arithmetic; read no image (``verify`` does).

        Raises PackMissingError, PackVersionError or PackCorruptError.
        """
        path = Path(path)
        values = _read_dataset(path)
        try:
            counts = {split: {str(name): int(n) for name, n in values["counts"][split].items()} for split in SPLITS}
            files = {name: {"bytes": int(values["files"][name]["bytes"]), "sha256": str(values["files"][name]["sha256"])} for name in HASHED}
            pack = cls(
                path=path,
                class_names=tuple(map(str, values["class_names"])),
                contract=PixelContract.from_dict(values["contract"]),
                fingerprint=str(values["fingerprint"]),
                counts=counts,
                patients={split: int(values["patients"][split]) for split in SPLITS},
                settings=dict(values["settings"]),
                files=files,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ConfigError) as cause:
            raise PackCorruptError(f"{path / 'dataset.json'} is damaged: {cause!r}.", hint=_CORRUPT_HINT) from None
        _check_cheaply(pack)
        return pack

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def size(self, split: str) -> int:
        """Number of images."""
        return sum(self.counts[_known(split)].values())

    def images(self, split: str) -> np.ndarray:
        """uint8 (N, C, H, W), 0..255: a read-only memory map, opened anew at each call."""
        return _open_array(self.path / f"{_known(split)}.npy")

    def pieces(self, split: str) -> Iterator[np.ndarray]:
        """The images in order, uint8 (n, C, H, W), up to 16 MiB at a time: read, not mapped, so that a pass over all holds no more than a piece."""
        array = self.images(split)
        at_once = max(1, _PIECE_BYTES // int(np.prod(self.contract.shape)))
        with open(self.path / f"{split}.npy", "rb") as file:
            file.seek(array.offset)  # type: ignore[attr-defined]  # a memory map's
            for start in range(0, len(array), at_once):
                shape = (min(at_once, len(array) - start), *self.contract.shape)
                yield np.fromfile(file, np.uint8, int(np.prod(shape))).reshape(shape)

    def targets(self, split: str) -> np.ndarray:
        """int64 (N,), in the order of the array."""
        start, size = self.start(split), self.size(split)
        targets, position = np.empty(size, np.int64), 0
        for batch in self.reader.batches("class_name"):
            here = slice(max(start - position, 0), max(min(start + size - position, len(batch)), 0))
            if here.start < here.stop:
                targets[position + here.start - start : position + here.stop - start] = self.class_codes(batch["class_name"][here])
            position += len(batch)
        return targets

    def class_codes(self, column: pa.Array) -> np.ndarray:
        """int64: class names as indices into ``class_names``. Raises PackCorruptError for an unknown one."""
        encoded = column.dictionary_encode()
        names, code_of = encoded.dictionary.to_pylist(), {name: code for code, name in enumerate(self.class_names)}
        if unknown := [name for name in names if name not in code_of]:
            raise PackCorruptError(f"{self.path / MANIFEST} holds a class that dataset.json does not: {unknown[0]!r}.", hint=_CORRUPT_HINT)
        found: np.ndarray = np.array([code_of[name] for name in names], np.int64)[np.from_dlpack(encoded.indices)]
        return found

    def start(self, split: str) -> int:
        """The row of the manifest at which the split begins."""
        return sum(self.size(earlier) for earlier in SPLITS[: SPLITS.index(_known(split))])

    def rows(self, split: str, *columns: str) -> pa.Table:
        """The manifest's rows of one split, in the order of its array. ``columns``: those to read; left out, all."""
        return (self.columns(*columns) if columns else self.manifest).slice(self.start(split), self.size(split))

    @cached_property
    def manifest(self) -> pa.Table:
        """One row an image, by split (train, val, test, final_eval) and then by row: about 250 bytes an image."""
        return self.columns(*SCHEMA.names, *self.attributes)

    def columns(self, *names: str) -> pa.Table:
        """Some columns of the manifest, whole, read anew at each call. Raises PackCorruptError."""
        schema = schema_with(self.attributes)
        return pa.Table.from_batches(self.reader.batches(*names), pa.schema([schema.field(name) for name in names]))

    @cached_property
    def attributes(self) -> tuple[str, ...]:
        """The manifest's columns that the sources were asked to keep, such as sex and age_band: strings, '' where an image has none."""
        return tuple(self.reader.attributes())

    @cached_property
    def reader(self) -> ManifestReader:
        """The manifest piece by piece."""
        return ManifestReader(self.path / MANIFEST, [self.size(split) for split in SPLITS])

    def audit(self) -> list[dict[str, Any]]:
        """All gates of audit.json; empty where the pack was not audited yet."""
        return self._audit_file()["gates"]

    def findings(self) -> list[dict[str, Any]]:
        """The gates of the audit that failed or were acknowledged, without their examples and measurements: what runs and reports carry."""
        return [{key: gate.get(key) for key in _FINDING} for gate in self.audit() if gate.get("verdict") in ("fail", "acknowledged")]

    def acknowledged(self) -> dict[str, dict[str, Any]]:
        """{gate: what audit.json says of it} of the acknowledged gates, as long as audit.json is about these very images."""
        stored = self._audit_file()
        if stored.get("fingerprint") != self.fingerprint:
            return {}
        return {str(gate["gate"]): gate for gate in stored["gates"] if gate.get("reason") and "gate" in gate}

    def _audit_file(self) -> dict[str, Any]:
        file = self.path / "audit.json"
        if not file.is_file():
            return {"gates": []}
        try:
            stored = dict(json.loads(file.read_bytes()))
            return stored | {"gates": [dict(gate) for gate in stored["gates"]]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as cause:
            raise PackCorruptError(f"{file} is damaged: {cause!r}.", hint=f"Audit the pack again: scanvit data audit {self.path}") from None

    def verify(self, splits: Sequence[str] = SPLITS) -> None:
        """Read every byte of these splits and of the manifest: files against their SHA-256, the manifest against the counts.

        Raises PackCorruptError.
        """
        for name in (MANIFEST, *(f"{_known(split)}.npy" for split in splits)):
            if (found := sha256_file(self.path / name)) != (expected := self.files[name]["sha256"]):
                raise PackCorruptError(f"{self.path / name} was changed: its SHA-256 is {found}, not {expected}.", hint=_CORRUPT_HINT)
        for split in splits:
            found_counts = np.bincount(self.targets(split), minlength=self.num_classes).tolist()
            if found_counts != [self.counts[split][name] for name in self.class_names]:
                raise PackCorruptError(f"{self.path / MANIFEST} and dataset.json count the classes of {split} differently.", hint=_CORRUPT_HINT)


def seal_pack(folder: Path, *, class_names: tuple[str, ...], contract: PixelContract, settings: Mapping[str, Any]) -> str:
    """Write dataset.json over the arrays and the manifest that stand in ``folder``, and return the fingerprint."""
    images, patients = count_manifest(folder / MANIFEST, class_names)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in HASHED}
    value = fingerprint(class_names, contract, files)
    dataset = {
        "format": FORMAT,
        "class_names": list(class_names),
        "contract": contract.to_dict(),
        "counts": images,
        "patients": patients,
        "files": files,
        "settings": dict(settings),
        "fingerprint": value,
    }
    write_json(folder / "dataset.json", dataset)
    return value


def fingerprint(class_names: tuple[str, ...], contract: PixelContract, files: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 over the class names, the contract and the SHA-256 of the manifest and of each array."""
    content = [list(class_names), contract.to_dict(), [[name, files[name]["sha256"]] for name in HASHED]]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode("ascii")).hexdigest()


def _read_dataset(path: Path) -> dict[str, Any]:
    file = path / "dataset.json"
    if not os.path.exists(path):  # pathlib would raise for a name that is too long
        raise PackMissingError(f"There is no pack at {path}.", hint=_MISSING_HINT)
    if not file.is_file():
        raise PackMissingError(f"{path} is no pack: it holds no dataset.json.", hint=_MISSING_HINT)
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as cause:
        raise PackCorruptError(f"{file} cannot be read: {_first_line(cause)}.", hint=_CORRUPT_HINT) from None
    if not isinstance(values, dict) or "format" not in values:
        raise PackCorruptError(f"{file} is damaged: it names no format.", hint=_CORRUPT_HINT)
    if values["format"] != FORMAT:
        raise PackVersionError(
            f"{path} is a pack of format {values['format']!r}; this version of scanvit reads format {FORMAT}.",
            hint="Prepare it again, or use the version of scanvit that wrote it.",
        )
    return values


def _check_cheaply(pack: Pack) -> None:
    if list(pack.class_names) != sorted(set(pack.class_names)) or any(set(pack.counts[split]) != set(pack.class_names) for split in SPLITS):
        raise PackCorruptError(f"{pack.path / 'dataset.json'} is damaged: class_names and counts disagree.", hint=_CORRUPT_HINT)
    if fingerprint(pack.class_names, pack.contract, pack.files) != pack.fingerprint:
        raise PackCorruptError(f"{pack.path / 'dataset.json'} was changed: its fingerprint does not fit.", hint=_CORRUPT_HINT)
    for name, expected in pack.files.items():
        file = pack.path / name
        if not file.is_file():
            raise PackCorruptError(f"{file} is missing.", hint=_CORRUPT_HINT)
        if file.stat().st_size != expected["bytes"]:
            raise PackCorruptError(f"{file} has {file.stat().st_size} bytes, not {expected['bytes']}.", hint=_CORRUPT_HINT)
    for split in SPLITS:
        images, shape = pack.images(split), (pack.size(split), *pack.contract.shape)
        if images.dtype != np.uint8 or images.shape != shape or not images.flags.c_contiguous:
            raise PackCorruptError(f"{pack.path / f'{split}.npy'} holds {images.dtype} {images.shape}, not uint8 {shape}.", hint=_CORRUPT_HINT)


def _open_array(file: Path) -> np.ndarray:
    try:
        return npy.open_memmap(file, mode="r")
    except Exception as cause:  # numpy's header parser lets through whatever the tokenizer of Python raises
        raise PackCorruptError(f"{file} cannot be read: {_first_line(cause)}.", hint=_CORRUPT_HINT) from None


def _known(split: str) -> str:
    if split not in SPLITS:
        raise PackError(f"There is no split {split!r}.", hint=f"Splits: {', '.join(SPLITS)}.")
    return split


def _first_line(cause: BaseException) -> str:
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")
