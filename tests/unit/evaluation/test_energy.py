from __future__ import annotations

import json
from pathlib import Path

import pytest

from scanvit.evaluation.energy import training_energy_wh


def write(folder: Path, samples: list[tuple[float, dict[str, float]]]) -> None:
    lines = [{"time": time, "kind": "metrics", "epoch": 1, "step": 1, "values": {f"system/{k}": v for k, v in values.items()}} for time, values in samples]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_two_gpus_at_a_steady_power(tmp_path: Path) -> None:
    power = {"gpu_0_power_usage_watts": 300.0, "gpu_1_power_usage_watts": 60.0, "gpu_0_utilization_percentage": 99.0}
    write(tmp_path, [(10.0 * i, power) for i in range(11)])  # 100 s at 360 W
    assert training_energy_wh(tmp_path) == pytest.approx(10.0)


def test_an_interruption_draws_nothing(tmp_path: Path) -> None:
    write(tmp_path, [(time, {"gpu_0_power_usage_watts": 360.0}) for time in (0, 10, 20, 4000, 4010, 4020)])
    assert training_energy_wh(tmp_path) == pytest.approx(4.0)


def test_without_a_meter_there_is_no_figure(tmp_path: Path) -> None:
    assert training_energy_wh(tmp_path) is None
    write(tmp_path, [(0.0, {"cpu_utilization_percentage": 50.0}), (10.0, {"cpu_utilization_percentage": 50.0})])
    assert training_energy_wh(tmp_path) is None
