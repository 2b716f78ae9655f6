from __future__ import annotations

import re
from collections.abc import Callable

from scanvit.evaluation.evaluate import evaluate

GATE = {"gate": "G1", "title": "Patients", "verdict": "fail", "figure": 3, "detail": "Three *patients*\n# in two splits.", "reason": None}


def test_the_cards_say_what_the_scores_say_and_names_stay_text(make_run: Callable) -> None:
    run = make_run(class_names=["<img src=x>", "a|b", "normal"], gates=[GATE])
    scores = evaluate(run.run_dir, draws=20)
    model, data = ((run.run_dir / f"{name}-card.md").read_text(encoding="utf-8") for name in ("model", "data"))
    accuracy = scores.overall["accuracy"].value
    assert accuracy is not None
    assert f"{100 * accuracy:.1f}" in model
    assert "no medical device" in model
    assert scores.fingerprint in model
    assert scores.fingerprint in data
    # A name from outside is neither HTML nor a column of a table nor a heading.
    assert not re.search(r"(?<!\\)<img", model + data)
    assert r"a\|b" in model
    assert r"Three \*patients\* \# in two splits." in data
    assert "- [x] 22" in model  # the network is described
    assert "- [ ] 44" in model  # who paid is not known
    rows = [line for line in model.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 8}
    assert "to be filled in" in data


def test_only_the_test_split_makes_cards(make_run: Callable) -> None:
    run = make_run()
    evaluate(run.run_dir, split="val", draws=0)
    assert not list(run.run_dir.glob("*.md"))
