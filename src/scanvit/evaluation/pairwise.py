"""Runs tested against each other on the same images, with p-values that allow for how many tests were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from .estimates import Estimate
from .paired import Paired, compare_paired, holm
from .predictions import Predictions

Pairs = Literal["first", "all"]
"""Each run against the first, or every run against every other."""
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Pair:
    """``second`` against ``first``: differences are second - first."""

    first: str
    second: str
    paired: Paired
    mcnemar_p: float
    """Adjusted after Holm for all pairs of the comparison."""
    delong_p: dict[str, float]
    """{class: p}, adjusted after Holm for all classes of all pairs; without classes that cannot be tested."""

    @property
    def sentence(self) -> str:
        gain, test = self.paired.differences["accuracy"], self.paired.mcnemar
        counts = f"{test.second_only:,} images are named rightly by {self.second} alone, {test.first_only:,} by {self.first} alone"
        if gain.value is None or gain.value == 0:
            return f"{self.second} and {self.first} name the same share rightly: {counts}."
        more = "more" if gain.value > 0 else "fewer"
        verdict = "a difference that chance would seldom give" if self.mcnemar_p < LEVEL else "no more than chance may give"
        said = f"{self.second} names {100 * abs(gain.value):.1f} points {more} rightly than {self.first}{_interval(gain)}"
        return f"{said}: {counts}; {verdict} (p {_p(self.mcnemar_p)}, adjusted)."


def _p(value: float) -> str:
    return "under 0.001" if value < 0.001 else f"{value:.3f}"


def _interval(gain: Estimate) -> str:
    return "" if gain.low is None or gain.high is None else f" (difference {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def compare_pairs(labels: Sequence[str], tables: Sequence[Predictions], *, pairs: Pairs, draws: int, seed: int) -> list[Pair]:
    """``tables``: of the runs, row by row the same images (``common_images.common_predictions``)."""
    indices = [(0, other) for other in range(1, len(tables))] if pairs == "first" else list(combinations(range(len(tables)), 2))
    results = {pair: compare_paired(tables[pair[0]], tables[pair[1]], draws=draws, seed=seed) for pair in indices}
    mcnemar = holm({f"{first} {second}": result.mcnemar.p_value for (first, second), result in results.items()})
    tests = {(pair, name): test.p_value for pair, result in results.items() for name, test in result.delong.items() if test}
    numbers = {key: str(number) for number, key in enumerate(tests)}
    delong = holm({numbers[key]: p_value for key, p_value in tests.items()})
    return [
        Pair(
            first=labels[first],
            second=labels[second],
            paired=result,
            mcnemar_p=mcnemar[f"{first} {second}"],
            delong_p={name: delong[numbers[key]] for key in tests for pair, name in [key] if pair == (first, second)},
        )
        for (first, second), result in results.items()
    ]
