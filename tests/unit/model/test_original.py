from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scanvit.core.config import ModelConfig
from scanvit.core.contract import PixelContract
from scanvit.core.errors import CheckpointError
from scanvit.model import VisionTransformer, load_model


def original_weights(*, blocks: int = 4, depth: int = 2, heads: int = 2, dim: int = 8, classes: int = 3, side: int = 4) -> dict[str, Tensor]:
    """A state dict as the original writes it, with random weights: three places of ``conv_stem`` a block, the third (ReLU) without weights."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / max(shape[-1], 1) ** 0.5

    widths = [1, *(4 + 2 * i for i in range(blocks))]
    weights: dict[str, Tensor] = {"pos_embedding": random(1, side**2 + 1, dim), "cls_token": random(1, 1, dim)}
    for i in range(blocks):
        convolution, norm = f"conv_stem.{3 * i}", f"conv_stem.{3 * i + 1}"
        weights |= {f"{convolution}.weight": random(widths[i + 1], widths[i], 3, 3), f"{convolution}.bias": random(widths[i + 1])}
        weights |= {f"{norm}.{key}": random(widths[i + 1]) for key in ("weight", "bias", "running_mean")}
        weights |= {f"{norm}.running_var": random(widths[i + 1]).abs() + 0.5, f"{norm}.num_batches_tracked": torch.tensor(7)}

    def linear(name: str, out_features: int, in_features: int) -> dict[str, Tensor]:
        return {f"{name}.weight": random(out_features, in_features), f"{name}.bias": random(out_features)}

    def layer_norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + random(dim), f"{name}.bias": random(dim)}

    weights |= linear("to_patch_embedding.1", dim, widths[-1])
    for i in range(depth):
        layer = f"transformer.layers.{i}"
        weights |= (
            layer_norm(f"{layer}.0.norm") | {f"{layer}.0.fn.to_qkv.weight": random(3 * 64 * heads, dim)} | linear(f"{layer}.0.fn.to_out.0", dim, 64 * heads)
        )
        weights |= layer_norm(f"{layer}.1.norm") | linear(f"{layer}.1.fn.net.0", 16, dim) | linear(f"{layer}.1.fn.net.3", dim, 16)
    return weights | layer_norm("mlp_head.0") | linear("mlp_head.1", classes, dim)


def our_name(key: str) -> str:
    for old, new in {
        "pos_embedding": "pos_embed",
        "to_patch_embedding.1": "patch_embed",
        "mlp_head.0": "norm",
        "mlp_head.1": "head",
        "transformer.layers": "blocks",
        ".0.norm.": ".norm1.",
        ".1.norm.": ".norm2.",
        "0.fn.to_qkv": "attn.qkv",
        "0.fn.to_out.0": "attn.proj",
        "1.fn.net.0": "mlp.fc1",
        "1.fn.net.3": "mlp.fc2",
        **{f"conv_stem.{3 * i}.": f"stem.{i}.conv." for i in range(5)},
        **{f"conv_stem.{3 * i + 1}.": f"stem.{i}.norm." for i in range(5)},
    }.items():
        key = key.replace(old, new)
    return key


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("in_lightning_checkpoint", [False, True])
@pytest.mark.parametrize("blocks", [4, 5])
def test_original_gives_the_logits_of_the_formulae(
    tmp_path: Path, naive_logits: Callable[..., Tensor], prefix: str, in_lightning_checkpoint: bool, blocks: int
) -> None:
    weights = original_weights(blocks=blocks)
    content: dict[str, object] = {f"{prefix}{key}": tensor for key, tensor in weights.items()}
    if in_lightning_checkpoint:
        content = {"epoch": 11, "pytorch-lightning_version": "2.5.0", "state_dict": content, "callbacks": {}, "optimizer_states": []}
    classifier = load_model(write(tmp_path / "vit_model.pth", content))
    config = ModelConfig(stem_widths=tuple(4 + 2 * i for i in range(blocks)), dim=8, depth=2, heads=2, dim_head=64, mlp_dim=16)
    assert classifier.network.config == config
    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = naive_logits({our_name(key): tensor for key, tensor in weights.items()}, images, config)
        torch.testing.assert_close(classifier(images), expected, rtol=0, atol=1e-5)
        assert expected.std(dim=0).max() > 0.05  # the logits depend on the image


def test_reference_size_is_inferred(tmp_path: Path) -> None:
    network = VisionTransformer(ModelConfig(), num_classes=9, image_size_px=64, channels=1)
    ours = network.state_dict()
    names = {our_name(key): key for key in original_weights(depth=16)}
    classifier = load_model(write(tmp_path / "vit_model.pth", {f"model.{names[key]}": tensor for key, tensor in ours.items()}))
    assert classifier.network.config == ModelConfig()
    assert sum(parameter.numel() for parameter in classifier.parameters()) == 5_014_089
    assert classifier.contract == PixelContract()
    assert classifier.class_names == [f"class-{i}" for i in range(9)]
    assert all(torch.equal(tensor, ours[key]) for key, tensor in classifier.network.state_dict().items())


def test_class_names_and_contract_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "vit_model.pth", original_weights())
    contract = PixelContract(image_size_px=16, mean=0.4, std=0.2)
    classifier = load_model(path, class_names=["a", "b", "c"], contract=contract)
    assert (classifier.class_names, classifier.contract, classifier.fingerprint) == (["a", "b", "c"], contract, "")
    with pytest.raises(CheckpointError, match="3 classes, but 2 names"):
        load_model(path, class_names=["a", "b"])
    with pytest.raises(CheckpointError, match="contract's images"):
        load_model(path, contract=PixelContract(image_size_px=64))


def test_what_lightning_keeps_beside_the_network_is_left_out(tmp_path: Path) -> None:
    weights = original_weights()
    extras = {"train_acc.tp": torch.zeros(3), "val_accuracy.total": torch.tensor(1), "criterion.weight": torch.ones(3)}
    plain = load_model(write(tmp_path / "plain.pth", weights))
    loaded = load_model(write(tmp_path / "extras.pth", {f"model.{key}": tensor for key, tensor in weights.items()} | extras))
    images = torch.randn(1, 1, 16, 16)
    assert torch.equal(loaded(images), plain(images))


def test_counters_of_batch_normalisation_may_be_absent(tmp_path: Path) -> None:
    weights = {key: tensor for key, tensor in original_weights().items() if not key.endswith("num_batches_tracked")}
    load_model(write(tmp_path / "old.pth", weights))


@pytest.mark.parametrize(
    "key", ["adapter.weight", "model.transformer.layers.0.2.fn.weight", "conv_stem.2.weight", "mlp_head.2.weight", "transformer.layers.0.0.fn.to_qkv.bias"]
)
def test_an_unknown_weight_is_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=r"adapter|layers\.0|blocks\.0|conv_stem\.2|mlp_head\.2"):
        load_model(write(tmp_path / "vit_model.pth", original_weights() | {key: torch.ones(1)}))


def test_a_weight_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="twice"):
        load_model(write(tmp_path / "vit_model.pth", original_weights() | {"model.cls_token": torch.ones(1, 1, 8)}))


@pytest.mark.parametrize("key", sorted(key for key in original_weights(depth=1) if "num_batches" not in key))
def test_each_missing_weight_is_an_error(tmp_path: Path, key: str) -> None:
    weights = original_weights(depth=1)
    del weights[key]
    with pytest.raises(CheckpointError):
        load_model(write(tmp_path / "vit_model.pth", weights))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5), (1, 1, 0), (1, 16, 8), (1, 17, 8, 1), (4, 1, 3, 5)])
@pytest.mark.parametrize("key", ["pos_embedding", "cls_token", "conv_stem.0.weight", "transformer.layers.0.0.fn.to_out.0.weight", "mlp_head.1.weight"])
def test_shapes_that_make_no_network_are_an_error(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError):
        load_model(write(tmp_path / "vit_model.pth", original_weights(depth=1) | {key: torch.zeros(shape)}))
