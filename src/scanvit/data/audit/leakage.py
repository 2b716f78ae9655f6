"""G1 to G3: what stands in two splits."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from PIL import Image

from ...core.errors import PackCorruptError
from ..hashing import perceptual_hash
from ..near_duplicates import BITS, NEAR_DUPLICATE_BITS, find_near_duplicates, parse_hashes
from ..pack import Pack
from ..sources import SPLITS
from .gate import Example, Gate, causes_of
from .view import AuditView

_EXAMPLES = 6
_NAMED = 3
NEIGHBOUR_IMAGES = 1000
"""Images whose nearest neighbour is measured, for the histogram."""
_COMPARED_WITH = 200_000
_COPIED_IMAGES = 100


def gate_patients(view: AuditView) -> Gate:
    """G1: a patient in two splits."""
    spread = view.crossing(view.patient)
    names = [view.patient_names[int(view.patient[rows[0]])] for rows in spread]
    unknown = _without_patients(view.pack)
    if spread:
        shown = ", ".join(names[:_NAMED])
        detail = f"{len(spread):,} patients have images in two splits or more: {shown}. The test then asks for faces that training has seen."
    elif unknown:
        detail = f"Nothing tells the patients of {', '.join(unknown)}: each image counts as its own, and a patient may stand in two splits unseen."
    else:
        detail = f"0 of {len(view.patient_names):,} patients have images in two splits."
    standing = [" and ".join(SPLITS[code] for code in np.unique(view.split[rows])) for rows in spread]
    found = [f"{name} in {splits}" for name, splits in zip(names, standing, strict=True)]
    return Gate(
        gate="G1",
        title="Patients across splits",
        verdict="fail" if spread or unknown else "pass",
        figure=float(len(spread)),
        figure_name="patients in two splits or more",
        threshold=1,
        detail=detail,
        examples=tuple(_across(view, rows, name) for rows, name in zip(spread[:_EXAMPLES], names, strict=False)),
        causes=causes_of(found + [f"nothing tells the patients of {name}" for name in unknown]),
    )


def _without_patients(pack: Pack) -> list[str]:
    """Names of the sources that do not tell their patients. The fingerprint does not cover the settings: they may hold anything."""
    try:
        return [str(source["name"]) for source in pack.settings.get("sources", []) if not source.get("patient") and not source.get("patients")]
    except (TypeError, KeyError, AttributeError):
        what = f"settings.sources in {pack.path / 'dataset.json'} is no list of sources"
        raise PackCorruptError(f"{what}: {str(pack.settings['sources'])[:80]}.", hint="Prepare the pack again.") from None


def gate_identical_pixels(view: AuditView) -> Gate:
    """G2: identical pixels in two splits."""
    spread = view.crossing(view.pixel_groups)
    if spread:
        named = "; ".join(" = ".join(view.path(int(row)) for row in rows[:2]) for rows in spread[:_NAMED])
        detail = f"{len(spread):,} pictures stand in two splits or more: {named}."
    else:
        detail = f"0 of {view.count:,} images have the same pixels as one in another split."
    return Gate(
        gate="G2",
        title="Identical images across splits",
        verdict="fail" if spread else "pass",
        figure=float(len(spread)),
        figure_name="pictures in two splits or more",
        threshold=1,
        detail=detail,
        examples=tuple(_across(view, rows, "the same pixels") for rows in spread[:_EXAMPLES]),
        causes=causes_of(_placed(view, spread)),
    )


def gate_near_duplicates(view: AuditView) -> Gate:
    """G3: near duplicates in two splits. Pictures with the very same pixels are G2's."""
    found = find_near_duplicates(view.hashes)
    crossing = (view.split[found.first] != view.split[found.second]) & (view.pixel_groups[found.first] != view.pixel_groups[found.second])
    first, second, distance = found.first[crossing], found.second[crossing], found.distance[crossing]
    members, groups = found.members()
    spread = len(np.unique(groups[np.searchsorted(members, first)]))
    strangers, nearest = _nearest_strangers(view)
    if spread:
        detail = f"{spread:,} groups of near duplicates (at most {NEAR_DUPLICATE_BITS} of {BITS} bits apart) stand in two splits or more"
        shown = zip(first[:_NAMED].tolist(), second[:_NAMED].tolist(), distance[:_NAMED].tolist(), strict=True)
        detail += ": " + "; ".join(f"{view.path(one)} and {view.path(other)} ({bits} bits)" for one, other, bits in shown) + "."
        other = int((view.class_of[first] != view.class_of[second]).sum())
        detail += f" {other} of the pairs have different classes." if other else ""
        detail += " Prepare the pack again with --near-duplicates move (all of a group into one split) or drop (the first of each group alone)."
        pairs = zip(first[:_EXAMPLES].tolist(), second[:_EXAMPLES].tolist(), distance[:_EXAMPLES].tolist(), strict=True)
        examples = tuple(_pair(view, *pair) for pair in pairs)
    else:
        count = int(found.pairs.sum())
        held = f"{count:,} near-duplicate pairs lie inside one split" if count else "there is no near-duplicate pair"
        detail = f"No near duplicates (at most {NEAR_DUPLICATE_BITS} of {BITS} bits apart) stand in two splits; {held}."
        examples = tuple(_pair(view, *pair) for pair in nearest)
    if strangers.sum():
        detail += f" Of {int(strangers.sum()):,} sampled images the nearest of another patient is {int(np.flatnonzero(strangers)[0])} bits away."
    return Gate(
        gate="G3",
        title="Near duplicates across splits",
        verdict="fail" if spread else "pass",
        figure=float(spread),
        figure_name="groups of near duplicates in two splits or more",
        threshold=1,
        detail=detail,
        measured={
            "near_duplicate_bits": NEAR_DUPLICATE_BITS,
            "near_duplicate_pairs": found.pairs.tolist(),
            "nearest_of_another_patient": strangers.tolist(),
            "copies": _copy_distances(view).tolist(),
        },
        examples=examples,
        causes=causes_of(_placed(view, list(np.stack([first, second], axis=1)))),
    )


def _nearest_strangers(view: AuditView) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Histogram, int64 (257,), of each image's distance to the nearest image of another patient, and the three nearest pairs. On a sample."""
    random = np.random.default_rng(0)
    asked = np.sort(random.choice(view.count, min(view.count, NEIGHBOUR_IMAGES), replace=False))
    others = np.sort(random.choice(view.count, min(view.count, _COMPARED_WITH), replace=False))
    hashes, patients = view.hashes[others], view.patient[others]
    nearest = []
    for position in asked.tolist():
        distance = np.bitwise_count(hashes ^ view.hashes[position]).sum(axis=1, dtype=np.int64)
        distance[patients == view.patient[position]] = BITS + 1
        best = int(distance.argmin())
        if distance[best] <= BITS:
            nearest.append((int(distance[best]), *sorted((int(position), int(others[best])))))
    histogram = np.bincount([distance for distance, *_ in nearest], minlength=BITS + 1)
    return histogram, [(first, second, distance) for distance, first, second in sorted(set(nearest))[:_NAMED]]


def _copy_distances(view: AuditView) -> np.ndarray:
    """Histogram, int64 (257,), of the distances between images of this pack and copies of them, made in the usual ways."""
    asked = np.sort(np.random.default_rng(1).choice(view.count, min(view.count, _COPIED_IMAGES), replace=False))
    distances = []
    for position in asked:
        gray = Image.fromarray(view.pixels(int(position)).mean(axis=0).astype(np.uint8))
        original = _hash(gray)
        if original.any():
            distances += [int(np.bitwise_count(original ^ _hash(copy)).sum()) for copy in _copies(gray)]
    return np.bincount(distances, minlength=BITS + 1)


def _copies(image: Image.Image) -> Iterator[Image.Image]:
    for quality in (90, 50):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        yield Image.open(stream)
    for share in (0.5, 0.75):
        side = max(1, round(share * image.width))
        yield image.resize((side, side), Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float64)
    yield Image.fromarray((0.8 * pixels + 10).astype(np.uint8))
    yield Image.fromarray((255 * (pixels / 255) ** 0.8).astype(np.uint8))


def _hash(image: Image.Image) -> np.ndarray:
    return parse_hashes([perceptual_hash(np.asarray(image)[None])])[0]


def _placed(view: AuditView, groups: Sequence[np.ndarray]) -> list[str]:
    """Each group of images in words that hold for these images in these splits alone."""
    names = iter(view.placed(np.concatenate(groups))) if groups else iter(())
    return [" = ".join(sorted(islice(names, len(rows)))) for rows in groups]


def _across(view: AuditView, rows: np.ndarray, caption: str) -> Example:
    """One image from each split."""
    first = np.unique(view.split[rows], return_index=True)[1]
    return Example(caption, tuple(view.picture(int(row)) for row in rows[np.sort(first)]))


def _pair(view: AuditView, first: int, second: int, distance: int) -> Example:
    caption = f"{distance} of {BITS} bits apart"
    return Example(caption, tuple(view.picture(int(row), f"{view.class_names[view.class_of[row]]}: {view.path(int(row))}") for row in (first, second)))
