from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanvit.model.attention import attention
from scanvit.model.transformer import Attention, Block, DropPath, FeedForward


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(0, 2**20))
def test_attention_is_the_softmax_of_scaled_products(batch: int, heads: int, n_tokens: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, n_tokens, width, generator=generator) for _ in range(3))
    scores = torch.exp(torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(width))
    expected = torch.einsum("bhnm,bhmd->bhnd", scores / scores.sum(dim=-1, keepdim=True), v)
    torch.testing.assert_close(attention(q, k, v), expected, rtol=1e-5, atol=1e-5)


def test_attention_is_stable_for_large_scores() -> None:
    q = torch.full((1, 1, 2, 4), 100.0)
    v = torch.tensor([[[[1.0, 2, 3, 4], [5, 6, 7, 8]]]])
    torch.testing.assert_close(attention(q, q, v), torch.tensor([[[[3.0, 4, 5, 6], [3, 4, 5, 6]]]]))


def test_gradient_of_attention_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(attention, (q, k, v))


def test_block_with_silent_branches_passes_its_tokens_on() -> None:
    block = Block(6, attn=Attention(6, heads=2, dim_head=4, dropout=0.0), mlp=FeedForward(6, mlp_dim=8, activation="relu", dropout=0.0), drop_path=0.0)
    with torch.no_grad():
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    tokens = torch.randn(2, 5, 6)
    assert torch.equal(block(tokens), tokens)


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)


def test_drop_path_does_nothing_when_predicting() -> None:
    branch = torch.randn(3, 2, 4)
    assert DropPath(0.9).eval()(branch) is branch


def test_feed_forward_drops_after_each_of_its_layers() -> None:
    torch.manual_seed(0)
    mlp = FeedForward(64, mlp_dim=64, activation="gelu", dropout=0.5).train()
    zeros = (mlp(torch.randn(50, 8, 64)) == 0).float().mean().item()
    assert zeros == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(mlp.eval()(torch.ones(1, 1, 64)), torch.zeros(1, 1, 64))


def test_the_weights_that_are_looked_at_are_those_that_are_used() -> None:
    torch.manual_seed(0)
    attn, tokens = Attention(6, heads=2, dim_head=4, dropout=0.0), torch.randn(3, 5, 6)
    weights = attn.weights(tokens)
    assert weights.shape == (3, 2, 5, 5)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 2, 5))
    torch.testing.assert_close(attn.mix(weights, tokens), attn(tokens))
