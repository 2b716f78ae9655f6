"""What a training drew from the socket of its GPUs, where their driver told (training.system_metrics)."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from ..core.events import read_events

_POWER = re.compile(r"system/gpu_[0-9]+_power_usage_watts")
_LONGEST_GAP = 3.0
"""Times the usual distance of two samples: over a longer one the run stood still, and drew nothing that counts."""


def training_energy_wh(run_dir: Path) -> float | None:
    """Watt-hours of all GPUs of the machine that wrote the events: their power by the trapezoidal rule. None where no power was recorded.

    The rest of the machine (CPU, memory, fans) is not in it.
    """
    samples: list[tuple[float, float]] = []
    for event in read_events(run_dir):
        power = [value for name, value in event["values"].items() if _POWER.fullmatch(name) and value is not None]
        if event["kind"] == "metrics" and power and isinstance(event.get("time"), int | float):
            samples.append((float(event["time"]), float(sum(power))))
    gaps = sorted(later - earlier for (earlier, _), (later, _) in pairwise(samples))
    if not gaps:
        return None
    longest = _LONGEST_GAP * gaps[len(gaps) // 2]
    joules = sum((later - earlier) * (first + second) / 2 for (earlier, first), (later, second) in pairwise(samples) if 0 < later - earlier <= longest)
    return joules / 3600
