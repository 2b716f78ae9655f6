"""Small sealed packs, made without decoding anything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanvit.core.contract import PixelContract
from scanvit.data.hashing import perceptual_hash
from scanvit.data.manifest import SCHEMA, write_manifest
from scanvit.data.pack import MANIFEST, seal_pack
from scanvit.data.sources import SPLITS

Row = tuple[str, str, str, str]
"""split, class, source, patient."""

BALANCED: list[Row] = [
    (split, name, source, f"{split}-{name}-{source}-{i}") for split in SPLITS for name in ("a", "b") for source in ("s", "t") for i in range(5)
]


@pytest.fixture
def make_pack(tmp_path: Path) -> Callable[..., Path]:
    """pixels: {row number: uint8 (1, 8, 8)}, else noise. files: {row number: (width, height, format)}, else 8 x 8 PNG."""

    def make(
        rows: list[Row] = BALANCED,
        pixels: dict[int, np.ndarray] | None = None,
        settings: dict[str, Any] | None = None,
        name: str = "pack",
        files: dict[int, tuple[int, int, str]] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        contract = PixelContract(image_size_px=8)
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (len(rows), *contract.shape), np.uint8)
        for number, image in (pixels or {}).items():
            noise[number] = image
        columns: dict[str, list[Any]] = {field.name: [] for field in SCHEMA}
        for split in SPLITS:
            members = [i for i, row in enumerate(rows) if row[0] == split]
            np.save(folder / f"{split}.npy", noise[members])
            for position, i in enumerate(members):
                _, class_name, source, patient = rows[i]
                digest = hashlib.sha256(str(i).encode()).hexdigest()
                entry = {"image_id": digest[:20], "class_name": class_name, "split": split, "patient_id": f"{source}:{patient}", "source": source}
                entry |= {"path": f"{class_name}/{i}.png", "sha256": digest, "perceptual_hash": perceptual_hash(noise[i]), "row": position}
                entry |= dict(zip(("width_px", "height_px", "format"), (files or {}).get(i, (8, 8, "PNG")), strict=True))
                for key, value in entry.items():
                    columns[key].append(value)
        write_manifest(folder / MANIFEST, columns)
        names = tuple(sorted({row[1] for row in rows}))
        known = {"sources": [{"name": source, "patient": "(?P<patient>x)", "patients": None} for source in sorted({row[2] for row in rows})]}
        seal_pack(folder, class_names=names, contract=contract, settings=known if settings is None else settings)
        return folder

    return make
