"""Files for other programs: they answer as the network does, say what they are for, and are there whole or not at all."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanvit.cli import main
from scanvit.core.errors import CheckpointError, ConfigError, ExportError
from scanvit.data.pack import Pack
from scanvit.evaluation.calibration import fit_temperature
from scanvit.evaluation.engines import open_engine
from scanvit.evaluation.export import export
from scanvit.evaluation.predictions import softmax
from scanvit.evaluation.torch_engine import TorchEngine
from scanvit.model.checkpoint import load_model

pytestmark = [pytest.mark.integration]


@pytest.fixture(scope="module")
def test_images(small_pack: Path) -> np.ndarray:
    return np.array(Pack.open(small_pack).images("test"))


def test_onnx_answers_as_the_network_does(trained: Path, onnx_file: Path, test_images: np.ndarray) -> None:
    ours, theirs = TorchEngine(load_model(trained))(test_images), open_engine(onnx_file)(test_images)
    assert np.abs(ours.probs - theirs.probs).max() < 1e-4
    assert ours.outlier_scores is not None
    assert theirs.outlier_scores == pytest.approx(ours.outlier_scores, rel=1e-3, abs=1e-3)


def test_an_onnx_file_needs_nothing_of_scanvit(onnx_file: Path, trained: Path, test_images: np.ndarray) -> None:
    """Another program: any number of images, uint8 in, probabilities out, and all it has to know as JSON."""
    np.save(trained / "images.npy", test_images)
    code = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = numpy.load(sys.argv[2])
whole = session.run(["probabilities"], {"pixels": images})[0]
single = numpy.concatenate([session.run(["probabilities"], {"pixels": images[i:i + 1]})[0] for i in range(3)])
assert numpy.abs(whole[:3] - single).max() < 1e-5
about = {key.split(".")[1]: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
assert not {name for name in sys.modules if name.startswith(("torch", "scanvit"))}
print(json.dumps({"probabilities": whole.tolist()} | about))
"""
    command = [sys.executable, "-c", code, str(onnx_file), str(trained / "images.npy")]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    model = load_model(trained)
    assert np.abs(np.array(said["probabilities"]) - TorchEngine(model)(test_images).probs).max() < 1e-4
    assert (said["class_names"], said["contract"], said["fingerprint"]) == (model.class_names, model.contract.to_dict(), model.fingerprint)
    assert said["calibration"]["temperature"] == model.temperature
    assert said["audit"] == model.audit
    assert said["export"]["opset"] == 20
    assert said["export"]["check"]["where"] == "test"
    assert said["export"]["check"]["images"] == len(test_images)
    assert "pack" not in said["experiment"]["data"], "a path of the machine that trained"


def test_safetensors_are_the_network(trained: Path, test_images: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(trained), "--format", "safetensors"]) == 0
    assert f"{len(test_images)} images of the test split" in capsys.readouterr().out
    model, before = load_model(trained / "model.safetensors"), load_model(trained)
    weights = before.network.state_dict()
    assert model.network.state_dict().keys() == weights.keys()
    assert all((weight == weights[key]).all() for key, weight in model.network.state_dict().items())
    assert (model.class_names, model.contract, model.calibration) == (before.class_names, before.contract, before.calibration)


def test_a_program_of_torch_export_runs_elsewhere(trained: Path, test_images: np.ndarray, tmp_path: Path) -> None:
    export(trained, tmp_path / "model.pt2", format="torch")
    code = """
import sys, json, numpy, torch
extra = {"scanvit.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
print(json.dumps([json.loads(extra["scanvit.json"])["class_names"], program(torch.from_numpy(numpy.load(sys.argv[2])))[1].tolist()]))
"""
    np.save(tmp_path / "images.npy", test_images)
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "model.pt2", tmp_path / "images.npy"], capture_output=True, text=True, check=True)
    names, probs = json.loads(done.stdout)
    model = load_model(trained)
    assert names == model.class_names
    assert np.abs(np.array(probs) - TorchEngine(model)(test_images).probs).max() < 1e-4
    with pytest.raises(CheckpointError, match="may run code"):
        open_engine(tmp_path / "model.pt2")
    assert zipfile.is_zipfile(tmp_path / "model.pt2")


def test_int8_says_what_it_costs_and_too_much_is_refused(trained: Path, small_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    out = tmp_path / "small.onnx"
    assert main(["export", str(trained), "--quantize", "int8", "--max-drop", "1", "-o", str(out)]) == 0
    assert "points of accuracy" in capsys.readouterr().out
    engine = open_engine(out)
    assert engine.name == "ONNX Runtime, int8"
    assert "drop" in engine.record["export"]["check"]
    nodes = {node.op_type for node in pytest.importorskip("onnx").load(out).graph.node}
    assert "QuantizeLinear" in nodes
    # What val fitted is fitted on the rounded answers, and the graph holds what the record says.
    answers, val, model = engine(np.array(Pack.open(small_pack).images("val"))), Pack.open(small_pack).targets("val"), load_model(trained)
    assert engine.calibration
    assert engine.calibration.temperature == pytest.approx(fit_temperature(answers.logits, np.asarray(val, np.int64)))
    assert engine.calibration.temperature != model.temperature
    assert answers.probs == pytest.approx(softmax(answers.logits, engine.calibration.temperature), abs=1e-5)
    assert answers.outlier_scores is not None
    assert np.quantile(answers.outlier_scores, 0.99, method="higher") == pytest.approx(1, abs=1e-4)
    refused = tmp_path / "refused.onnx"
    with pytest.raises(ExportError, match="nothing was written"):  # a bound that no loss at all exceeds
        export(trained, refused, format="onnx", quantize="int8", max_drop=-1.0)
    assert not refused.exists()


@pytest.mark.parametrize("options", [[], ["--quantize", "int8", "--max-drop", "1"], ["--format", "torch"], ["--format", "safetensors"]])
def test_the_mean_over_shifts_goes_into_every_file(trained: Path, test_images: np.ndarray, tmp_path: Path, options: list[str]) -> None:
    """``export`` itself compares the file with the network on the test split; here the network is one that reads each image nine times."""
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    model = load_model(trained)
    model.experiment["inference"] = {"shift_px": 1}
    shifted = _saved(model, tmp_path)
    out = tmp_path / ("model." + {"torch": "pt2", "safetensors": "safetensors"}.get(options[-1] if options else "", "onnx"))
    assert main(["export", str(shifted), "-o", str(out), *options]) == 0
    if out.suffix != ".pt2":
        engine = open_engine(out)
        assert engine.record["experiment"]["inference"] == {"shift_px": 1}
        averaged, once = TorchEngine(load_model(shifted))(test_images).logits, TorchEngine(load_model(trained))(test_images).logits
        allowed = 0.5 if engine.name.endswith("int8") else 1e-4
        assert np.abs(engine(test_images).logits - averaged).max() < allowed
        assert np.abs(averaged - once).max() > 0.01


def _saved(model: Any, folder: Path) -> Path:
    from scanvit.model.checkpoint import save_checkpoint

    path = folder / "worse.pth"
    about = {"class_names": model.class_names, "contract": model.contract, "experiment": model.experiment}
    save_checkpoint(path, state_dict=model.network.state_dict(), fingerprint=model.fingerprint, audit=[], metrics={}, **about)
    return path


def test_without_the_pack_generated_images_are_asked_about_and_it_says_so(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    model = load_model(trained)
    model.experiment["data"]["pack"] = str(tmp_path / "gone")
    alone = _saved(model, tmp_path)
    assert main(["export", str(alone), "-o", str(tmp_path / "m.onnx")]) == 0
    shown = capsys.readouterr()
    assert "generated images" in shown.out
    assert "not calibrated" in shown.err
    assert main(["export", str(alone), "-o", str(tmp_path / "q.onnx"), "--quantize", "int8"]) == 10
    assert not (tmp_path / "q.onnx").exists()
    assert main(["export", str(alone), "-o", str(tmp_path / "q.onnx"), "--pack", str(tmp_path / "gone")]) == 31


def test_a_file_that_answers_otherwise_is_not_written(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    from scanvit.model.transformer import FeedForward

    before = FeedForward.forward
    # Seen by the exporter alone: the network itself answers as before.
    monkeypatch.setattr(FeedForward, "forward", lambda self, tokens: before(self, tokens) * (1.05 if _exporting() else 1.0))
    assert main(["export", str(trained), "-o", str(tmp_path / "m.onnx")]) == 51
    assert list(tmp_path.iterdir()) == []


def _exporting() -> bool:
    import torch

    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_what_is_not_installed_is_named(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else found(name, *more))
    with pytest.raises(ConfigError, match=f"needs {missing}, not installed") as error:
        export(trained, tmp_path / "m.onnx", format="onnx")
    assert "scanvit[onnx]" in str(error.value.hint)


def test_wrong_wishes_are_usage(trained: Path, tmp_path: Path) -> None:
    assert main(["export", str(trained), "--format", "torch", "--quantize", "int8"]) == 10
    assert main(["export", str(trained), "-o", str(tmp_path / "model.bin")]) == 10
    assert main(["export", str(trained / "checkpoint.pth")]) == 10
    assert main(["export", str(tmp_path / "none"), "-o", str(tmp_path / "m.onnx")]) == 41


@pytest.mark.parametrize("what", ["no model", "cut", "foreign", "format", "names", "another graph"])
def test_a_damaged_or_foreign_file_is_refused_in_a_sentence(onnx_file: Path, tmp_path: Path, what: str) -> None:
    import onnx

    proto, path = onnx.load(onnx_file), tmp_path / "m.onnx"
    values = {entry.key: entry for entry in proto.metadata_props}
    if what == "foreign":
        del proto.metadata_props[:]
    if what == "format":
        values["scanvit.format"].value = "99"
    if what == "names":
        values["scanvit.class_names"].value = "[1, 2]"
    if what == "another graph":
        values["scanvit.contract"].value = values["scanvit.contract"].value.replace("16", "32")
    data = proto.SerializeToString()
    path.write_bytes(b"no model" if what == "no model" else data[: len(data) // 2] if what == "cut" else data)
    with pytest.raises(CheckpointError):
        open_engine(path)


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 64)
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "b.safetensors")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "c.safetensors", metadata={"scanvit": "[]"})
    for name in "abc":
        with pytest.raises(CheckpointError):
            load_model(tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="no file"):
        load_model(tmp_path / "d.safetensors")
