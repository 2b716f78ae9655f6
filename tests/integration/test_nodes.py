"""The same run from one command, from one command on each of two machines, and under torchrun: the same weights, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.conftest import Scanvit
from tests.integration.training_runs import arguments, assert_same
from tests.ports import free_port

ONE_EPOCH = ("trainer.max_epochs=1",)


@pytest.fixture(scope="module")
def one_command(small_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-command")
    told = Scanvit(folder)(*arguments(small_pack, folder / "run", *ONE_EPOCH, "trainer.devices=2"))
    assert "Warning" not in told, "what PyTorch has to say to its makers is no news to a user"
    return folder / "run"


def test_one_command_on_each_of_two_machines(scanvit: Scanvit, small_pack: Path, one_command: Path) -> None:
    run_dir = scanvit.folder / "run"
    command = arguments(small_pack, run_dir, *ONE_EPOCH, "trainer.num_nodes=2", "trainer.devices=1")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    second = scanvit.start(*command, NODE_RANK="1", **place)  # waits for the first
    first = scanvit.start(*command, NODE_RANK="0", **place)
    for process in (first, second):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert_same(run_dir, one_command)


def test_under_torchrun(scanvit: Scanvit, small_pack: Path, one_command: Path) -> None:
    run_dir = scanvit.folder / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "scanvit"]
    command = [*launcher, *map(str, arguments(small_pack, run_dir, *ONE_EPOCH))]
    done = subprocess.run(command, env=scanvit.environment(), cwd=scanvit.folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("best epoch") == 1, "rank zero alone tells of the end"
    assert_same(run_dir, one_command)


@pytest.mark.parametrize(
    ("settings", "environment", "sentence"),
    [
        (("trainer.num_nodes=2",), {}, "NODE_RANK is not set"),
        (("trainer.num_nodes=2",), {"NODE_RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "NODE_RANK is 2"),
        (("trainer.num_nodes=2",), {"NODE_RANK": "one", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "whole numbers"),
        (
            ("trainer.devices=3",),
            {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            "trainer.devices is 3",
        ),
    ],
    ids=["no rank", "a rank too high", "no number", "another world"],
)
def test_a_world_that_is_not_the_experiments_is_refused(
    scanvit: Scanvit, small_pack: Path, settings: tuple[str, ...], environment: dict[str, str], sentence: str
) -> None:
    run_dir = scanvit.folder / "run"
    said = scanvit(*arguments(small_pack, run_dir, *settings), code=10, **environment)
    assert sentence in " ".join(said.split())
    assert not run_dir.exists()
