"""The fused kernels in Triton's interpreter, in a process of its own: what they compute is the written-out formula. tests/gpu has the real sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it is made for Linux alone")

# Tokens, dim, heads, patches of a tile and of a piece of keys at most: single tiles, and two of everything.
CASES = {"one tile": (17, 16, 2, 128), "one tile, wide": (17, 64, 3, 128), "two pieces": (65, 16, 3, 32), "two pieces, wide": (65, 64, 2, 32)}


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    """Of each case, the relative errors against float64. The interpreter is chosen when Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", CASES)
def test_kernels_are_the_formula_forwards_and_backwards(errors: dict[str, dict[str, float]], name: str) -> None:
    assert set(errors[name]) == {"y", "dx", "dA", "dO", "attend", "d_tokens", "d_qkv", "d_proj", "d_bias"}
    assert all(error < 1e-5 for error in errors[name].values()), errors[name]


def distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


def kernel_errors(tokens: int, dim: int, heads: int) -> dict[str, float]:
    from scanvit.model.fused_attention import fused

    parts = [torch.randn(2, tokens, dim), torch.randn(heads, dim, dim) / dim, torch.randn(heads, dim, dim) / dim]
    slope = torch.randn(2, tokens, dim)
    ours, exact = [part.requires_grad_() for part in parts], [part.detach().double().requires_grad_() for part in parts]
    y = fused(*ours)
    x, to_scores, to_output = exact
    scores = torch.einsum("bnd,hed,bme->bhnm", x, to_scores, x)
    right = torch.einsum("bhnm,bmd,hed->bne", scores.softmax(-1), x, to_output)
    pairs = zip((y, *torch.autograd.grad(y, ours, slope)), (right, *torch.autograd.grad(right, exact, slope.double())), strict=True)
    return dict(zip(("y", "dx", "dA", "dO"), (distance(*pair) for pair in pairs), strict=True))


def layer_errors(tokens: int, dim: int, heads: int) -> dict[str, float]:
    from scanvit.model.attention import attend, split_heads

    def written_out(x: Tensor) -> Tensor:
        q, k, v = split_heads(qkv(x), heads=heads)
        mixed: Tensor = (q @ k.transpose(-2, -1) * dim**-0.5).softmax(-1) @ v
        out: Tensor = proj(mixed.transpose(1, 2).flatten(2))
        return out

    qkv, proj = nn.Linear(dim, 3 * heads * dim, bias=False), nn.Linear(heads * dim, dim)
    x, slope = torch.randn(2, tokens, dim, requires_grad=True), torch.randn(2, tokens, dim)
    inputs: list[Any] = [x, qkv.weight, proj.weight, proj.bias]
    y = attend(x, qkv=qkv, proj=proj, heads=heads)
    ours = (y, *torch.autograd.grad(y, inputs, slope))
    qkv, proj = qkv.double(), proj.double()
    x = x.detach().double().requires_grad_()
    right = written_out(x)
    exact = (right, *torch.autograd.grad(right, [x, qkv.weight, proj.weight, proj.bias], slope.double()))
    return dict(zip(("attend", "d_tokens", "d_qkv", "d_proj", "d_bias"), map(distance, ours, exact), strict=True))


def main() -> None:
    from scanvit.model import attention_kernels, fused_attention

    torch.use_deterministic_algorithms(True)  # new memory is NaN: what is not written shows
    torch.manual_seed(0)
    fused_attention.is_chosen = lambda tokens: True  # type: ignore[assignment]
    found = {}
    for name, (tokens, dim, heads, most) in CASES.items():
        attention_kernels._FORWARD_ROWS = attention_kernels._BACKWARD_ROWS = attention_kernels._KEYS = most
        found[name] = kernel_errors(tokens, dim, heads) | layer_errors(tokens, dim, heads)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
