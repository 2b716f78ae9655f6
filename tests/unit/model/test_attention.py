from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scanvit.core.config import ModelConfig
from scanvit.model import attention as ours
from scanvit.model.attention import attend, attention, split_heads
from scanvit.model.vit import VisionTransformer

Case = tuple[Tensor, nn.Linear, nn.Linear, int]


def written_out(tokens: Tensor, *, qkv: nn.Linear, proj: nn.Linear, heads: int, first: int | None = None) -> Tensor:
    """The formula, with all its scores."""
    q, k, v = split_heads(qkv(tokens), heads=heads)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return proj((weights @ v).transpose(1, 2).flatten(2))[:, :first]


def case(dim: int, dim_head: int, heads: int = 3, dtype: torch.dtype = torch.float64) -> Case:
    torch.manual_seed(0)
    qkv, proj = nn.Linear(dim, 3 * heads * dim_head, bias=False, dtype=dtype), nn.Linear(heads * dim_head, dim, dtype=dtype)
    return torch.randn(4, 9, dim, dtype=dtype), qkv, proj, heads


def results(function: Callable[..., Tensor], made: Case, **more: int | None) -> list[Tensor]:
    """The output, and the slopes of everything that it depends on."""
    tokens, qkv, proj, heads = made
    tokens = tokens.clone().requires_grad_()
    out = function(tokens, qkv=qkv, proj=proj, heads=heads, **more)
    assert proj.bias is not None
    return [
        out,
        *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum(), [tokens, qkv.weight, proj.weight, proj.bias]),
    ]


@pytest.mark.parametrize("first", [None, 1, 4], ids=["all tokens", "the first alone", "the first four"])
@pytest.mark.parametrize(("dim", "dim_head"), [(8, 8), (6, 8), (8, 6), (12, 4)], ids=["folded", "folded, narrower", "plain", "plain, much wider"])
def test_every_choice_is_the_formula_forwards_and_backwards(dim: int, dim_head: int, first: int | None) -> None:
    made = case(dim, dim_head)
    for mine, expected in zip(results(attend, made, first=first), results(written_out, made, first=first), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tile_bytes", [1, 3 * 7 * 5 * 8, 2**22], ids=["one at a time", "an unfinished last tile", "all at once"])
def test_tiles_do_not_change_the_formula_or_its_gradient(tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_TILE_BYTES", tile_bytes)
    monkeypatch.setattr(ours, "_is_tiled", lambda q: True)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 3, dtype=torch.float64, requires_grad=True) for n in (7, 5, 5))
    expected = (q @ k.transpose(-2, -1) * 0.3).softmax(dim=-1) @ v
    torch.testing.assert_close(attention(q, k, v, scale=0.3), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, scale=0.3), (q, k, v))


def test_probabilities_that_are_kept_are_those_that_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.bfloat16, requires_grad=True) for n in (20, 17, 17))
    found = []
    for most_bytes in (0, 2**27):
        monkeypatch.setattr(ours, "_KEPT_BYTES", most_bytes)
        out = attention(q, k, v)
        found.append([out, *torch.autograd.grad(out.float().square().sum(), [q, k, v])])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("first", [None, 1], ids=["all tokens", "the first alone"])
@pytest.mark.parametrize(("dim", "dim_head"), [(64, 64), (64, 16)], ids=["folded", "plain"])
def test_bf16_is_the_formula_up_to_its_rounding(dim: int, dim_head: int, first: int | None) -> None:
    made = case(dim, dim_head, dtype=torch.float32)
    exact = results(written_out, made, first=first)

    def under_autocast(function: Callable[..., Tensor]) -> list[Tensor]:
        def call(*args: Tensor, **kwargs: nn.Linear | int) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return function(*args, **kwargs).float()

        return results(call, made, first=first)

    for mine, plain, right in zip(under_autocast(attend), under_autocast(written_out), exact, strict=True):
        # As near to the exact result as bf16 lets the written-out formula come, give or take a factor.
        assert (mine - right).abs().max() < 2 * (plain - right).abs().max() + 1e-3 * right.abs().max()


def test_the_tiles_are_what_a_cpu_uses_in_bf16_alone() -> None:
    def kernels(dtype: torch.dtype) -> set[str]:
        q = torch.randn(1, 2, 5, 8, dtype=dtype)
        with torch.profiler.profile() as profile:
            attention(q, q, q)
        return {event.key for event in profile.key_averages()}

    assert "scanvit::tiled_attention" in kernels(torch.bfloat16)
    assert "scanvit::tiled_attention" not in kernels(torch.float32)


def test_exported_graphs_hold_no_operator_of_ours() -> None:
    config = ModelConfig(stem_widths=(4, 8), dim=8, depth=1, heads=2, dim_head=8, mlp_dim=16)
    network = VisionTransformer(config, num_classes=3, image_size_px=16, channels=1).eval().to(torch.bfloat16)
    images = torch.randn(2, 1, 16, 16, dtype=torch.bfloat16)
    graph = torch.export.export(network, (images,)).graph
    assert not [node for node in graph.nodes if "scanvit" in str(node.target)]
    assert [node for node in graph.nodes if "scaled_dot_product" in str(node.target)]


def test_compiled_graphs_hold_the_operators_that_exported_ones_do_not() -> None:
    taken: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        taken.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    q = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16)
    torch.compile(attention, backend=backend, fullgraph=True)(q, q, q)
    assert [target for target in taken if "tiled_attention" in target]
