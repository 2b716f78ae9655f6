"""Single images of a pack once more, from where they came, at their own resolution."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ScanvitError
from .archives.open import open_archive
from .decode import decode_frames
from .hashing import sha256_bytes
from .pack import Pack
from .sources import sources_from_dict

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Wanted:
    row: int
    sha256: str
    side_px: int
    frame: int | None
    """Counted from 1."""


def find_originals(pack: Pack, split: str, rows: Sequence[int], root: Path, *, most_px: int) -> dict[int, NDArray[np.uint8]]:
    """{row: uint8 (C, side, side)} of those that are found, squashed to a square as in the pack, of the longer side or ``most_px``.

    ``root``: what the sources' paths are relative to. A file is taken where its SHA-256 is the manifest's. A source that cannot be read
    leaves its images out, with a warning: they only make a page sharper.
    """
    try:
        sources = {source.name: source for source in sources_from_dict({"sources": pack.settings.get("sources", [])}).sources}
    except ScanvitError as error:
        log.warning("The pack does not say where its images came from: %s", error)
        return {}
    found: dict[int, NDArray[np.uint8]] = {}
    for name, files in _by_file(pack, split, rows, most_px).items():
        if name not in sources:
            continue
        try:
            for path, data in open_archive(root / sources[name].path).read(set(files)):
                for wanted in files[path]:
                    if (pixels := _decoded(wanted, data, pack)) is not None:
                        found[wanted.row] = pixels
        except (ScanvitError, OSError) as error:
            log.warning("Originals of %s are left out: %s", name, error)
    return found


def _by_file(pack: Pack, split: str, rows: Sequence[int], most_px: int) -> dict[str, dict[str, list[_Wanted]]]:
    """{source: {file: images}}."""
    table = pack.rows(split, "source", "path", "sha256", "width_px", "height_px").take(list(rows))
    grouped: dict[str, dict[str, list[_Wanted]]] = {}
    for row, values in zip(rows, table.to_pylist(), strict=True):
        file, _, number = str(values["path"]).rpartition("#")
        frame = int(number) if file and number.isdigit() else None
        side_px = min(most_px, max(values["width_px"], values["height_px"], pack.contract.image_size_px))
        wanted = _Wanted(row, values["sha256"], side_px, frame)
        grouped.setdefault(values["source"], {}).setdefault(values["path"] if frame is None else file, []).append(wanted)
    return grouped


def _decoded(wanted: _Wanted, data: bytes, pack: Pack) -> NDArray[np.uint8] | None:
    digest = sha256_bytes(data)
    if (digest if wanted.frame is None else sha256_bytes(f"{digest}#{wanted.frame}".encode("ascii"))) != wanted.sha256:
        log.warning("A file of row %d is not the one that the pack was made from; its picture is left out.", wanted.row)
        return None
    frames = decode_frames(data, replace(pack.contract, image_size_px=wanted.side_px))
    pixels: NDArray[np.uint8] = frames[(wanted.frame or 1) - 1].pixels
    return pixels
