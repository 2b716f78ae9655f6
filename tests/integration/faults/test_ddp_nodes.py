"""A run on two machines with a network between them, whose cable is pulled."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.boxes import Network
from tests.integration.conftest import Scanvit
from tests.integration.faults.conftest import Fault, MarkedScanvit
from tests.integration.faults.recovery import lives
from tests.integration.training_runs import arguments, assert_same, differing_weights, wait_for_step

STEPS_AN_EPOCH = 6
SETTINGS = ("trainer.max_epochs=12", "trainer.checkpoint_every_s=0.001")


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    try:
        network.add()
        network.add()
        yield network
    finally:
        network.close()


@pytest.fixture
def undisturbed(small_pack: Path, tmp_path: Path) -> Path:
    Scanvit(tmp_path)(*arguments(small_pack, tmp_path / "undisturbed", *SETTINGS, "trainer.devices=2"))
    return tmp_path / "undisturbed"


def start_on_both(scanvit: MarkedScanvit, network: Network, command: list[str | Path]) -> list[subprocess.Popen[str]]:
    place = {"MASTER_ADDR": network.boxes[0].address, "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "eth0"}
    return [scanvit.start(*command, prefix=box.enter, NODE_RANK=str(rank), **place) for rank, box in enumerate(network.boxes)]


@pytest.mark.fault("DDP", "network between two machines cut", "inside an epoch")
def test_a_cut_network_ends_the_run_on_both_machines(scanvit: MarkedScanvit, network: Network, small_pack: Path, undisturbed: Path, fault: Fault) -> None:
    run_dir = scanvit.folder / "run"
    two_machines = ("trainer.num_nodes=2", "trainer.devices=1", "trainer.timeout_s=15")
    command = [*arguments(small_pack, run_dir, *SETTINGS, *two_machines), "--max-restarts", "0"]
    processes = start_on_both(scanvit, network, command)
    wait_for_step(run_dir, STEPS_AN_EPOCH + 2, processes[0])
    network.boxes[1].cut()
    cut_at = time.time()
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [44, 44], said
    ended_s = time.time() - cut_at
    assert "did not take part for longer than trainer.timeout_s" in said[0][1]
    network.boxes[1].mend()
    resumed_at = time.time()
    for process in start_on_both(scanvit, network, command):
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, out + err
    assert_same(run_dir, undisturbed)
    life = lives(run_dir)[-1]
    same = differing_weights(run_dir, undisturbed) == []
    fault.record(exit_code=44, ended_s=ended_s, lost_steps=life.lost_steps, recovery_s=life.new_at - resumed_at, same_weights=same)
