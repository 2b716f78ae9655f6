from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from scipy.special import softmax as reference_softmax

from scanvit.core.errors import CheckpointError, DataError, RunError
from scanvit.data.pack import Pack
from scanvit.evaluation import inference as module
from scanvit.evaluation.inference import infer, infer_traits
from scanvit.evaluation.predictions import Predictions, predict_split, softmax
from scanvit.model.checkpoint import load_model


def test_every_image_once_in_the_order_of_the_pack(make_run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    pack, model = Pack.open(run.pack), load_model(run.run_dir)
    with torch.inference_mode():
        one_by_one = [model.logits(torch.from_numpy(np.array(image))[None])[0].numpy() for image in pack.images("test")]
    monkeypatch.setattr(module, "_BATCH_PX", {"cpu": 16 * 16 * 4, "cuda": 16 * 16 * 4})  # 31 images in batches of 4: the last one is short
    steps: list[tuple[int, int]] = []
    predictions = predict_split(model, pack, "test", progress=lambda done, total: steps.append((done, total)))
    assert predictions.image_ids == [f"test-{row:03d}" for row in range(31)]
    assert predictions.targets.tolist() == pack.targets("test").tolist()
    assert steps == [(min(4 * (i + 1), 31), 31) for i in range(8)]
    assert predictions.logits == pytest.approx(np.stack(one_by_one), abs=1e-3)
    assert predictions.logits.std(axis=0).min() > 1e-2  # else the order would not be seen


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_log_odds_tell_apart_what_probabilities_no_longer_do(make_predictions: Callable[..., Predictions], classes: int) -> None:
    table = replace(make_predictions([0] * 40, classes=classes, strength=60.0, seed=1), temperature=0.5)
    values = table.logits.astype(np.float64) / 0.5
    for k in range(classes):
        expected = values[:, k] - logsumexp(np.delete(values, k, axis=1), axis=1) if classes > 1 else np.full(40, np.inf)
        assert table.log_odds[:, k] == pytest.approx(expected, abs=1e-8)
    if classes == 2:
        assert (table.probs[:, 0] == 1).all()
        assert (table.log_odds[:, 0] == -table.log_odds[:, 1]).all()


def test_equal_probabilities_are_equal_log_odds(make_predictions: Callable[..., Predictions]) -> None:
    """A third, whatever the other two thirds are made of."""
    rows = np.array([[1 / 3, 0.3, 1 - 1 / 3 - 0.3], [1 / 3, 0.1, 1 - 1 / 3 - 0.1], [1 / 3, 1 / 3, 1 / 3]])
    table = replace(make_predictions([0, 1, 2]), logits=np.log(rows))
    assert len(set(table.log_odds[:, 0].tolist())) == 1


def test_an_empty_split_names_the_others(make_run: Callable) -> None:
    run = make_run()
    with pytest.raises(DataError, match="'final_eval'") as error:
        predict_split(load_model(run.run_dir), Pack.open(run.pack), "final_eval")
    assert "train, val, test" in (error.value.hint or "")


def test_a_network_that_gives_no_numbers_is_refused(make_run: Callable) -> None:
    run = make_run()
    model = load_model(run.run_dir)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith("head.weight")).fill_(3e38)
    with pytest.raises(CheckpointError, match="no finite numbers for 31 of 31 images"):
        predict_split(model, Pack.open(run.pack), "test")


def test_no_images_no_logits(make_run: Callable) -> None:
    run = make_run()
    model, images = load_model(run.run_dir), Pack.open(run.pack).images("final_eval")
    logits, traits = infer(model, images)
    assert (logits.shape, traits.shape, infer_traits(model, images).shape) == ((0, 3), (0, 8), (0, 8))


def test_the_traits_alone_are_the_traits(make_run: Callable) -> None:
    run = make_run()
    model, images = load_model(run.run_dir), Pack.open(run.pack).images("train")
    assert np.array_equal(infer_traits(model, images), infer(model, images).traits)


def test_probabilities_and_losses_are_those_of_the_formulae() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [-500.0, 0.0, 500.0]], dtype=np.float32)
    assert softmax(logits) == pytest.approx(reference_softmax(logits.astype(np.float64), axis=1))
    predictions = Predictions(
        image_ids=["a", "b"], patient_ids=["a", "b"], sources=["", ""], targets=np.array([0, 0]), logits=logits, class_names=["x", "y", "z"], fingerprint=""
    )
    assert predictions.losses == pytest.approx(-log_softmax(logits.astype(np.float64), axis=1)[:, 0])  # 1000 nats: no clipping


def test_the_table_reads_back_and_says_what_it_is_of(make_predictions: Callable[..., Predictions], tmp_path: Path) -> None:
    predictions = make_predictions([0, 1, 2, 1])
    predictions.save(tmp_path / "predictions-test.parquet")
    table = pq.read_table(tmp_path / "predictions-test.parquet")
    expected = ["image_id", "patient_id", "source", "target", "prediction", "prob_0", "prob_1", "prob_2", "logit_0", "logit_1", "logit_2"]
    assert table.column_names == expected
    assert table["prob_1"].type == "float"
    loaded = Predictions.load(tmp_path / "predictions-test.parquet")
    assert (loaded.logits == predictions.logits).all()
    assert (loaded.targets == predictions.targets).all()
    assert table["prediction"].to_pylist() == predictions.predicted.tolist()
    for name in ("image_ids", "patient_ids", "sources", "class_names", "fingerprint", "checkpoint"):
        assert getattr(loaded, name) == getattr(predictions, name)


def test_a_file_that_is_no_table_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    for path in (tmp_path / "junk.parquet", tmp_path / "none.parquet"):
        with pytest.raises(RunError, match="no table of predictions"):
            Predictions.load(path)


def test_several_processes_give_the_table_of_one(make_run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """31 images in batches of 4: neither two nor three processes get the same share."""
    monkeypatch.setattr(module, "_BATCH_PX", {"cpu": 16 * 16 * 4, "cuda": 16 * 16 * 4})
    run = make_run()
    pack, model = Pack.open(run.pack), load_model(run.run_dir)
    steps: list[tuple[int, int]] = []
    alone = predict_split(model, pack, "test")
    for processes in (2, 3):
        several = predict_split(model, pack, "test", processes=processes, progress=lambda done, total: steps.append((done, total)))
        assert several.image_ids == alone.image_ids
        assert several.targets.tolist() == alone.targets.tolist()
        assert several.probs == pytest.approx(alone.probs, abs=1e-6)
        assert several.logits == pytest.approx(alone.logits, abs=1e-5)
    assert steps == 2 * [(min(4 * (i + 1), 31), 31) for i in range(8)]
