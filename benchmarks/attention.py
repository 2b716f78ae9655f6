"""One attention layer of the reference network on a GPU: the fused kernels against PyTorch's.

    python -m benchmarks.attention [--images 512]
    compute-sanitizer --tool memcheck python -m benchmarks.attention --check

First the kernels are checked against the written-out formula in float64, on fresh random tokens, in a process of its own: an illegal access ends
no timing of the others. Then each way is timed, if it is right. --check does no more than the check, on two images, in this process.

Times are medians of many runs: as a program waits for it, and the sum of its kernels on the device alone, by PyTorch's profiler (0 where it may
not look). TFLOP/s are of the former and count the products that each way needs, two for each multiply-add, recomputed scores among them.
With OUT set in the environment, the figures are written to $OUT/attention.json too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

TOKENS, DIM, HEADS = 257, 64, 16
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
LIMIT_S = 60


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


def case(images: int) -> tuple[Tensor, nn.Linear, nn.Linear, Tensor]:
    """Tokens as LayerNorm leaves them, the layer's weights as they start, but larger, so that attention is not the mean; a slope."""
    inner = HEADS * DIM
    qkv, proj = nn.Linear(DIM, 3 * inner, bias=False, device="cuda"), nn.Linear(inner, DIM, device="cuda")
    with torch.no_grad():
        qkv.weight.mul_(2)
    tokens, slope = (torch.randn(images, TOKENS, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return tokens.requires_grad_(), qkv, proj, slope


def folded(qkv: nn.Linear, proj: nn.Linear) -> list[Tensor]:
    to_scores, to_output = attention._fold(qkv.weight, proj.weight, heads=HEADS)
    return [part.detach().bfloat16().contiguous() for part in (DIM**-0.5 * to_scores, to_output)]


def distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())


def check(images: int = 8) -> str:
    """The relative errors of y and of the slopes, tokens apart as [CLS] and patches, and what the kernels take of the device."""
    kernels = model_module("attention_kernels")
    tokens, qkv, proj, slope = case(images)
    low = [tokens.detach(), *folded(qkv, proj)]
    exact = [part.double().requires_grad_() for part in low]
    x, to_scores, to_output = exact
    probs = (torch.einsum("bnd,hed->bhne", x, to_scores) @ x[:, None].transpose(-1, -2)).softmax(-1)
    right = torch.einsum("bhnd,hed->bne", probs @ x[:, None], to_output)
    d_x, d_scores, d_output = torch.autograd.grad(right, exact, slope.double())
    torch.full((2**28,), float("nan"), dtype=torch.bfloat16, device="cuda")  # what is not written shows
    y, mixed, lse = kernels.forward(*low)
    dx, d_a, d_o = kernels.backward(slope, *low, mixed, lse)
    torch.cuda.synchronize()
    pairs = {"y [CLS]": (y[:, 0], right[:, 0]), "y patches": (y[:, 1:], right[:, 1:]), "dx [CLS]": (dx[:, 0], d_x[:, 0])}
    pairs |= {"dx patches": (dx[:, 1:], d_x[:, 1:]), "dA": (d_a, d_scores), "dO": (d_o, d_output)}
    errors = {what: distance(*pair) for what, pair in pairs.items()}
    made = [one for kernel in (kernels._forward, kernels._backward) for one in kernel.device_caches[torch.cuda.current_device()][0].values()]
    taken = "; ".join(f"{one.n_regs} registers, {one.n_spills} spilled, {one.metadata.shared / 1024:.0f} KiB" for one in made)
    said = ", ".join(f"{what} {error:.1e}" for what, error in errors.items())
    return f"{'ok' if all(error < 1e-2 for error in errors.values()) else 'WRONG'}: {said}; {taken}"


def verdict_of_check() -> str:
    try:
        return check()
    except Exception as error:  # as text: not every error of a GPU travels between processes
        return f"FAILED: {type(error).__name__}: {error}"


def checked_apart() -> str:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply_async(verdict_of_check).get(timeout=LIMIT_S)
        except multiprocessing.TimeoutError:
            return f"FAILED: no answer in {LIMIT_S} s"


def kernels_us(call: Callable[[], Any], runs: int = 10) -> float:
    """The time of a call's kernels, without what lies between them."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            for _ in range(runs):
                call()
            torch.cuda.synchronize()
    except RuntimeError:
        return 0.0
    return sum(event.self_device_time_total for event in profiled.key_averages()) / runs


def time_ways(images: int, is_right: bool) -> list[dict[str, Any]]:
    """The layer as it is written by most, as scanvit has it without the kernels, and with them."""
    tokens, qkv, proj, slope = case(images)

    def unfolded(x: Tensor) -> Tensor:
        q, k, v = attention.split_heads(qkv(x), heads=HEADS)
        return proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def fold(x: Tensor) -> Tensor:
        return attention.attend(x, qkv=qkv, proj=proj, heads=HEADS)

    rows = []
    # Products over pairs of tokens and over tokens alone: forwards, and backwards.
    plain = (("unfolded", unfolded, (2, 4), (5, 8)), ("folded", fold, (2, 2), (5, 5)))
    ways: list[Any] = [(f"{name}, {backend}", layer, backend, *products) for name, layer, *products in plain for backend in BACKENDS]
    if is_right:
        ways.append(("fused", fold, None, (2, 2), (5, 7)))
    for name, layer, backend, ahead, back in ways:
        fused_attention.ENABLED = backend is None
        with sdpa_kernel([BACKENDS[backend or "cudnn"]]), torch.autocast("cuda", torch.bfloat16):
            rows.append(timed(f"{name}: forward", lambda layer=layer: layer(tokens), images, ahead))
            both = (ahead[0] + back[0], ahead[1] + back[1])
            rows.append(timed(f"{name}: forward and backward", lambda layer=layer: layer(tokens).backward(slope), images, both))
    return rows


def timed(name: str, call: Callable[[], Any], images: int, products: tuple[int, int]) -> dict[str, Any]:
    """``products``: over pairs of tokens, and over tokens alone, each 64 wide, all heads."""
    from triton.testing import do_bench

    try:
        torch.cuda.empty_cache()
        us = 1000 * do_bench(call, warmup=30, rep=120, return_mode="median") / images
    except Exception as error:  # PyTorch has no such kernel here
        print(f"{name:<42} failed: {type(error).__name__}: {str(error)[:160]}", flush=True)
        return {"name": name, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
    alone = kernels_us(call) / images
    tflops = HEADS * 2e-6 * DIM * (products[0] * TOKENS**2 + products[1] * TOKENS * DIM) / us
    print(f"{name:<42} {us:8.3f} us/image, kernels alone {alone:8.3f}, {tflops:6.0f} TFLOP/s", flush=True)
    return {"name": name, "us_an_image": us, "kernels_us_an_image": alone, "tflops": tflops}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, metavar="B", help="images of a batch")
    parser.add_argument("--check", action="store_true", help="check the kernels on two images, and nothing else")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU on this machine")
        return 0
    print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, assembler {fused_attention.assembler()}", flush=True)
    verdict = check(images=2) if arguments.check else checked_apart()
    print(verdict, flush=True)
    is_right = verdict.startswith("ok")
    if not arguments.check:
        rows = time_ways(arguments.images, is_right)
        if out := os.environ.get("OUT"):
            answer = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "check": verdict, "rows": rows}
            Path(out, "attention.json").write_text(json.dumps(answer, indent=1))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
