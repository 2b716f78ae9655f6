"""G4 and G5: what gives the class away beside the finding itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from .association import corrected_cramers_v, cramers_v, table_of
from .gate import Example, Gate
from .probes import Probe, run_probe
from .view import THUMBNAIL_PX, AuditView

CONFOUNDED = 0.3
"""From this on two columns count as confounded: Cohen's medium effect (1988, chapter 7), for Cramer's V and for the skill of a probe alike."""
SOLE_SOURCE = 0.95
"""Share of a class from one source from which the class is named in the detail."""
BORDER_PX = 4
"""Width of the frame that the border probe sees, of a thumbnail of 32 px: an eighth of the side, 44 % of the area."""
BORDER_SHARE = 0.75
"""Share of the whole image's skill from which the border knows too much. Measured: 0.93 on the real example pack, 0.38 on the phantoms, of
which a half is a chest and a half is an eye, as the border rightly shows."""
GIVEN_AWAY = 0.8
"""Sensitivity + specificity - 1 (Youden 1950) from which a single class counts as given away. Two classes that cannot be told apart, one of
which a probe guesses, reach 0.67 at the most in a set of four."""
_LEAST_SKILL = 0.1


def gate_confounding(view: AuditView) -> Gate:
    """G4: how far class and source go together, whether the pixels show the source, and how much of the class their border shows."""
    counts = table_of(view.class_of, view.source, shape=(len(view.class_names), len(view.source_names)))
    several = len(view.source_names) > 1
    value, corrected = cramers_v(counts), corrected_cramers_v(counts)
    source_probe = _source_probe(view) if several else None
    whole, border = _image_probes(view)
    told = []
    if several:
        told.append(f"Cramer's V of class and source is {value:.2f} ({corrected:.2f} corrected for chance; 0: independent, 1: the one gives the other).")
        told += _sole_sources(view, counts)
    else:
        told.append("One source alone: there is nothing to confound with it within this pack.")
    if source_probe:
        told.append(f"Thumbnails of {THUMBNAIL_PX} px tell the source with {_said(source_probe)}.")
    if whole and border:
        told.append(f"The image's border alone tells the class with {_said(border)}, the whole image with {_said(whole, chance=False)}.")
    border_says = _border_knows_too_much(whole, border)
    told += list(dict.fromkeys(sentence for _, _, sentence in border_says))
    causes = {"class and source go together": value} if value >= CONFOUNDED else {}
    causes |= {cause: badness for cause, badness, _ in border_says}
    nothing = not several and border is None
    return Gate(
        gate="G4",
        title="The class against the source and the border",
        verdict="not applicable" if nothing else "fail" if causes else "pass",
        figure=None if nothing else round(value, 3),
        figure_name="Cramer's V of class and source",
        threshold=CONFOUNDED,
        detail=" ".join(told),
        measured={
            "cramers_v_corrected": round(corrected, 3),
            "images": {
                str(name): dict(zip(map(str, view.source_names), row, strict=True)) for name, row in zip(view.class_names, counts.tolist(), strict=True)
            },
            "source_probe": source_probe and source_probe.to_dict(),
            "image_probe": whole and whole.to_dict(),
            "border_probe": border and border.to_dict(),
        },
        examples=_main_sources(view, counts) if several and value >= CONFOUNDED else _by_class(view) if border_says else (),
        causes=causes,
    )


def gate_files(view: AuditView) -> Gate:
    """G5: how well resolution, aspect and file format alone predict the class."""
    positions = view.sample(view.class_of)
    width, height = view.width_px[positions].astype(np.float32), view.height_px[positions].astype(np.float32)
    formats = [view.format[positions] == code for code in range(len(view.format_names))]
    features = np.stack([width, height, width / np.maximum(height, 1), width * height, *formats], axis=1).astype(np.float32)
    probe = run_probe(features, view.class_of[positions], view.patient[positions], names=view.class_names, model="tree")
    of_format = corrected_cramers_v(table_of(view.class_of, view.format, shape=(len(view.class_names), len(view.format_names))))
    title, unit = "The class against resolution and file format", "skill of width, height, aspect and format (0: chance, 1: perfect)"
    measured: dict[str, Any] = {"file_probe": probe and probe.to_dict(), "cramers_v_format": round(of_format, 3), "files": _files_by_class(view)}
    if probe is None:
        detail = "No two classes have five patients or more: there is nothing to judge by."
        return Gate(gate="G5", title=title, verdict="not applicable", figure=None, figure_name=unit, threshold=CONFOUNDED, detail=detail, measured=measured)
    given = {name: youden for name, youden in probe.youden.items() if youden >= GIVEN_AWAY}
    causes = {f"the file gives away {name}": youden for name, youden in given.items()}
    causes |= {"the file tells the class": probe.skill} if probe.skill >= CONFOUNDED and probe.is_above_chance else {}
    causes |= {"class and format go together": of_format} if of_format >= CONFOUNDED else {}
    detail = (
        f"Width, height, aspect and format alone tell the class with {_said(probe)}. Cramer's V of class and format is {of_format:.2f}, corrected for chance."
    )
    if given:
        detail += f" The file alone gives away: {', '.join(given)}."
    if causes:
        detail += " Convert all images the same way from the originals, or balance the classes over the kinds of file."
    return Gate(
        gate="G5",
        title=title,
        verdict="fail" if causes else "pass",
        figure=round(probe.skill, 3),
        figure_name=unit,
        threshold=CONFOUNDED,
        detail=detail,
        measured=measured,
        causes=causes,
    )


def _source_probe(view: AuditView) -> Probe | None:
    positions = view.sample(view.source)
    pixels = view.thumbnails(positions).reshape(len(positions), -1)
    return run_probe(pixels, view.source[positions], view.patient[positions], names=view.source_names)


def _image_probes(view: AuditView) -> tuple[Probe | None, Probe | None]:
    """What the whole thumbnail and what its frame alone tell of the class."""
    positions = view.sample(view.class_of)
    thumbnails = view.thumbnails(positions)
    frame = np.ones(thumbnails.shape[1:], bool)
    frame[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    labels, patients = view.class_of[positions], view.patient[positions]
    whole = run_probe(thumbnails.reshape(len(positions), -1), labels, patients, names=view.class_names)
    return whole, run_probe(thumbnails[:, frame], labels, patients, names=view.class_names)


def _border_knows_too_much(whole: Probe | None, border: Probe | None) -> list[tuple[str, float, str]]:
    """(cause, how bad, the sentence that says so)."""
    if whole is None or border is None or not border.is_above_chance:
        return []
    if given := {name: youden for name, youden in border.youden.items() if youden >= GIVEN_AWAY}:
        sentence = f"The border alone gives away: {', '.join(given)}. Look for markers, text and framing."
        return [(f"the border gives away {name}", youden, sentence) for name, youden in given.items()]
    share = border.skill / whole.skill if whole.skill > 0 else 0.0
    if border.skill >= _LEAST_SKILL and share >= BORDER_SHARE:
        sentence = f"That is {share:.0%} of the whole image's skill (fails from {BORDER_SHARE:.0%}): look for markers, text and framing."
        return [("the border has much of the image's skill", share, sentence)]
    return []


def _said(probe: Probe, *, chance: bool = True) -> str:
    by_chance = f", chance {probe.chance:.0%}" if chance else ""
    return f"{probe.value:.0%} balanced accuracy ({probe.low:.0%} to {probe.high:.0%}{by_chance})"


def _sole_sources(view: AuditView, counts: np.ndarray) -> list[str]:
    share, main = counts.max(axis=1) / np.maximum(counts.sum(axis=1), 1), counts.argmax(axis=1)
    sole = [f"{view.class_names[k]} ({share[k]:.0%} from {view.source_names[main[k]]})" for k in np.flatnonzero(share >= SOLE_SOURCE)]
    return [f"Almost only from one source: {', '.join(sole)}."] if sole else []


def _main_sources(view: AuditView, counts: np.ndarray) -> tuple[Example, ...]:
    """Images of each source, to see how it looks."""
    examples = []
    for source, name in enumerate(view.source_names):
        rows = _spread(np.flatnonzero(view.source == source), 4)
        classes = counts[:, source]
        said = ", ".join(f"{view.class_names[k]} {classes[k]:,}" for k in np.argsort(-classes, kind="stable")[:4] if classes[k])
        examples.append(Example(f"{name}: {said}", tuple(view.picture(int(row)) for row in rows)))
    return tuple(examples[:8])


def _by_class(view: AuditView) -> tuple[Example, ...]:
    rows = [(name, _spread(np.flatnonzero(view.class_of == k), 4)) for k, name in enumerate(view.class_names[:12])]
    return tuple(Example(str(name), tuple(view.picture(int(row), " ") for row in positions)) for name, positions in rows)


def _spread(positions: np.ndarray, number: int) -> np.ndarray:
    """Evenly over the rows, so that several patients are among them."""
    return positions[np.unique(np.linspace(0, len(positions) - 1, number).astype(np.int64))] if len(positions) else positions


def _files_by_class(view: AuditView) -> dict[str, dict[str, Any]]:
    """{class: the commonest size and format, and the share of its images that have them}."""
    result = {}
    for k, name in enumerate(view.class_names):
        mine = view.class_of == k
        if not mine.any():
            continue
        # One number a kind of file, in the order of (width, height, format): 28 bits a side, 8 bits of format.
        kinds = (view.width_px[mine].astype(np.int64) << 36) + (view.height_px[mine].astype(np.int64) << 8) + view.format[mine]
        kinds, counts = np.unique(kinds, return_counts=True)
        commonest = int(kinds[counts.argmax()])
        width, height, code = commonest >> 36, commonest >> 8 & (1 << 28) - 1, commonest & 255
        shown = {"commonest": f"{width} x {height} {view.format_names[code]}", "share": round(float(counts.max() / counts.sum()), 3), "kinds": len(counts)}
        result[str(name)] = shown
    return result
