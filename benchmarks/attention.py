"""One attention layer of the reference network on a GPU: the fused kernels, in each way that they can be cut, against PyTorch's.

    python -m benchmarks.attention [--images 512]

Every plan of the kernels is first checked, forwards and backwards, against the written-out formula in float64, on fresh random tokens. Times are
medians of many runs on the device. TFLOP/s count the products that each way needs, two for each multiply-add, recomputed scores among them.
With OUT set in the environment, the figures are written to $OUT/attention.json too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

TOKENS, DIM, HEADS = 257, 64, 16
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}


def model_module(name: str) -> Any:
    """A module of scanvit.model without the packages that only its neighbours need: the machine with the GPU may lack them."""
    source = str(Path(__file__).parents[1] / "src")
    if source not in sys.path:
        sys.path.insert(0, source)
    if "scanvit.model" not in sys.modules:
        package = ModuleType("scanvit.model")
        package.__path__ = [f"{source}/scanvit/model"]
        sys.modules["scanvit.model"] = package
    return importlib.import_module(f"scanvit.model.{name}")


attention = model_module("attention")
fused_attention = model_module("fused_attention")


def plans() -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """The ways to cut the kernels, forwards and backwards."""
    kernels = model_module("attention_kernels")
    forward, backward = kernels.ForwardPlan, kernels.BackwardPlan
    ahead = {
        "64 rows": forward(rows=64),
        "64 rows, two pieces": forward(rows=64, pieces=2),
        "64 rows, three stages": forward(rows=64, stages=3),
        "64 rows, no stages": forward(rows=64, stages=1),
        "64 rows, two pieces, 168 registers": forward(rows=64, pieces=2, stages=1, registers=168),
        "128 rows": forward(rows=128, warps=8),
        "128 rows, two pieces": forward(rows=128, pieces=2, warps=8),
    }
    half: dict[str, Any] = {"rows": 64, "keys": 128, "pieces": 1, "warps": 4}
    queries: dict[str, Any] = {"rows": 64, "pieces": 2, "warps": 4, "keys_first": False, "key_side": False}
    key_side = backward(**half, query_side=False)
    back = {
        "whole, keys first": (backward(),),
        "whole, rows first": (backward(keys_first=False),),
        "whole, rows first, no stages": (backward(keys_first=False, stages=1),),
        "whole, rows first, sum": (backward(keys_first=False, query_sum=True),),
        "halves, keys first": (backward(**half),),
        "halves, keys first, no stages": (backward(**half, stages=1),),
        "halves, keys first, sum": (backward(**half, query_sum=True),),
        "halves, rows first": (backward(**half, keys_first=False),),
        "halves of 8 warps, keys first": (backward(pieces=1),),
        "halves of 8 warps, rows first": (backward(pieces=1, keys_first=False),),
        "two kernels": (backward(**queries, keys=128), key_side),
        "two kernels, sum": (backward(**queries, keys=128, query_sum=True), key_side),
        "two kernels, 8 warps": (
            backward(**(queries | {"rows": 128, "warps": 8}), keys=128, query_sum=True),
            backward(pieces=1, query_side=False),
        ),
        "two kernels, quarters": (backward(**queries, keys=64, query_sum=True), backward(**(half | {"keys": 64}), query_side=False)),
        "two kernels, quarters, 168 registers": (
            backward(**queries, keys=64, stages=1, registers=168),
            backward(**(half | {"keys": 64}), query_side=False, stages=1, registers=168),
        ),
    }
    return ahead, back


def case(images: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.Linear, nn.Linear, Tensor]:
    """Tokens as LayerNorm leaves them, the layer's weights as they start, but larger, so that attention is not the mean; a slope."""
    inner = HEADS * DIM
    qkv, proj = nn.Linear(DIM, 3 * inner, bias=False, device="cuda", dtype=dtype), nn.Linear(inner, DIM, device="cuda", dtype=dtype)
    with torch.no_grad():
        qkv.weight.mul_(2)
    return torch.randn(images, TOKENS, DIM, device="cuda", dtype=dtype), qkv, proj, torch.randn(images, TOKENS, DIM, device="cuda", dtype=dtype)


def written_out(tokens: Tensor, to_scores: Tensor, to_output: Tensor) -> Tensor:
    q = torch.einsum("bnd,hed->bhne", tokens, to_scores)
    mixed = (q @ tokens[:, None].transpose(-1, -2)).softmax(-1) @ tokens[:, None]
    return torch.einsum("bhnd,hed->bne", mixed, to_output)


def folded(qkv: nn.Linear, proj: nn.Linear, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    to_scores, to_output = attention._fold(qkv.weight, proj.weight, heads=HEADS)
    return (DIM**-0.5 * to_scores).to(dtype).contiguous(), to_output.to(dtype).contiguous()


def distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


def check(forward: Callable[..., Any], backward: Callable[..., Any], images: int = 8) -> str:
    """The relative errors of y and of the three slopes, or what is wrong."""
    tokens, qkv, proj, slope = case(images)
    low = [tokens.bfloat16(), *(part.detach() for part in folded(qkv, proj)), slope.bfloat16()]
    exact = [part.double().requires_grad_() for part in low[:3]]
    right = written_out(*exact)
    slopes = torch.autograd.grad(right, exact, low[3].double())
    torch.full((2**28,), float("nan"), dtype=torch.bfloat16, device="cuda")  # what is not written shows
    kept = forward(*low[:3])
    ours = [kept[0], *backward(low[3], *low[:3], *kept[1:])]
    errors = [distance(mine, other) for mine, other in zip(ours, (right, *slopes), strict=True)]
    return f"{'ok' if all(error < 1e-2 for error in errors) else 'WRONG'} {' '.join(f'{error:.1e}' for error in errors)}"


def compiled_ahead(job: tuple[str, str]) -> None:
    """Runs one plan on a few images, in a process of its own: its kernel is then in Triton's cache."""
    kernels, (ahead, back) = model_module("attention_kernels"), plans()
    side, name = job
    try:
        tokens, qkv, proj, slope = case(2)
        low = [tokens.bfloat16(), *(part.detach() for part in folded(qkv, proj))]
        if side == "forward":
            kernels.forward(*low, ahead[name])
        else:
            mixed, lse = torch.zeros(2, TOKENS, HEADS, DIM, dtype=torch.bfloat16, device="cuda"), torch.zeros(2, HEADS, TOKENS, device="cuda")
            kernels.backward_tiles(slope.bfloat16(), *low, mixed, lse, back[name])
        torch.cuda.synchronize()
    except Exception as error:  # said when its turn comes
        print(f"   {side}, {name}: {type(error).__name__}", flush=True)


@contextmanager
def resources(kernel: Any) -> Iterator[list[str]]:
    """Registers, spills and shared memory of what is compiled for ``kernel`` meanwhile."""
    said: list[str] = []
    known = {id(one) for one in compiled_kernels(kernel)}
    yield said
    for one in compiled_kernels(kernel):
        if id(one) not in known:
            said.append(f"{one.n_regs} registers, {one.n_spills} spilled, {one.metadata.shared / 1024:.0f} KiB")


def compiled_kernels(kernel: Any) -> list[Any]:
    try:
        return list(kernel.device_caches[torch.cuda.current_device()][0].values())
    except Exception:
        return []


def median_us(call: Callable[[], Any], images: int) -> float:
    from triton.testing import do_bench

    return 1000 * do_bench(call, warmup=30, rep=120, return_mode="median") / images


def flops(*, square: int, linear: int) -> float:
    """GFLOP of an image: products over pairs of tokens, and over tokens alone, each 64 wide, all heads."""
    return HEADS * 2e-9 * DIM * (square * TOKENS**2 + linear * TOKENS * DIM)


class Table:
    def __init__(self, images: int) -> None:
        self.images, self.rows = images, list[dict[str, Any]]()

    def add(self, name: str, gflop: float, call: Callable[[], Any], note: str = "") -> None:
        try:
            torch.cuda.empty_cache()
            us = median_us(call, self.images)
            self.rows.append({"name": name, "us_an_image": us, "tflops": gflop / us * 1000, "note": note})
            print(f"{name:<58} {us:8.3f} us/image {gflop / us * 1000:6.0f} TFLOP/s  {note}", flush=True)
        except Exception as error:
            self.rows.append({"name": name, "failed": f"{type(error).__name__}: {str(error)[:300]}"})
            print(f"{name:<58} failed: {type(error).__name__}: {str(error)[:160]}", flush=True)


def plain_ways(table: Table) -> None:
    """The layer as it is without the kernels, and as it is written by most: each of PyTorch's kernels."""
    tokens, qkv, proj, slope = case(table.images)
    tokens, slope = tokens.bfloat16().requires_grad_(), slope.bfloat16()

    def unfolded(x: Tensor) -> Tensor:
        q, k, v = attention.split_heads(qkv(x), heads=HEADS)
        return proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def fold(x: Tensor) -> Tensor:
        return attention.attend(x, qkv=qkv, proj=proj, heads=HEADS)

    def both(layer: Callable[[Tensor], Tensor]) -> None:
        layer(tokens).backward(slope)

    fused_attention.ENABLED = False
    for what, layer, ahead, back in (("folded", fold, (2, 2), (5, 5)), ("unfolded", unfolded, (2, 4), (5, 8))):
        for backend, kind in BACKENDS.items():
            with sdpa_kernel([kind]), torch.autocast("cuda", torch.bfloat16):
                one, two = flops(square=ahead[0], linear=ahead[1]), flops(square=back[0], linear=back[1])
                table.add(f"{what}, {backend}: layer, forward", one, lambda layer=layer: layer(tokens))
                table.add(f"{what}, {backend}: layer, forward and backward", one + two, lambda layer=layer: both(layer))
    fused_attention.ENABLED = True


def fused_ways(table: Table) -> None:
    kernels, (ahead, back) = model_module("attention_kernels"), plans()
    tokens, qkv, proj, slope = case(table.images)
    low, slope = [tokens.bfloat16(), *(part.detach() for part in folded(qkv, proj))], slope.bfloat16()
    _, mixed, lse = kernels.forward(*low)
    inputs = (slope, *low, mixed, lse)
    for name, plan in ahead.items():
        with resources(kernels._forward) as said:
            verdict = attempt(lambda plan=plan: check(lambda *x: kernels.forward(*x, plan), kernels.backward))
        table.add(f"fused forward, {name}", flops(square=2, linear=2), lambda plan=plan: kernels.forward(*low, plan), f"{verdict}; {'; '.join(said)}")
    for name, cut in back.items():
        count = flops(square=5 if len(cut) == 1 else 7, linear=7)
        with resources(kernels._backward) as said:
            verdict = attempt(lambda cut=cut: check(kernels.forward, lambda *x: kernels.backward(*x, cut)))
        table.add(f"fused backward, {name}", count, lambda cut=cut: kernels.backward(*inputs, cut), f"{verdict}; {'; '.join(said)}")
        table.add(f"fused backward, {name}: kernel alone", count, lambda cut=cut: kernels.backward_tiles(*inputs, cut))
    flat = mixed.view(-1, HEADS * DIM).t()
    table.add("product over all tokens for one weight's slope", flops(square=0, linear=1), lambda: torch.mm(flat, slope.view(-1, DIM)))
    whole = tokens.bfloat16().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        layer = lambda: attention.attend(whole, qkv=qkv, proj=proj, heads=HEADS)  # noqa: E731
        table.add("fused: layer, forward", flops(square=2, linear=2), layer)
        table.add("fused: layer, forward and backward", flops(square=7, linear=9), lambda: layer().backward(slope))


def attempt(call: Callable[[], str]) -> str:
    try:
        return call()
    except Exception as error:
        return f"FAILED {type(error).__name__}: {str(error)[:200]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, metavar="B", help="images of a batch")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU on this machine")
        return 0
    start = time.perf_counter()
    ahead, back = plans()
    jobs = [*(("forward", name) for name in ahead), *(("backward", name) for name in back)]
    with multiprocessing.get_context("spawn").Pool(min(len(jobs), os.cpu_count() or 1)) as pool:
        pool.map_async(compiled_ahead, jobs, chunksize=1).wait(timeout=60)
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}; compiled in {time.perf_counter() - start:.0f} s", flush=True)
    table = Table(arguments.images)
    plain_ways(table)
    fused_ways(table)
    print(f"{time.perf_counter() - start:.0f} s in all")
    if out := os.environ.get("OUT"):
        cuts = {
            "forward": {name: asdict(plan) for name, plan in ahead.items()},
            "backward": {name: [asdict(plan) for plan in cut] for name, cut in back.items()},
        }
        Path(out, "attention.json").write_text(json.dumps({"device": torch.cuda.get_device_name(0), "rows": table.rows, "plans": cuts}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
