"""``ray up`` with the shipped file, on machines in boxes that are reached by a real SSH server, and ``ray down``."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.integration.boxes import Box, Network
from tests.integration.cluster_harness import RAY, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
SSHD = "/usr/sbin/sshd"
pytestmark = [
    pytest.mark.soak,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
    pytest.mark.skipif(not Path(SSHD).is_file() or not shutil.which("rsync"), reason="no SSH server or no rsync (Debian: openssh-server, rsync)"),
]


class Machine:
    """A box with an SSH server and a home of its own, as if scanvit had been installed there."""

    def __init__(self, box: Box, folder: Path, key: Path) -> None:
        self.box, self.home = box, folder / f"home{box.number}"
        self.home.mkdir()
        (self.home / ".bashrc").touch()
        (self.home / "scanvit").symlink_to(REPOSITORY)
        self.environment = {"HOME": str(self.home), "PATH": os.environ["PATH"]}
        users = folder / f"passwd{box.number}"  # SSH goes by it, not by $HOME
        users.write_text(Path("/etc/passwd").read_text(encoding="utf-8").replace(":/root:", f":{self.home}:", 1), encoding="utf-8")
        assert box.run("mount", "--bind", users, "/etc/passwd").returncode == 0
        # Ray keeps there what it knows of a cluster, and copies that to the same path of the head.
        Path("/tmp/ray").mkdir(exist_ok=True)
        assert box.run("mount", "-t", "tmpfs", "tmpfs", "/tmp/ray").returncode == 0
        host_key = folder / f"host{box.number}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key], check=True)
        config = folder / f"sshd{box.number}"
        settings = (
            *(f"HostKey {host_key}", f"AuthorizedKeysFile {key}.pub", "PidFile none", "PermitRootLogin prohibit-password"),
            *("StrictModes no", "UsePAM no", "PasswordAuthentication no"),
        )
        config.write_text("\n".join(settings) + "\n", encoding="ascii")
        Path("/run/sshd").mkdir(exist_ok=True)
        self.server = subprocess.Popen([*box.enter, SSHD, "-D", "-f", config, "-E", folder / f"sshd{box.number}.log"])


@pytest.fixture
def machines() -> Iterator[tuple[Path, list[Machine]]]:
    network, folder = Network(), Path(tempfile.mkdtemp(prefix="scanvit-", dir="/tmp"))
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    made: list[Machine] = []
    try:
        made += [Machine(network.add(), folder, key) for _ in range(3)]
        yield folder, made
    finally:
        network.close()
        for machine in made:
            machine.server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def test_the_shipped_file_brings_a_cluster_up_and_down(machines: tuple[Path, list[Machine]]) -> None:
    folder, (client, head, worker) = machines
    config = yaml.safe_load((REPOSITORY / "deploy" / "ray" / "ssh-cpu.yaml").read_text(encoding="utf-8"))
    config["cluster_name"] = f"test-{uuid.uuid4().hex[:8]}"
    config["provider"] |= {"head_ip": head.box.address, "worker_ips": [worker.box.address]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(folder / "key")}
    config["max_workers"] = 1
    del config["file_mounts"]["~/scanvit"], config["setup_commands"][0]  # the code is there already, and no registry can be reached
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")

    environment = client.environment | {"RAY_AUTH_MODE": "token"}
    assert client.box.run(RAY, "get-auth-token", "--generate", environment=environment).returncode == 0
    up = client.box.run(RAY, "up", "--yes", "--no-config-cache", file, environment=environment, timeout=150)
    assert up.returncode == 0, up.stdout + up.stderr

    connect = f"import json, ray; ray.init(address='{head.box.address}:6379', log_to_driver=False, logging_level=40)"
    count = f"{connect}; print(json.dumps(sum(n['Alive'] for n in ray.nodes())))"

    def nodes(**changes: str) -> int:
        done = head.box.run(sys.executable, "-c", count, environment=head.environment | {"RAY_AUTH_MODE": "token"} | changes)
        return int(json.loads(done.stdout.splitlines()[-1])) if done.returncode == 0 else 0

    try:
        wait_for(lambda: nodes() == 2, "two nodes", 150, every_s=2)
    except AssertionError:
        pytest.fail("the worker did not join:\n" + head.box.run("sh", "-c", "tail -qc 3000 /tmp/ray/session_latest/logs/monitor.*").stdout)
    assert nodes(RAY_AUTH_TOKEN="0" * 64) == 0, "another token opens nothing"
    assert (head.home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    listening = head.box.run("ss", "-ltnH").stdout.split()
    assert [address for address in listening if address.endswith(":8265")] == ["127.0.0.1:8265"]

    # The probe that the pods of deploy/ray/kuberay-cluster.yaml are asked by.
    pods = yaml.safe_load((REPOSITORY / "deploy" / "ray" / "kuberay-cluster.yaml").read_text(encoding="utf-8"))["spec"]
    _, *probe = pods["headGroupSpec"]["template"]["spec"]["containers"][0]["livenessProbe"]["exec"]["command"]
    token = (worker.home / ".ray" / "auth_token").read_text(encoding="ascii").strip()
    for machine, answer in ((worker, 0), (client, 1)):  # the client has no raylet
        assert machine.box.run(sys.executable, *probe, environment=machine.environment | {"RAY_AUTH_TOKEN": token}).returncode == answer

    down = client.box.run(RAY, "down", "--yes", file, environment=environment, timeout=200)
    assert down.returncode == 0, down.stdout + down.stderr

    def is_up(machine: Machine) -> bool:
        return "raylet" in machine.box.run("ps", "-eo", "args").stdout

    assert not is_up(head), down.stdout + down.stderr
    wait_for(lambda: not is_up(worker), "the worker's end, which has lost its head", 200, every_s=1)
