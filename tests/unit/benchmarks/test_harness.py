from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from benchmarks import gpu, pareto, road
from benchmarks.contestants import baseline_network, make_setup, reference_network
from benchmarks.harness import Cost, Options, Ratio, Skipped, below, floors, record
from benchmarks.training import differences, losses

RATIO = Ratio(name="a", what="", ours=10.0, baseline=2.0, unit="images/s", n=3, ratios=(4.0, 5.0, 9.0))


def test_a_ratio_is_above_one_where_we_are_better() -> None:
    assert RATIO.ratio == 5.0  # the median of the rounds
    assert Ratio(name="a", what="", ours=10.0, baseline=4.0, unit="images/s", n=1).ratio == 2.5
    assert Ratio(name="a", what="", ours=2.0, baseline=8.0, unit="ms", n=1).ratio == 4.0


def test_a_ratio_falls_below_its_floor_and_none_goes_without() -> None:
    assert below([RATIO], {"a": 5.0}) == []
    assert below([RATIO], {"a": 5.01}) == [RATIO]
    with pytest.raises(SystemExit, match="No floor for a"):
        below([RATIO], {})
    assert all(value > 0 for value in floors().values())


def test_a_record_holds_figures_and_machine_and_a_quick_one_stands_beside_it(tmp_path: Path) -> None:
    cost = Cost(name="b", what="", value=3.0, unit="s")
    paths = [record("suite", [RATIO, cost], {"cores": 2}, quick=quick, folder=tmp_path) for quick in (False, True)]
    assert [path.name for path in paths] == ["suite.json", "suite.quick.json"]
    content = json.loads(paths[0].read_text())
    assert content["about"] == {"cores": 2}
    assert content["figures"][0]["ratio"] == 5.0


@pytest.mark.slow
def test_baselines_and_fit_lose_alike_for_fifty_steps(tmp_path: Path) -> None:
    small = ("model.stem_widths=[8,8]", "model.dim=16", "model.depth=2", "model.heads=2", "model.dim_head=16", "model.mlp_dim=32")
    setup = make_setup(
        tmp_path, *small, "trainer.per_device_batch_size=2", "trainer.max_epochs=1", "trainer.accelerator=cpu", images=400, size_px=16, classes=3
    )
    images = torch.randn(4, 1, 16, 16)
    for kind in ("original", "standard"):
        torch.testing.assert_close(baseline_network(kind, setup)(images), reference_network(setup)(images), rtol=1e-4, atol=1e-5)
    found = losses(setup, 50, ("scanvit-float32", "original-float32", "standard-float32"))
    assert all(len(set(values)) == 50 for values in found.values())  # it trains
    assert max(differences(found).values()) < 1e-3


def test_the_gpu_suite_says_why_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Skipped, match="sees no GPU"):
        gpu.run(Options())


def test_the_share_of_the_peak_is_that_of_the_cards_data_sheet() -> None:
    assert gpu.share_of_peak(10_350, "NVIDIA H200") == "22.9% of 990 TFLOP/s"  # the aim, as it was derived
    assert gpu.share_of_peak(10_350, "a new card") == "of an unknown peak"


@pytest.mark.slow
def test_the_gpu_suite_trains_and_reads_its_figures_on_a_cpu_too(tmp_path: Path) -> None:
    small = ("model.stem_widths=[8,8]", "model.dim=8", "model.depth=1", "model.heads=1", "model.dim_head=8", "trainer.max_epochs=2", "trainer.accelerator=cpu")
    rate, elapsed_s = gpu.train(gpu.draw_pack(tmp_path, train=64, val=18, size_px=16), tmp_path / "run", small)
    assert rate > 0
    assert 0 < elapsed_s < math.inf


def test_growth_is_the_line_through_two_sizes() -> None:
    assert road.growth((1_000, 3.0), (2_000, 4.0), 10_000) == 12.0
    assert road.growth((1_000, 3.0), (2_000, 1.0), 10_000) == 0.0, "noise between two sizes is no gain"


@pytest.mark.slow
def test_every_stage_of_the_road_has_its_cost(tmp_path: Path) -> None:
    found = road.measure(tmp_path, 300)
    assert found.keys() == road.WHAT.keys()
    assert all(value >= 0 for value in found.values())
    assert found["train, peak"] > 100


def test_the_pareto_picture_joins_what_nothing_beats() -> None:
    def row(name: str, accuracy: float, speed: float) -> dict[str, object]:
        figure = {"accuracy": {"value": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02}, "images": 9, "patients": 3}
        return {"experiment": name, "accuracy": {"val": accuracy}, "images_per_s": speed, "gflop_per_image": 1.0, "runs": [{"val": figure}]}

    rows = [row("slow", 0.9, 10.0), row("beaten", 0.7, 50.0), row("<fast>", 0.8, 100.0)]
    assert [each["experiment"] for each in pareto.front(rows)] == ["slow", "<fast>"]
    drawn = ET.fromstring(pareto.draw({"rows": rows, "minutes": None}))
    svg = "{http://www.w3.org/2000/svg}"
    assert len(drawn.findall(f"{svg}circle")) == 3
    path = drawn.find(f"{svg}path")
    assert path is not None
    assert path.get("d", "").count("L") == 1
