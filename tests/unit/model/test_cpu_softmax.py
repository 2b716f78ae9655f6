"""Against the formula in float64, within what bf16 can hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scanvit.model import cpu_softmax
from scanvit.model.cpu_softmax import softmax_, softmax_gradient_

# Rounding to eight bits moves a value by at most a 512th of itself; 2^-126 is the least of a row.
CLOSE = {"rtol": 2.0**-8, "atol": 2.0**-125}


@pytest.fixture(params=[1, 2, 5], ids="{} threads".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _ours() -> None:
    if cpu_softmax._openmp() is None:
        pytest.skip("this build of PyTorch has no OpenMP library whose threads could be used: its own kernels are")


def expected(scores: Tensor) -> Tensor:
    return scores.double().softmax(dim=-1)


@given(
    rows=st.integers(0, 12),
    columns=st.sampled_from([1, 2, 15, 16, 17, 31, 33, 50, 64, 65, 257, 1000]),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4, 2e37]),
    seed=st.integers(0, 99),
)
def test_it_is_the_formula(rows: int, columns: int, scale: float, seed: int) -> None:
    scores = (scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))).bfloat16()
    made = softmax_(scores.clone())
    torch.testing.assert_close(made.double(), expected(scores), **CLOSE)


def test_every_row_is_written_whatever_the_threads(threads: int) -> None:
    scores = torch.randn(3, 4, 7, 50).bfloat16()
    made = softmax_(scores.clone())
    torch.testing.assert_close(made.double(), expected(scores), **CLOSE)
    slopes, given = torch.randn(3, 4, 7, 50).bfloat16(), made.double()
    wanted = given * (slopes.double() - (given * slopes.double()).sum(-1, keepdim=True))
    torch.testing.assert_close(softmax_gradient_(slopes.clone(), made).double(), wanted, rtol=2.0**-8, atol=1e-6)


def test_the_threads_do_not_change_a_bit() -> None:
    scores, slopes, before = torch.randn(37, 257).bfloat16(), torch.randn(37, 257).bfloat16(), torch.get_num_threads()
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        probs = softmax_(scores.clone())
        made.append((probs, softmax_gradient_(slopes.clone(), probs)))
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for later in made[1:] for one, other in zip(made[0], later, strict=True))


@pytest.mark.parametrize("odd", [float("nan"), -float("nan"), float("inf")])
def test_a_row_that_is_no_number_becomes_nan_and_no_other_row_does(odd: float) -> None:
    scores = torch.randn(5, 50).bfloat16()
    scores[2, 17] = odd
    assert softmax_(scores).isnan().any(1).tolist() == [False, False, True, False, False]
    assert scores[2].isnan().all()


def test_minus_infinity_is_no_probability_and_a_row_of_it_none_at_all() -> None:
    scores = torch.zeros(2, 20).bfloat16()
    scores[0, 3], scores[1] = -float("inf"), -float("inf")
    made = softmax_(scores)
    assert made[0, 3] < 1e-37
    assert made[0, 4].item() == pytest.approx(1 / 19, rel=2.0**-8)
    assert made[1].isnan().all()


def test_without_an_openmp_library_pytorch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, slopes = torch.randn(6, 50).bfloat16(), torch.randn(6, 50).bfloat16()
    ours = softmax_(scores.clone())
    gradient = softmax_gradient_(slopes.clone(), ours)
    monkeypatch.setattr(cpu_softmax, "_openmp", lambda: None)
    torch.testing.assert_close(softmax_(scores), ours, rtol=2.0**-7, atol=0)
    torch.testing.assert_close(softmax_gradient_(slopes, ours), gradient, rtol=2.0**-6, atol=1e-4)


def test_what_numba_is_told_otherwise_costs_the_speed_alone(tmp_path: Path) -> None:
    code = "import torch; from scanvit.model.cpu_softmax import softmax_; print(softmax_(torch.zeros(1, 4).bfloat16()).tolist())"
    environment = os.environ | {"NUMBA_OPT": "0", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[0.25, 0.25, 0.25, 0.25]]"
    assert "PyTorch's softmax is used" in done.stderr
