"""Machines in boxes: each has its own network, processes, host name and shared memory, and sees this machine's files.

A box is a set of Linux namespaces; all boxes of a network are plugged into one bridge. Killing a box's first process kills all that runs in
it at once, like a power cut. Nothing of this touches the machine's own network, and nothing outlives ``Network.close``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

# The first process of a box: it reaps the orphans, as init does.
_INIT = """
import os, time
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.2)
"""


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True, timeout=30)


class Box:
    """One machine. ``Network.add`` makes it."""

    def __init__(self, network: str, number: int) -> None:
        self.network, self.number = network, number
        self.name, self.address = f"{network}-{number}", f"10.77.0.{number + 1}"
        self.cable = f"v{number}"  # the bridge's end of it
        _ip("netns", "add", self.name)
        _ip("-n", network, "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("-n", network, "link", "set", self.cable, "master", "bridge", "up")
        _ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.name, "link", "set", "eth0", "up")
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip("-n", self.name, "route", "add", "default", "via", "10.77.0.254")  # nobody is there: Ray finds its own address by the route's
        setup = f"hostname box{number} && mount -t tmpfs tmpfs /dev/shm && exec {sys.executable} -c '{_INIT}'"
        isolate = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--uts"]
        self._unshare = subprocess.Popen(["ip", "netns", "exec", self.name, *isolate, "sh", "-c", setup], start_new_session=True)
        self._init = self._wait_for_init()

    def _wait_for_init(self) -> psutil.Process:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            for child in psutil.Process(self._unshare.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if _INIT in child.cmdline():
                        return child
            assert self._unshare.poll() is None, "the box did not start"
            time.sleep(0.02)
        raise AssertionError("the box did not start in 30 s")

    @property
    def enter(self) -> list[str]:
        """What to put before a command, so that it runs in the box."""
        return ["nsenter", "--target", str(self._init.pid), "--net", "--pid", "--mount", "--uts"]

    def run(self, *command: str | Path, environment: dict[str, str] | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.enter, *map(str, command)], env=environment, capture_output=True, text=True, timeout=timeout, check=False)

    @property
    def is_running(self) -> bool:
        return self._unshare.poll() is None

    def cut(self) -> None:
        """Pull the network cable."""
        _ip("-n", self.network, "link", "set", self.cable, "down")

    def mend(self) -> None:
        _ip("-n", self.network, "link", "set", self.cable, "up")

    def kill(self) -> None:
        """The power goes: all processes of the box die at once."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._init.send_signal(signal.SIGKILL)
        self._unshare.kill()
        self._unshare.wait(timeout=30)

    def close(self) -> None:
        self.kill()
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False, timeout=30)


class Network:
    """A switch and the boxes on it. Skips the test where namespaces cannot be made."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("network namespaces can be made by root only")
        if missing := [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]:
            pytest.skip(f"{missing[0]} is not installed (Debian: iproute2, util-linux)")
        self.name = f"scanvit-{uuid.uuid4().hex[:8]}"
        made = subprocess.run(["ip", "netns", "add", self.name], capture_output=True, text=True, check=False, timeout=30)
        if made.returncode:
            pytest.skip(f"this machine makes no network namespaces: {made.stderr.strip()}")
        self.boxes: list[Box] = []
        _ip("-n", self.name, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.name, "link", "set", "bridge", "up")

    def add(self) -> Box:
        self.boxes.append(Box(self.name, len(self.boxes)))
        return self.boxes[-1]

    def close(self) -> None:
        for box in self.boxes:
            box.close()
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False, timeout=30)
