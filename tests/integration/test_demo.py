"""``scanvit demo`` as a newcomer runs it, and the claim that its images are hard enough to show something."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.integration.conftest import Scanvit

import scanvit as library
from scanvit.core.events import metric_history
from scanvit.data.pack import Pack
from scanvit.evaluation.engines import open_engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1100)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished demo, and what it printed. About two minutes on two cores that have nothing else to do."""
    folder = tmp_path_factory.mktemp("demo")
    runner = Scanvit(folder)
    process = runner.start("demo", "-o", "here", OMP_NUM_THREADS="2")
    try:
        out, err = process.communicate(timeout=1000)
    finally:
        runner.close()
    assert process.returncode == 0, out + err
    assert "Traceback" not in err
    return folder, out


def test_every_stage_leaves_its_artifact_and_the_table_says_where(demo: tuple[Path, str]) -> None:
    folder, out = demo
    run_dir = folder / "here" / "runs" / "tiny"
    for path in ("here/phantoms", "here/pack", "here/runs/tiny", "here/runs/tiny/checkpoint.pth", "here/runs/tiny/report.html", "scanvit ui here/runs"):
        assert path in out
    assert "scanvit data prepare IMAGES -o packs/mine" in out
    scores = json.loads((run_dir / "scores-test.json").read_text())
    assert len(scores["class_names"]) == 9
    accuracy = scores["overall"]["accuracy"]
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert json.loads((run_dir / "tracking.json").read_text())["offset"] == (run_dir / "events.jsonl").stat().st_size, "all of it is in MLflow"
    assert f"val_recall/{scores['class_names'][0]}" in metric_history(run_dir)


def test_what_was_planted_is_in_the_quarantine(demo: tuple[Path, str]) -> None:
    lines = (demo[0] / "here" / "pack" / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["reason"] for line in lines} == {"duplicate", "unreadable"}


def test_a_second_demo_repeats_nothing_that_is_finished(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    checkpoint = (folder / "here" / "runs" / "tiny" / "checkpoint.pth").stat().st_mtime_ns
    out = Scanvit(folder)("demo", "-o", "here")
    assert out.count("is there already") == 2
    assert "is finished already" in out
    assert (folder / "here" / "runs" / "tiny" / "checkpoint.pth").stat().st_mtime_ns == checkpoint


def test_a_pixel_wise_logistic_regression_stays_15_points_below_the_network(demo: tuple[Path, str]) -> None:
    """Same pack, same patients; the regression gets val as well, and the better of its strengths on test."""
    pack = Pack.open(demo[0] / "here" / "pack")
    fitted = ("train", "val")
    images = np.concatenate([pack.images(split) for split in fitted]).reshape(-1, 64 * 64) / 255.0
    targets = np.concatenate([pack.targets(split) for split in fitted])
    test, test_targets = pack.images("test").reshape(-1, 64 * 64) / 255.0, pack.targets("test")
    accuracies = []
    for strength in (1e-4, 1e-2):
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        accuracies.append(float(regression.fit(images, targets).score(test, test_targets)))
    network = json.loads((demo[0] / "here" / "runs" / "tiny" / "scores-test.json").read_text())["overall"]["accuracy"]["value"]
    assert max(accuracies) <= network - 0.15


def test_the_model_loads_from_the_run_and_agrees_with_its_predictions_table(demo: tuple[Path, str]) -> None:
    run_dir = demo[0] / "here" / "runs" / "tiny"
    model = library.load_model(run_dir)
    assert not model.training
    pack = Pack.open(demo[0] / "here" / "pack")
    with torch.inference_mode():
        found = model.logits(torch.from_numpy(np.array(pack.images("test")))).argmax(1).numpy()
    scores = json.loads((run_dir / "scores-test.json").read_text())
    assert float((found == pack.targets("test")).mean()) == pytest.approx(scores["overall"]["accuracy"]["value"])


def test_photographs_noise_and_negatives_are_named_as_outliers(demo: tuple[Path, str]) -> None:
    """A trained network is sure of all of them: what it calls them must not be listened to."""
    engine, pack = open_engine(demo[0] / "here" / "runs" / "tiny"), Pack.open(demo[0] / "here" / "pack")
    test, size = np.array(pack.images("test")), pack.contract.image_size_px
    grey = [photo.mean(axis=2).astype(np.uint8) for photo in load_sample_images().images]
    crops = [photo[top : top + 3 * size, left : left + 3 * size][1::3, 1::3] for photo in grey for top in (0, 100, 200) for left in (0, 200, 400)]
    noise = np.random.default_rng(0).integers(0, 256, (50, 1, size, size), np.uint8)

    def outliers(pixels: np.ndarray) -> float:
        scores = engine(pixels).outlier_scores
        assert scores is not None
        return float((scores > 1).mean())

    assert outliers(test) < 0.1
    assert {name: outliers(images) for name, images in {"photos": np.stack(crops)[:, None], "noise": noise, "negatives": 255 - test}.items()} == {
        "photos": pytest.approx(1, abs=0.1),
        "noise": 1,
        "negatives": pytest.approx(1, abs=0.1),
    }
