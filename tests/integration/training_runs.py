"""Runs that the tests disturb: settings with every source of chance on, and what two runs must have in common to be the same run."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import torch

from scanvit.core.events import read_events

# Everything random is on, so that a draw that is not a function of (seed, step, rank) would show.
SETTINGS = (
    *("model.stem_widths=[8,8]", "model.depth=2", "model.dim=16", "model.dim_head=8", "model.dropout=0.1", "model.drop_path=0.1"),
    *("augment.rotate_deg=10", "augment.noise=0.1", "augment.gamma=0.2", "augment.mixup=0.2", "augment.erase=0.3", "ema.decay=0.99"),
    *("trainer.max_epochs=3", "trainer.per_device_batch_size=8", "trainer.log_every_n_steps=1", "tracking.mlflow=false"),
)


def arguments(pack: Path, run_dir: Path, *settings: str) -> list[str | Path]:
    return ["train", "tiny", "--pack", pack, "--run-dir", run_dir, *(x for s in [*SETTINGS, *settings] for x in ("--set", s))]


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str], *, within_s: float = 600) -> None:
    """Return as soon as the run tells of that step."""
    deadline = time.monotonic() + within_s
    while last_step(run_dir) < step:
        assert process.poll() is None, f"the command ended with {process.returncode} before step {step}"
        assert time.monotonic() < deadline, f"no step {step} after {within_s} s"
        time.sleep(0.002)


def last_step(run_dir: Path) -> int:
    """The highest optimizer step that the events tell of."""
    return max((event["step"] for event in read_events(run_dir)), default=0)


def saved_step(run_dir: Path, *, name: str = "last.ckpt") -> int:
    """Where a checkpoint stands, the newest; 0 without one."""
    path = run_dir / "checkpoints" / name
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    best = torch.load(run_dir / "checkpoint.pth", weights_only=True)["state_dict"]
    return last | {f"best {name}": value for name, value in best.items()}


def differing_weights(run_dir: Path, expected: Path) -> list[str]:
    """Names of the tensors of the last and the best checkpoint that are not the same, bit for bit."""
    ours, theirs = weights(run_dir), weights(expected)
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def epochs(run_dir: Path) -> dict[int, dict[str, float]]:
    """The metrics of each epoch that do not measure time."""
    found = {}
    for event in read_events(run_dir):
        if "val_loss" in event["values"]:
            found[event["epoch"]] = {k: v for k, v in event["values"].items() if not k.endswith("_s") and v is not None}
    return found


def assert_same(run_dir: Path, expected: Path) -> None:
    assert differing_weights(run_dir, expected) == []
    assert epochs(run_dir).keys() == epochs(expected).keys()
    for epoch, metrics in epochs(expected).items():
        assert epochs(run_dir)[epoch] == pytest.approx(metrics, rel=1e-12), "sums over ranks may be added in another order"
