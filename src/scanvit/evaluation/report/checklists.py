"""The items of CLAIM 2024 and TRIPOD+AI: ticked, with a pointer, where this run answers them; open where a human must."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ..scores import Scores


@dataclass(frozen=True, kw_only=True)
class Item:
    number: str
    text: str
    section: str | None = None
    """Of report.html, where the answer stands: its id. None: open."""
    where: str | None = None
    """The same in words."""


@dataclass(frozen=True, kw_only=True)
class Checklist:
    name: str
    title: str
    source: str
    items: list[Item]

    @property
    def answered(self) -> int:
        return sum(item.section is not None for item in self.items)


def checklists(answers: dict[str, tuple[str, str]]) -> list[Checklist]:
    """``answers``: {name in checklists.yaml: (section, words)} of what the run answers (``answers_of``)."""
    found = []
    for values in _read():
        items = []
        for item in values["items"]:
            section, where = answers.get(item.get("answer", ""), (None, None))
            items.append(Item(number=item["item"], text=item["text"], section=section, where=where))
        found.append(Checklist(name=values["name"], title=values["title"], source=values["source"], items=items))
    return found


def answers_of(
    scores: Scores, *, gates: list[dict[str, Any]], settings: dict[str, Any], environment: dict[str, Any], sections: frozenset[str]
) -> dict[str, tuple[str, str]]:
    """What a run answers by itself. ``gates``: of the pack's audit; ``settings``: the pack's; ``sections``: of the report that not every one has."""
    verdicts = {str(gate.get("gate")): str(gate.get("verdict")) for gate in gates}
    answers = {
        "pixels": ("cards", "the pixel contract"),
        "counts": ("cards", "images and patients by split and class"),
        "model": ("cards", "network and parameters; every setting is listed"),
        "training": ("cards", "every setting, and which differ from the reference"),
        "chosen": ("training", "the weights of the epoch with the lowest validation loss"),
        "single": ("cards", "one network, none combined"),
        "initialised": ("cards", "random weights from the seed, none from elsewhere"),
        "predictors": ("cards", "the image alone"),
        "metrics": ("table", "all figures by class, and their definitions"),
        "errors": ("errors", "confusions, and the most confident errors one by one"),
        "weights": ("cards", "checkpoint.pth holds weights, classes, pixel contract, temperature and thresholds"),
    }
    trained_on = settings.get("sources")
    if trained_on:
        answers["sources"] = ("cards", "the sources by name; how representative they are remains to be said")
        answers["selection"] = ("cards", "patterns, duplicates and the quarantine of the pack")
    if settings.get("split"):
        answers["split"] = ("cards", "shares by patient, with their seed")
    if verdicts.get("G1") == "pass":
        answers["disjoint"] = ("audit", "by patient, as gate G1 of the audit found")
    if environment.get("versions"):
        answers["software"] = ("cards", "names and versions")
    if scores.interval.get("draws"):
        answers["intervals"] = ("summary", "95 % intervals by resampling patients, beside every figure")
    answers["external" if "shift" in sections else "internal"] = ("shift", "data from elsewhere") if "shift" in sections else ("summary", "the test split")
    if "subgroups" in sections:
        answers["subgroups"] = ("subgroups", "figures by subgroup")
    return answers | (_of_trust(scores) if scores.trust else {})


def _of_trust(scores: Scores) -> dict[str, tuple[str, str]]:
    assert scores.trust
    answers = {
        "calibration": ("calibration", "before and after the temperature"),
        "output": ("points", "calibrated probabilities; thresholds chosen on val"),
        "masking": ("masking", "with parts of the image covered"),
    }
    if scores.trust.saliency.explained:
        answers["saliency"] = ("errors", "maps by three methods, checked against random weights")
    if scores.trust.outliers:
        answers["outliers"] = ("outliers", "images unlike the training images are named")
    return answers


@cache
def _read() -> list[dict[str, Any]]:
    import yaml

    found: list[dict[str, Any]] = yaml.safe_load(files(__package__).joinpath("checklists.yaml").read_text(encoding="utf-8"))
    return found
