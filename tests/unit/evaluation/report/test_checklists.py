from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.report.checklists import answers_of, checklists
from scanvit.evaluation.scoring import compute_scores

ABOUT = {"run": "r", "experiment": "e", "split": "test", "audit": []}


def answered(make_predictions: Callable[..., Predictions], *, draws: int = 20, **known: Any) -> dict[str, set[str]]:
    scores = compute_scores(make_predictions([0, 1, 2] * 5), about=ABOUT, draws=draws, seed=0)
    given: dict[str, Any] = {"gates": [], "settings": {}, "environment": {}, "sections": frozenset()} | known
    return {found.name: {item.number for item in found.items if item.section} for found in checklists(answers_of(scores, **given))}


def test_both_guidelines_are_whole(make_predictions: Callable[..., Predictions]) -> None:
    claim, tripod = checklists({})
    assert [item.number for item in claim.items] == [str(n) for n in range(1, 45)]
    assert [item.number for item in tripod.items if item.number.isdigit()] + ["3", "5"] != []
    assert {item.number.rstrip("abcdefg") for item in tripod.items} == {str(n) for n in range(1, 28)}
    assert len({item.number for item in tripod.items}) == len(tripod.items)
    assert claim.answered == tripod.answered == 0


def test_only_what_the_run_holds_is_ticked(make_predictions: Callable[..., Predictions]) -> None:
    bare = answered(make_predictions, draws=0)
    assert {"22", "25", "26", "28"} <= bare["CLAIM 2024"]
    # sources, split, disjoint patients, software, intervals, explanations, external data: nothing of these is known
    assert not bare["CLAIM 2024"] & {"7", "19", "20", "23", "29", "31", "33"}
    full = answered(
        make_predictions,
        gates=[{"gate": "G1", "verdict": "pass"}],
        settings={"sources": [{"name": "a"}], "split": {"train": 7}},
        environment={"versions": {"torch": "2"}},
        sections=frozenset({"shift", "subgroups"}),
    )
    assert {"7", "19", "20", "23", "29", "33", "36"} <= full["CLAIM 2024"]
    assert "20" not in answered(make_predictions, gates=[{"gate": "G1", "verdict": "fail"}])["CLAIM 2024"]


def test_what_only_people_can_say_is_never_ticked(make_predictions: Callable[..., Predictions]) -> None:
    everything = dict.fromkeys(("sources", "split", "metrics", "subgroups", "external", "outliers", "saliency", "masking"), ("cards", "x"))
    ticked = {found.name: {item.number for item in found.items if item.section} for found in checklists(everything)}
    assert not ticked["CLAIM 2024"] & {"1", "2", "3", "4", "11", "14", "15", "16", "34", "40", "41", "44"}  # title to funding
    assert not ticked["TRIPOD+AI"] & {"1", "2", "3a", "3b", "8a", "17", "18a", "18b", "19", "25", "26", "27b", "27c"}
