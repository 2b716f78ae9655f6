"""Retraining with a slice of new data, from one pack to the comparison, through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.conftest import Scanvit

from scanvit.data.pack import Pack
from scanvit.evaluation.predictions import Predictions

pytestmark = pytest.mark.integration
SETTINGS = ("model.stem_widths=[8,8]", "model.depth=1", "model.dim=16", "trainer.max_epochs=1", "tracking.mlflow=false")


def test_a_run_on_an_extended_pack_is_compared_on_the_old_test_images(scanvit: Scanvit, small_pack: Path, tmp_path: Path) -> None:
    name = Pack.open(small_pack).class_names[0]
    scanvit("data", "extend", small_pack, "--class", name, "--slice", "1/1", "-o", "more")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    for run, pack in (("before", small_pack), ("after", "more")):
        scanvit("train", "tiny", "--pack", pack, "--run-dir", run, *settings)
        scanvit("evaluate", run)
    shown = " ".join(scanvit("compare", "before", "after").split())
    old, new = (Predictions.load(tmp_path / run / "predictions-test.parquet") for run in ("before", "after"))
    assert set(old.image_ids) < set(new.image_ids), "all old test images are still tested, and one or more are new"
    assert f"Scored on the {len(old)} test images that all runs share; left out: {len(new) - len(old)} of after." in shown
    assert "warning: The audit" in shown
    assert "different images" not in shown
