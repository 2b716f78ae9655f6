from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scanvit.core.config import ModelConfig
from scanvit.core.errors import ConfigError
from scanvit.model import VisionTransformer


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_reference_network_has_exactly_the_reference_number_of_parameters() -> None:
    network = VisionTransformer(ModelConfig(), num_classes=9, image_size_px=64, channels=1)
    convolutions = [(9 * c_in + 1) * c_out for c_in, c_out in ((1, 64), (64, 64), (64, 128), (128, 128))]
    assert count(network.stem) == sum(convolutions) + 2 * (64 + 64 + 128 + 128)
    assert count(network.patch_embed) == 129 * 64
    assert network.pos_embed.shape == (1, 257, 64)
    assert network.cls_token.shape == (1, 1, 64)
    assert [count(block) for block in network.blocks] == [128 + 64 * 3072 + 1024 * 64 + 64 + 128 + 65 * 256 + 257 * 64] * 16
    assert count(network.norm) + count(network.head) == 128 + 65 * 9
    assert count(network) == 5_014_089


def test_reference_settings_agree_with_the_formulae(naive_logits: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(ModelConfig(), num_classes=9, image_size_px=64, channels=1).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), naive_logits(network.state_dict(), images, network.config), rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(("channels", "stem_widths"), [(1, (4, 6, 8, 10)), (3, (4, 4, 4, 6, 8)), (1, (5, 7))])
def test_logits_agree_with_the_formulae(
    make_network: Callable[..., VisionTransformer], naive_logits: Callable[..., Tensor], activation: str, pool: str, channels: int, stem_widths: tuple[int, ...]
) -> None:
    network = make_network(activation=activation, pool=pool, channels=channels, stem_widths=stem_widths, image_size_px=24)
    images = torch.randn(3, channels, 24, 24)
    with torch.inference_mode():
        expected = naive_logits(network.state_dict(), images, network.config)
        torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-5)
        assert expected.std(dim=0).max() > 0.05  # the logits depend on the image


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_every_parameter_gets_a_gradient(make_network: Callable[..., VisionTransformer], pool: str) -> None:
    network = make_network(pool=pool).train()
    network(torch.randn(4, 1, 16, 16)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # Batch normalisation takes the bias of the convolution before it away again: that gradient is rounding.
        assert name.endswith("conv.bias") or parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize(("pool", "outputs"), [("cls", 1), ("mean", 17)])
def test_of_the_last_block_only_what_is_pooled_is_made(make_network: Callable[..., VisionTransformer], pool: str, outputs: int) -> None:
    network = make_network(pool=pool, depth=2).double()
    images, sizes = torch.randn(3, 1, 16, 16, dtype=torch.float64), []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, out: sizes.append(out.shape[1]))
    network(images).square().sum().backward()
    slopes = [parameter.grad for parameter in network.parameters()]
    assert sizes == [17, outputs]

    network.zero_grad()
    every = network.pool(network.blocks(network.embed(images)))
    network.head(network.norm(every)).square().sum().backward()
    for slope, parameter in zip(slopes, network.parameters(), strict=True):
        torch.testing.assert_close(slope, parameter.grad, rtol=1e-9, atol=1e-12)


def test_an_image_s_logits_do_not_depend_on_its_batch(make_network: Callable[..., VisionTransformer]) -> None:
    network = make_network()
    images = torch.randn(5, 1, 16, 16)
    with torch.inference_mode():
        alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(network(images), alone, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(16)))
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_without_position_embeddings_the_order_of_patches_is_not_seen(pool: str, order: list[int]) -> None:
    torch.manual_seed(0)
    config = ModelConfig(stem_widths=(4, 4), dim=8, depth=2, heads=2, dim_head=4, mlp_dim=8, pool=pool)
    network = VisionTransformer(config, num_classes=3, image_size_px=16, channels=1).eval()
    with torch.inference_mode():
        network.pos_embed.zero_()
        tokens = network.embed(torch.randn(2, 1, 16, 16))
        shuffled = torch.cat((tokens[:, :1], tokens[:, 1:][:, order]), dim=1)
        torch.testing.assert_close(network.pool(network.blocks(shuffled)), network.pool(network.blocks(tokens)), rtol=0, atol=1e-5)


def test_with_position_embeddings_the_order_of_patches_is_seen(make_network: Callable[..., VisionTransformer]) -> None:
    network = make_network()
    images = torch.randn(2, 1, 16, 16)
    with torch.inference_mode():
        assert not torch.allclose(network(images), network(images.flip(2)), atol=1e-3)


@pytest.mark.parametrize("rate", ["dropout", "emb_dropout", "drop_path"])
def test_dropouts_act_in_training_alone_and_follow_the_seed(make_network: Callable[..., VisionTransformer], rate: str) -> None:
    dropped, plain = make_network(**{rate: 0.5}), make_network()
    plain.load_state_dict(dropped.state_dict())
    images = torch.randn(8, 1, 16, 16)

    def logits(network: nn.Module, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return network(images)

    with torch.no_grad():
        assert torch.equal(logits(dropped, 0), logits(plain, 0))
        for block in (*dropped.modules(), *plain.modules()):
            if not isinstance(block, nn.BatchNorm2d):  # its running statistics would change between calls
                block.training = True
        assert not torch.allclose(logits(dropped, 0), logits(plain, 0))
        assert torch.equal(logits(dropped, 1), logits(dropped, 1))
        assert not torch.equal(logits(dropped, 1), logits(dropped, 2))


def test_drop_path_rises_linearly_to_the_last_block(make_network: Callable[..., VisionTransformer]) -> None:
    assert [block.drop_path.rate for block in make_network(depth=5, drop_path=0.2).blocks] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert [block.drop_path.rate for block in make_network(depth=1, drop_path=0.2).blocks] == [0.2]


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_embeddings_start_from_the_configured_spread(std: float) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(ModelConfig(depth=1, pos_embed_std=std), num_classes=9, image_size_px=64, channels=1)
    assert network.pos_embed.std().item() == pytest.approx(std, rel=0.05)
    assert network.cls_token.std().item() == pytest.approx(std, rel=0.5)


@pytest.mark.parametrize("image_size_px", [0, 2, 30, 65])
def test_an_image_size_that_the_stem_cannot_divide_is_named(image_size_px: int) -> None:
    with pytest.raises(ConfigError, match=f"image_size_px is {image_size_px}"):
        VisionTransformer(ModelConfig(depth=1), num_classes=9, image_size_px=image_size_px, channels=1)


def test_no_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="classes is 0"):
        VisionTransformer(ModelConfig(depth=1), num_classes=0, image_size_px=64, channels=1)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 16, 20), (2, 1, 8, 32), (1, 16, 16)])
def test_images_of_another_shape_are_refused(make_network: Callable[..., VisionTransformer], shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"Images of shape .* do not fit"):
        make_network()(torch.zeros(shape))
