"""What the first paragraphs of a report say."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..estimates import Estimate
from ..scores import Scores
from ..trust import Trust

LOW_SENSITIVITY = 0.8
"""Classes whose interval reaches below this are named as not to be relied on."""
FEW_PATIENTS = 30
"""Classes with fewer patients are named as too few to judge."""
_SURE_COVERAGE = 0.8


def summarize(scores: Scores) -> dict[str, Any]:
    """The commonest class, the weakest, the commonest confusion, what not to rely on, and what may be built on."""
    matrix = np.array(scores.confusion_matrix)
    actual = matrix.sum(axis=1)
    errors = matrix - np.diag(np.diag(matrix))
    truth, called = (int(i) for i in np.unravel_index(errors.argmax(), errors.shape))
    judged = [(name, scores.per_class[name]) for name in scores.class_names if scores.per_class[name].images]
    # A class of a handful of patients has nearly any sensitivity by chance: it stands under "too few to say".
    enough = [(name, s) for name, s in judged if s.patients >= FEW_PATIENTS] or judged
    weakest = min(enough, key=lambda item: item[1].figures["recall"].value or 0.0)
    low = [(name, s.figures["recall"]) for name, s in judged if may_be_low(s.figures["recall"]) and s.patients >= FEW_PATIENTS]
    return {
        "commonest": {"name": scores.class_names[int(actual.argmax())], "share": float(actual.max() / actual.sum())},
        "weakest": {"name": weakest[0], "recall": weakest[1].figures["recall"]} if len(enough) > 1 else None,
        "confusion": {
            "truth": scores.class_names[truth],
            "called": scores.class_names[called],
            "count": int(errors[truth, called]),
            "of": int(actual[truth]),
        },
        "low": sorted(low, key=lambda item: item[1].value or 0.0),
        "few": [(name, s.patients) for name, s in judged if s.patients < FEW_PATIENTS],
        "absent": [name for name in scores.class_names if not scores.per_class[name].images],
        "low_bound": LOW_SENSITIVITY,
        "few_bound": FEW_PATIENTS,
        "sure": next(row for row in scores.trust.selective.covered if row.aimed_coverage == _SURE_COVERAGE) if scores.trust else None,
        "unchecked_maps": _unchecked_maps(scores.trust) if scores.trust else [],
    }


def may_be_low(recall: Estimate) -> bool:
    """Without an interval the value itself decides: with enough patients that agree, it is near the truth."""
    bound = recall.value if recall.low is None else recall.low
    return bound is None or bound < LOW_SENSITIVITY


def _unchecked_maps(trust: Trust) -> list[str]:
    return [check.method for check in trust.saliency.checks if not check.is_changed]
