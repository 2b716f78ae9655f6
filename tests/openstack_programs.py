"""The programs of OpenStack's Swift and Keystone, installed beside the checkout once: it takes a minute."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("keystone==30.0.0", "keystonemiddleware==13.0.1", "gunicorn==27.0.1", "swift==2.38.3", "setuptools<81")
_HOME = Path(__file__).resolve().parents[1] / ".build" / "openstack"


def openstack_programs() -> Path:
    """The virtual environment that holds them. Skips where they cannot be installed."""
    _HOME.parent.mkdir(exist_ok=True)
    with open(_HOME.with_suffix(".lock"), "w") as lock:  # several processes of pytest may want them
        fcntl.flock(lock, fcntl.LOCK_EX)
        whole = _HOME / "installed"
        if whole.is_file() and whole.read_text() == "\n".join(PACKAGES):
            return _HOME
        whole.unlink(missing_ok=True)
        for command in ([sys.executable, "-m", "venv", "--clear", _HOME], [_HOME / "bin" / "pip", "install", "-q", *PACKAGES]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=400)
            if done.returncode:
                pytest.skip(f"Swift and Keystone cannot be installed here: {done.stderr[-300:]}")
        whole.write_text("\n".join(PACKAGES))
    return _HOME
