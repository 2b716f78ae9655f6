"""From judged runs to the model registry of a real MLflow server: gates, alias, and a version that loads and predicts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.integration.conftest import Scanvit
from tests.mlflow_server import MlflowServer

import scanvit as package
from scanvit.core.errors import AuditError
from scanvit.core.loading import load_experiment
from scanvit.data.audit.run import audit
from scanvit.data.pack import Pack
from scanvit.evaluation.evaluate import evaluate
from scanvit.evaluation.predict import predict_files
from scanvit.storage.mlflow_client import connect
from scanvit.training.launch import launch
from scanvit.training.registry import register

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*type hint is inferred as AnyType.*:UserWarning"),
]

SETTINGS = (
    "model.stem_widths=[8,8]",
    "model.depth=1",
    "model.dim=16",
    "tracking.drain_timeout_s=0",
    "tracking.system_metrics_every_s=0",
    "tracking.experiment_name=gates",
)


@pytest.fixture
def runs(tmp_path: Path, small_pack: Path, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A good run and one that has hardly learnt, judged on the same images, tracked by a server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    pack = Path(shutil.copytree(small_pack, tmp_path / "pack"))
    folders = {}
    for name, epochs, lr in (("good", 12, 3e-3), ("poor", 1, 1e-6)):
        experiment = load_experiment("tiny", (*SETTINGS, f"trainer.max_epochs={epochs}", f"optimizer.lr={lr}"))
        folders[name] = tmp_path / name
        launch(replace(experiment, data=replace(experiment.data, pack=str(pack))), Pack.open(pack), folders[name])
        evaluate(folders[name], draws=200)
    return folders | {"pack": pack}


def acknowledge(pack: Path) -> None:
    failed = [gate["gate"] for gate in Pack.open(pack).audit() if gate["verdict"] == "fail"]
    assert failed, "so small a pack does not pass"
    audit(pack, acknowledge=dict.fromkeys(failed, "a test needs no more images"))


def png(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_a_run_is_registered_behind_its_gates_and_serves(runs: dict[str, Path], mlflow_server: MlflowServer, tmp_path: Path, scanvit: Scanvit) -> None:
    import mlflow

    uri = mlflow_server.uri
    with pytest.raises(AuditError, match="unacknowledged"):
        register(runs["good"])
    acknowledge(runs["pack"])
    first = register(runs["good"])
    assert (first.name, first.version, first.created) == ("gates", 1, True)
    again = register(runs["good"])
    assert (again.version, again.created) == (1, False)

    model = mlflow.pyfunc.load_model("models:/gates@champion")
    assert [column.name for column in model.metadata.signature.outputs.inputs] == ["0", "1", "2"]
    images = [png(np.asarray(image)[0]) for image in Pack.open(runs["pack"]).images("test")[:3]]
    served = model.predict([{"image": data} for data in images])
    paths = []
    for number, data in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(data)
    expected = [result.probabilities for result in predict_files(runs["good"], paths)]
    assert [list(row.values()) for row in served] == [pytest.approx(list(row.values()), abs=1e-6) for row in expected if row]
    with pytest.raises(Exception, match=r"Row 1: "):
        model.predict([{"image": images[0]}, {"image": b"no image"}])

    loaded, own = package.load_model("models:/gates@champion"), package.load_model(runs["good"])
    pixels = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    assert torch.equal(loaded.logits(pixels), own.logits(pixels))
    assert torch.equal(package.load_model(f"runs:/{first.run_id}").logits(pixels), own.logits(pixels))
    stored = [path.name for path in (mlflow_server.folder / "artifacts").rglob("*") if path.is_file() and "model" in path.parts]
    assert not [name for name in stored if name.endswith((".pkl", ".py", ".pickle"))]

    out = scanvit("register", runs["poor"], code=71, MLFLOW_TRACKING_URI=uri)
    assert "is worse than the champion" in out
    assert f"Paired on the {Pack.open(runs['pack']).size('test')} test images" in out
    assert "--force" in out
    out = scanvit("register", runs["poor"], "--force", "to see what happens", MLFLOW_TRACKING_URI=uri)
    assert "version 2" in out
    tags: dict[str, Any] = connect(uri).get_model_version_by_alias("gates", "champion").tags
    assert tags["scanvit.forced"] == "to see what happens"
    assert tags["scanvit.audit"] == "acknowledged"
    assert register(runs["good"]).version == 1, "the better one takes the alias back without force"
    assert connect(uri).get_model_version_by_alias("gates", "champion").version in (1, "1")
