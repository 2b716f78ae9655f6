"""Which assembler turns Triton's kernels into a GPU's machine code."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch


@cache
def assembler() -> str | None:
    """The ptxas that turns the kernels into machine code, if one is here that may.

    Triton 3.6 takes the one of CUDA 12.8 for a Hopper GPU, which forms addresses of shared memory from the wrong registers: tiles of other data
    are multiplied, or the program ends in an illegal access (seen in its machine code; triton-lang/triton#11366 and #11854 tell of the same).
    PyTorch brings a newer one, which its own compiler uses, and Triton one for later GPUs.
    """
    if chosen := os.environ.get("TRITON_PTXAS_PATH"):
        return chosen
    if (spec := find_spec("triton")) is None or spec.origin is None:
        return None
    places = (Path(torch.__file__).parent / "bin/ptxas", Path(spec.origin).parent / "backends/nvidia/bin/ptxas-blackwell")
    return next((str(place) for place in places if os.access(place, os.X_OK)), None)
