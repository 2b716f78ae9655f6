"""The fused attention on the GPU that it is made for, in bf16 against the written-out formula in float64: eagerly and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scanvit.model import fused_attention
from scanvit.model.attention import attend, split_heads

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="the kernels are for GPUs of capability 9, and PyTorch sees none"
)

SIZES = [(257, 64, 16), (129, 64, 4), (65, 32, 3), (17, 16, 2)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which kernels were launched: the operators look them up at each call, in compiled graphs too."""
    from scanvit.model import attention_kernels

    made: list[str] = []
    for name in ("forward", "backward"):
        launch = getattr(attention_kernels, name)
        monkeypatch.setattr(attention_kernels, name, lambda *args, name=name, launch=launch: (made.append(name), launch(*args))[1])
    torch.compiler.reset()
    yield made
    torch.compiler.reset()


def _layer(tokens: int, dim: int, heads: int) -> tuple[Tensor, nn.Linear, nn.Linear]:
    """Tokens as LayerNorm leaves them; weights as they start, but larger, so that attention is not the mean."""
    qkv, proj = nn.Linear(dim, 3 * heads * dim, bias=False, device="cuda"), nn.Linear(heads * dim, dim, device="cuda")
    with torch.no_grad():
        qkv.weight.mul_(2)
    return torch.randn(8, tokens, dim, device="cuda", requires_grad=True), qkv, proj


def _results(way: Callable[..., Tensor], x: Tensor, qkv: nn.Linear, proj: nn.Linear, slope: Tensor, **more: Any) -> dict[str, Tensor]:
    """The output, and the slopes of all that it depends on."""
    out = way(x, qkv=qkv, proj=proj, **more)
    slopes = torch.autograd.grad(out, [x, qkv.weight, proj.weight, proj.bias], slope.to(out.dtype))
    return dict(zip(("y", "tokens", "qkv.weight", "proj.weight", "proj.bias"), (out, *slopes), strict=True))


def _written_out(x: Tensor, *, qkv: nn.Linear, proj: nn.Linear, heads: int) -> Tensor:
    q, k, v = split_heads(qkv(x), heads=heads)
    mixed: Tensor = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
    out: Tensor = proj(mixed.transpose(1, 2).flatten(2))
    return out


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, about itself
@pytest.mark.parametrize("compile_it", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("tokens", "dim", "heads"), SIZES)
def test_fused_attention_is_the_formula(calls: list[str], tokens: int, dim: int, heads: int, compile_it: bool) -> None:
    x, qkv, proj = _layer(tokens, dim, heads)
    slope = torch.randn_like(x)
    torch.full((2**28,), float("nan"), dtype=torch.bfloat16, device="cuda")  # given back at once: what is not written shows
    way = torch.compile(attend, fullgraph=True) if compile_it else attend
    with torch.autocast("cuda", torch.bfloat16):
        assert fused_attention.is_chosen(x)
        ours = _results(way, x, qkv, proj, slope, heads=heads)
    assert calls == ["forward", "backward"]
    exact = _results(_written_out, x.detach().double().requires_grad_(), qkv.double(), proj.double(), slope.double(), heads=heads)
    errors = {name: float((ours[name].double() - exact[name]).norm() / exact[name].norm()) for name in ours}
    assert all(error < 1e-2 for error in errors.values()), errors


def test_other_sizes_and_precisions_go_the_plain_way(calls: list[str]) -> None:
    for tokens, dtype in ((258, torch.bfloat16), (257, torch.float16)):
        x, qkv, proj = _layer(tokens, 64, 2)
        with torch.autocast("cuda", dtype):
            attend(x, qkv=qkv, proj=proj, heads=2)
    x, qkv, proj = _layer(257, 64, 2)
    attend(x, qkv=qkv, proj=proj, heads=2)
    assert calls == []
