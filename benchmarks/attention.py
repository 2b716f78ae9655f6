"""One attention layer of the reference network on a GPU: the fused kernels, in each way that they can be cut, against PyTorch's.

    python -m benchmarks.attention [--images 512]
    python -m benchmarks.attention --check
    compute-sanitizer --tool memcheck python -m benchmarks.attention --one forward "64 rows"

Every plan of the kernels is first checked, in a process of its own, against the written-out formula in float64, on fresh random tokens; those that
pass are timed. --check leaves out PyTorch's ways but for the fastest; --one checks one plan on two images. Times are
medians of many runs on the device. TFLOP/s count the products that each way needs, two for each multiply-add, recomputed scores among them.
With OUT set in the environment, the figures are written to $OUT/attention.json too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
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
        "64 rows": forward(),
        "64 rows, no stages": forward(stages=1),
        "64 rows, two pieces": forward(pieces=2),
        "128 rows": forward(rows=128, warps=8),
    }
    half: dict[str, Any] = {"rows": 64, "keys": 128, "pieces": 1, "warps": 4}
    quarter: dict[str, Any] = half | {"keys": 64}
    queries: dict[str, Any] = {"rows": 64, "pieces": 2, "warps": 4, "keys_first": False, "key_side": False}
    key_side = backward(**quarter, query_side=False)
    back = {
        "halves of 8 warps, keys first": (backward(),),
        "halves of 8 warps, rows first": (backward(keys_first=False),),
        "halves, keys first": (backward(**half),),
        "whole, rows first": (backward(pieces=2, keys_first=False),),
        "two kernels": (backward(**queries, keys=128), key_side),
        "two kernels, quarters": (backward(**queries, keys=64, query_sum=True), key_side),
    }
    return ahead, back


def case(images: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.Linear, nn.Linear, Tensor]:
    """Tokens as LayerNorm leaves them, the layer's weights as they start, but larger, so that attention is not the mean; a slope."""
    inner = HEADS * DIM
    qkv, proj = nn.Linear(DIM, 3 * inner, bias=False, device="cuda", dtype=dtype), nn.Linear(inner, DIM, device="cuda", dtype=dtype)
    with torch.no_grad():
        qkv.weight.mul_(2)
    return torch.randn(images, TOKENS, DIM, device="cuda", dtype=dtype), qkv, proj, torch.randn(images, TOKENS, DIM, device="cuda", dtype=dtype)


def written_out(tokens: Tensor, to_scores: Tensor, to_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, N, D); m (B, h, N, D) and the logarithms to base 2 of the sums of exponentials (B, h, N)."""
    scores = torch.einsum("bnd,hed->bhne", tokens, to_scores) @ tokens[:, None].transpose(-1, -2)
    mixed = scores.softmax(-1) @ tokens[:, None]
    return torch.einsum("bhnd,hed->bne", mixed, to_output), mixed.detach(), scores.detach().logsumexp(-1) / math.log(2)


def folded(qkv: nn.Linear, proj: nn.Linear, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    to_scores, to_output = attention._fold(qkv.weight, proj.weight, heads=HEADS)
    return (DIM**-0.5 * to_scores).to(dtype).contiguous(), to_output.to(dtype).contiguous()


def distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


def first_hole(values: Tensor) -> str:
    """Where the first value lies that is not a number, and how many there are."""
    holes = (~values.isfinite()).nonzero()
    return f" ({len(holes)} of {values.numel()} not finite, the first at {tuple(holes[0].tolist())})" if len(holes) else ""


def check(side: str, name: str, images: int = 8) -> str:
    """The relative errors of y and of the slopes, tokens apart as [CLS] and patches, or what is wrong. Backwards is given exact m and lse."""
    kernels, (ahead, back) = model_module("attention_kernels"), plans()
    tokens, qkv, proj, slope = case(images)
    low = [tokens.bfloat16(), *(part.detach() for part in folded(qkv, proj)), slope.bfloat16()]
    exact = [part.double().requires_grad_() for part in low[:3]]
    right, *statistics = written_out(*exact)
    slopes = torch.autograd.grad(right, exact, low[3].double())
    torch.full((2**28,), float("nan"), dtype=torch.bfloat16, device="cuda")  # what is not written shows
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    if side == "forward":
        y, mixed, lse = kernels.forward(*low[:3], ahead[name])
        torch.cuda.synchronize()
        pairs = {"y": (y, right), "m": (mixed, statistics[0].transpose(1, 2)), "lse": (lse, statistics[1][..., 1:])}
    else:
        kept = (statistics[0].transpose(1, 2).bfloat16().contiguous(), statistics[1][..., 1:].float().contiguous())
        ours = kernels.backward(low[3], *low[:3], *kept, back[name])
        torch.cuda.synchronize()
        pairs = dict(zip(("dx", "dA", "dO"), zip(ours, slopes, strict=True), strict=True))
    for what, (mine, other) in pairs.items():
        if what in ("y", "m", "dx"):
            parts |= {f"{what} [CLS]": (mine[:, 0], other[:, 0]), f"{what} patches": (mine[:, 1:], other[:, 1:])}
        else:
            parts[what] = (mine, other)
    errors = {what: distance(mine, other) for what, (mine, other) in parts.items()}
    said = ", ".join(f"{what} {error:.1e}{first_hole(parts[what][0])}" for what, error in errors.items())
    kernel = kernels._forward if side == "forward" else kernels._backward
    made = [f"{one.n_regs} registers, {one.n_spills} spilled, {one.metadata.shared / 1024:.0f} KiB" for one in compiled_kernels(kernel)]
    return f"{'ok' if all(error < 1e-2 for error in errors.values()) else 'WRONG'} {said}; {'; '.join(made)}"


def checked_apart(job: tuple[str, str]) -> tuple[str, str, str]:
    """One plan in a process of its own: an illegal access ends no other's. Its kernel is then in Triton's cache."""
    try:
        return *job, check(*job)
    except Exception as error:
        return *job, f"FAILED {type(error).__name__}: {error}"


def checked(jobs: list[tuple[str, str]], limit_s: float = 60) -> dict[tuple[str, str], str]:
    verdicts = dict.fromkeys(jobs, f"FAILED: no answer in {limit_s:.0f} s")
    with multiprocessing.get_context("spawn").Pool(min(len(jobs), os.cpu_count() or 1), maxtasksperchild=1) as pool:
        end, answers = time.monotonic() + limit_s, pool.imap_unordered(checked_apart, jobs)
        for _ in jobs:
            try:
                side, name, verdict = answers.next(timeout=max(0.1, end - time.monotonic()))
            except multiprocessing.TimeoutError:
                break
            verdicts[side, name] = verdict
            print(f"{side}, {name}: {verdict}", flush=True)
    return verdicts


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


def plain_ways(table: Table, backends: tuple[str, ...] = tuple(BACKENDS), unfolded_too: bool = True) -> None:
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
    layers = (("folded", fold, (2, 2), (5, 5)), ("unfolded", unfolded, (2, 4), (5, 8)))
    for what, layer, ahead, back in layers if unfolded_too else layers[:1]:
        for backend in backends:
            with sdpa_kernel([BACKENDS[backend]]), torch.autocast("cuda", torch.bfloat16):
                one, two = flops(square=ahead[0], linear=ahead[1]), flops(square=back[0], linear=back[1])
                table.add(f"{what}, {backend}: layer, forward", one, lambda layer=layer: layer(tokens))
                table.add(f"{what}, {backend}: layer, forward and backward", one + two, lambda layer=layer: both(layer))
    fused_attention.ENABLED = True


def fused_ways(table: Table, verdicts: dict[tuple[str, str], str]) -> None:
    """Those plans that are right, and the layer as it uses the default ones."""
    kernels, (ahead, back) = model_module("attention_kernels"), plans()
    tokens, qkv, proj, slope = case(table.images)
    low, slope = [tokens.bfloat16(), *(part.detach() for part in folded(qkv, proj))], slope.bfloat16()
    right = {job for job, verdict in verdicts.items() if verdict.startswith("ok")}
    for name, plan in ahead.items():
        if ("forward", name) in right:
            table.add(f"fused forward, {name}", flops(square=2, linear=2), lambda plan=plan: kernels.forward(*low, plan))
    if not (good := next((plan for name, plan in ahead.items() if ("forward", name) in right), None)):
        return
    inputs = (slope, *low, *kernels.forward(*low, good)[1:])
    for name, cut in back.items():
        if ("backward", name) in right:
            count = flops(square=5 if len(cut) == 1 else 7, linear=7)
            table.add(f"fused backward, {name}", count, lambda cut=cut: kernels.backward(*inputs, cut))
            table.add(f"fused backward, {name}: kernel alone", count, lambda cut=cut: kernels.backward_tiles(*inputs, cut))
    if {("forward", next(iter(ahead))), ("backward", next(iter(back)))} <= right:
        whole = tokens.bfloat16().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            layer = lambda: attention.attend(whole, qkv=qkv, proj=proj, heads=HEADS)  # noqa: E731
            table.add("fused: layer, forward", flops(square=2, linear=2), layer)
            table.add("fused: layer, forward and backward", flops(square=7, linear=9), lambda: layer().backward(slope))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, metavar="B", help="images of a batch")
    parser.add_argument("--check", action="store_true", help="the plans, and of PyTorch's ways the fastest")
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "NAME"), help="check one plan on two images, and nothing else")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU on this machine")
        return 0
    if arguments.one:
        print(check(*arguments.one, images=2))
        return 0
    start = time.perf_counter()
    ahead, back = plans()
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, assembler {fused_attention.assembler()}", flush=True)
    verdicts = checked([*(("forward", name) for name in ahead), *(("backward", name) for name in back)])
    print(f"compiled and checked in {time.perf_counter() - start:.0f} s", flush=True)
    table = Table(arguments.images)
    plain_ways(table, *((("cudnn",), False) if arguments.check else ()))
    fused_ways(table, verdicts)
    print(f"{time.perf_counter() - start:.0f} s in all")
    if out := os.environ.get("OUT"):
        cuts = {
            "forward": {name: asdict(plan) for name, plan in ahead.items()},
            "backward": {name: [asdict(plan) for plan in cut] for name, cut in back.items()},
        }
        Path(out, "attention.json").write_text(
            json.dumps(
                {
                    "device": torch.cuda.get_device_name(0),
                    "rows": table.rows,
                    "plans": cuts,
                    "checks": {": ".join(job): said for job, said in verdicts.items()},
                },
                indent=1,
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
