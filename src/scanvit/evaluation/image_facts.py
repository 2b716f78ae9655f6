"""What the manifest of a pack says about images that were judged: their values on a column, and their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..core.errors import DataError

if TYPE_CHECKING:
    from ..data.pack import Pack


def manifest_rows(pack: Pack, image_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """(N,): where each image stands in the manifest. Raises DataError for one that does not."""
    known = pack.columns("image_id")["image_id"].combine_chunks()
    found = pc.index_in(pa.array(image_ids, pa.string()), value_set=known)
    if found.null_count:
        missing = image_ids[pc.indices_nonzero(pc.is_null(found))[0].as_py()]
        raise DataError(f"{pack.path} holds no image {missing!r}.", hint="Give the pack that was judged.")
    rows: npt.NDArray[np.int64] = found.to_numpy().astype(np.int64)
    return rows


def judged_images(pack: Pack, image_ids: Sequence[str]) -> npt.NDArray[np.uint8]:
    """The pixels of judged images, in their order, from whatever splits of the pack they stand in: uint8 (N, C, H, W).

    A whole split is the pack's own memory map; what is picked is copied, into a scratch file where it is long.
    """
    from ..data.sources import SPLITS
    from ..storage.scratch import scratch_zeros

    rows = manifest_rows(pack, image_ids)
    for split in SPLITS:
        if len(rows) and len(rows) == pack.size(split) and (rows == np.arange(len(rows)) + pack.start(split)).all():
            whole: npt.NDArray[np.uint8] = pack.images(split)
            return whole
    picked = scratch_zeros(len(rows), np.uint8, *pack.contract.shape)
    for split in SPLITS:
        here = np.flatnonzero((rows >= pack.start(split)) & (rows < pack.start(split) + pack.size(split)))
        images = pack.images(split)
        for place in here.tolist():
            picked[place] = images[rows[place] - pack.start(split)]
    return picked


def judged_originals(pack: Pack, image_ids: Sequence[str], chosen: Sequence[int], root: Path) -> dict[int, npt.NDArray[np.uint8]]:
    """{place among the judged images: pixels at their own resolution} of those of ``chosen`` that are found (``data.originals``)."""
    from ..data.originals import find_originals
    from ..data.sources import SPLITS
    from .report.gallery import MOST_PX

    rows = manifest_rows(pack, image_ids)
    found: dict[int, npt.NDArray[np.uint8]] = {}
    for split in SPLITS:
        start = pack.start(split)
        places = {int(rows[place]) - start: place for place in chosen if start <= rows[place] < start + pack.size(split)}
        if places:
            found |= {places[row]: pixels for row, pixels in find_originals(pack, split, list(places), root, most_px=MOST_PX).items()}
    return found
