from __future__ import annotations

import copy
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from scanvit.core.config import Experiment
from scanvit.core.contract import PixelContract
from scanvit.core.errors import CheckpointError, RunMissingError
from scanvit.core.loading import experiment_to_dict
from scanvit.model import VisionTransformer, load_model, save_checkpoint

CLASSES = ["a", "b", "<script>"]
CONTRACT = PixelContract(image_size_px=16, mean=0.3, std=0.7)


@pytest.fixture
def network(make_network: Callable[..., VisionTransformer]) -> VisionTransformer:
    return make_network()


@pytest.fixture
def fields(network: VisionTransformer) -> dict[str, Any]:
    return {
        "state_dict": network.state_dict(),
        "class_names": CLASSES,
        "contract": CONTRACT,
        "experiment": experiment_to_dict(Experiment(name="small", model=network.config)),
        "fingerprint": "f" * 64,
        "audit": [{"gate": "patients", "verdict": "acknowledged", "figure": 3, "reason": None}],
        "metrics": {"epoch": 4, "step": 120, "val_loss": 0.25, "val_accuracy": 0.75},
    }


@pytest.fixture
def saved(tmp_path: Path, fields: dict[str, Any]) -> Path:
    save_checkpoint(tmp_path / "run" / "checkpoint.pth", **fields)
    return tmp_path / "run" / "checkpoint.pth"


def rewrite(path: Path, **changes: Any) -> Path:
    """The same file with some fields changed; a value of None takes the field away."""
    content = torch.load(path, weights_only=True)
    content = {key: value for key, value in (content | changes).items() if value is not None}
    torch.save(content, path)
    return path


def test_file_holds_exactly_the_documented_keys(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    assert set(content) == {"format", "state_dict", "class_names", "contract", "experiment", "fingerprint", "audit", "metrics"}
    assert content["format"] == 1
    assert content["contract"] == CONTRACT.to_dict()


@pytest.mark.parametrize("from_folder", [True, False])
def test_what_is_saved_is_loaded(saved: Path, network: VisionTransformer, fields: dict[str, Any], from_folder: bool) -> None:
    classifier = load_model(saved.parent if from_folder else str(saved))
    assert not any(module.training for module in classifier.modules())
    assert (classifier.class_names, classifier.contract) == (CLASSES, CONTRACT)
    for name in ("experiment", "fingerprint", "audit", "metrics"):
        assert getattr(classifier, name) == fields[name]
    assert classifier.network.config == network.config
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(classifier(images), network(images))
    pixels = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(classifier.logits(pixels), network((pixels.float() / 255 - 0.3) / 0.7))


def test_the_mean_over_shifts_is_that_of_the_shifted_images_logits(saved: Path, fields: dict[str, Any]) -> None:
    """An image with a flat border, so that rolling it is shifting it."""
    once = load_model(saved)
    shifted = load_model(rewrite(saved, experiment=fields["experiment"] | {"inference": {"shift_px": 2}}))
    assert (once.inference.passes, shifted.inference.passes) == (1, 25)
    pixels = torch.full((3, 1, 16, 16), 7, dtype=torch.uint8)
    pixels[:, :, 2:-2, 2:-2] = torch.randint(0, 256, (3, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rolled = [pixels.roll((down, right), dims=(2, 3)) for down in range(-2, 3) for right in range(-2, 3)]
    with torch.inference_mode():
        torch.testing.assert_close(shifted.logits(pixels), torch.stack([once.logits(images) for images in rolled]).mean(dim=0))
        for what, found in enumerate(shifted.read(pixels)):
            torch.testing.assert_close(found, torch.stack([once.read(images)[what] for images in rolled]).mean(dim=0))
        assert torch.equal(shifted.traits(pixels), shifted.read(pixels)[1])
        assert (shifted.logits(pixels) - once.logits(pixels)).abs().max() > 1e-4


@pytest.mark.parametrize("inference", [{"shift_px": 5}, {"shift_px": -1}, {"passes": 3}, 7])
def test_inference_that_cannot_be_is_refused(saved: Path, fields: dict[str, Any], inference: object) -> None:
    with pytest.raises(CheckpointError, match="inference"):
        load_model(rewrite(saved, experiment=fields["experiment"] | {"inference": inference}))


def test_a_checkpoint_from_before_inference_was_a_setting_is_read_once(saved: Path, fields: dict[str, Any]) -> None:
    earlier = {key: value for key, value in fields["experiment"].items() if key != "inference"}
    assert load_model(rewrite(saved, experiment=earlier)).inference.passes == 1


def test_loaded_network_can_be_trained_on(saved: Path) -> None:
    classifier = load_model(saved)
    classifier(torch.randn(2, 1, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters())


def test_a_view_takes_only_itself_into_the_file(tmp_path: Path, fields: dict[str, Any], saved: Path) -> None:
    large = torch.zeros(2_000_000)
    large[:3] = fields["state_dict"]["head.bias"]
    save_checkpoint(tmp_path / "view.pth", **fields | {"state_dict": fields["state_dict"] | {"head.bias": large[:3]}})
    assert (tmp_path / "view.pth").stat().st_size == pytest.approx(saved.stat().st_size, rel=0.01)


@pytest.mark.parametrize("value", [np.float64(0.5), torch.tensor(1.0), Path("x"), {1, 2}])
def test_data_that_is_not_plain_is_never_written(tmp_path: Path, fields: dict[str, Any], value: object) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\.metrics\.val_loss is a .* no plain data"):
        save_checkpoint(tmp_path / "checkpoint.pth", **fields | {"metrics": {"val_loss": value}})
    assert list(tmp_path.iterdir()) == []


def test_a_second_save_replaces_the_first(saved: Path, fields: dict[str, Any]) -> None:
    save_checkpoint(saved, **fields | {"metrics": {"epoch": 5}})
    assert load_model(saved).metrics == {"epoch": 5}
    assert os.listdir(saved.parent) == ["checkpoint.pth"]


def test_classes_and_pixels_of_a_checkpoint_are_not_up_for_choice(saved: Path) -> None:
    assert load_model(saved, class_names=CLASSES, contract=CONTRACT).class_names == CLASSES
    with pytest.raises(CheckpointError, match="classes are"):
        load_model(saved, class_names=["b", "a", "c"])
    with pytest.raises(CheckpointError, match="pixels are"):
        load_model(saved, contract=PixelContract(image_size_px=16))


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(RunMissingError, match="no finished run"):
        load_model(tmp_path)
    with pytest.raises(RunMissingError, match="There is no run"):
        load_model(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="There is no file"):
        load_model(tmp_path / "absent.pth")


class Hostile:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.proof}",))


@pytest.mark.parametrize("form", ["pickle", "archive", "inside"])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, saved: Path, form: str) -> None:
    hostile, proof = Hostile(tmp_path / "proof"), tmp_path / "proof"
    match form:
        case "pickle":
            saved.write_bytes(pickle.dumps(hostile, protocol=2))
        case "archive":
            torch.save(hostile, saved)
        case "inside":
            rewrite(saved, metrics={"val_loss": hostile})
    with pytest.raises(CheckpointError, match="more than tensors and plain data; it was not executed"):
        load_model(saved)
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x89PNG\r\n", b"PK\x03\x04 no archive", pickle.dumps({"a": 1}), pickle.dumps([1], protocol=2)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth cannot be read as a checkpoint"):
        load_model(path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {}, {"a": 1}, {1: torch.zeros(1)}, {"state_dict": {"fc.weight": torch.zeros(2, 2)}}])
def test_other_data_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth"):
        load_model(path)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_checkpoint_is_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    path = saved.with_name("truncated.pth")
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError):
        load_model(path)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_changes_nothing(saved: Path, share: float, bit: int) -> None:
    damaged = bytearray(saved.read_bytes())
    damaged[int(share * len(damaged))] ^= 1 << bit
    path = saved.with_name("flipped.pth")
    path.write_bytes(damaged)
    images = torch.ones(1, 1, 16, 16)
    try:
        classifier = load_model(path)
    except CheckpointError:
        return
    assert torch.equal(classifier(images), load_model(saved)(images))


def test_a_compressed_archive_is_refused_before_it_is_inflated(saved: Path) -> None:
    path = saved.with_name("compressed.pth")
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(CheckpointError, match="is compressed"):
        load_model(path)


def test_an_entry_marked_as_a_folder_is_refused(saved: Path) -> None:
    # PyTorch takes it for empty and leaves its tensor's memory as it was.
    path = saved.with_name("folder.pth")
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            info = zipfile.ZipInfo(entry.filename)
            info.external_attr = 0x10 if entry.filename.endswith("data/3") else 0
            target.writestr(info, source.read(entry))
    with pytest.raises(CheckpointError, match="holds folders"):
        load_model(path)


def test_weights_larger_than_the_file_are_refused(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    content["state_dict"]["head.weight"] = torch.zeros(1).expand(10**6, 10**6)
    rewrite(saved, state_dict=content["state_dict"])
    with pytest.raises(CheckpointError, match="claims to hold more weights"):
        load_model(saved)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_another_format_is_named(saved: Path, version: object) -> None:
    content = torch.load(saved, weights_only=True) | {"format": version}
    torch.save(content, saved)
    with pytest.raises(CheckpointError, match="has format"):
        load_model(saved)


@pytest.mark.parametrize("key", ["state_dict", "class_names", "contract", "experiment", "fingerprint", "audit", "metrics"])
def test_each_field_is_needed_and_of_its_type(saved: Path, key: str) -> None:
    whole = saved.read_bytes()
    for value in (None, 7):
        saved.write_bytes(whole)
        with pytest.raises(CheckpointError, match=f"{key!r} is missing or is no"):
            load_model(rewrite(saved, **{key: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": ["a", "b"]},
        {"class_names": ["a", "b", 3]},
        {"contract": CONTRACT.to_dict() | {"image_size_px": "large"}},
        {"contract": CONTRACT.to_dict() | {"mean": [0.5]}},
        {"contract": CONTRACT.to_dict() | {"image_size_px": 32}},
        {"contract": CONTRACT.to_dict() | {"image_size_px": 18}},
        {"contract": CONTRACT.to_dict() | {"crop": 3}},
        {"experiment": {}},
        {"experiment": {"model": None}},
        {"experiment": {"model": {"dim": -1}}},
        {"experiment": {"model": {"patch_size": 4}}},
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(saved: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth"):
        load_model(rewrite(saved, **changes))


@pytest.mark.parametrize("setting", ["dim", "depth", "heads", "dim_head", "mlp_dim"])
@pytest.mark.parametrize("value", [7, 10**9, 10**18, 10**40])
def test_sizes_that_do_not_fit_cost_no_memory(saved: Path, setting: str, value: int) -> None:
    experiment = copy.deepcopy(torch.load(saved, weights_only=True)["experiment"])
    experiment["model"][setting] = value
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth"):
        load_model(rewrite(saved, experiment=experiment))


def without(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights.items() if key != "blocks.1.mlp.fc1.bias"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without, "no weight 'blocks.1.mlp.fc1.bias'"),
        (lambda weights: weights | {"adapter": torch.ones(1)}, "an unknown weight 'adapter'"),
        (lambda weights: weights | {"norm.weight": torch.ones(5)}, r"'norm.weight' has the shape \(5,\), not \(12,\)"),
        (lambda weights: weights | {"norm.weight": torch.full((12,), float("nan"))}, "'norm.weight' holds values that are no finite numbers"),
        (lambda weights: weights | {"stem.0.norm.running_var": torch.full((4,), float("inf"))}, "no finite numbers"),
        (lambda weights: weights | {"norm.weight": torch.ones(12, dtype=torch.complex64)}, "'norm.weight' is no weight"),
        (lambda weights: weights | {"norm.weight": torch.ones(12).to_sparse()}, "'norm.weight' is no weight"),
        (lambda weights: weights | {"norm.weight": "text"}, "'norm.weight' is no weight"),
        (lambda weights: weights | {"blocks.2.norm1.weight": torch.ones(12)}, "3 blocks"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved: Path, change: Callable[[dict[str, Tensor]], dict[str, Any]], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_model(rewrite(saved, state_dict=change(torch.load(saved, weights_only=True)["state_dict"])))
    assert caught.value.hint


def test_half_precision_weights_are_loaded_as_float32(saved: Path) -> None:
    weights = torch.load(saved, weights_only=True)["state_dict"]
    classifier = load_model(rewrite(saved, state_dict={key: tensor.bfloat16() if tensor.is_floating_point() else tensor for key, tensor in weights.items()}))
    assert all(parameter.dtype == torch.float32 for parameter in classifier.parameters())


def test_old_format_of_pytorch_is_read(saved: Path) -> None:
    buffer = io.BytesIO()
    torch.save(torch.load(saved, weights_only=True), buffer, _use_new_zipfile_serialization=False)
    path = saved.with_name("legacy.pth")
    path.write_bytes(buffer.getvalue())
    images = torch.ones(1, 1, 16, 16)
    assert torch.equal(load_model(path)(images), load_model(saved)(images))


def test_network_of_a_loaded_model_is_deep_copied_and_moved(saved: Path) -> None:
    classifier = load_model(saved)
    copied = copy.deepcopy(classifier).double()
    assert torch.allclose(copied(torch.ones(1, 1, 16, 16).double()).float(), classifier(torch.ones(1, 1, 16, 16)), atol=1e-5)
