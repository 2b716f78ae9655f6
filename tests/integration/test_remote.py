"""A machine set up over ssh: a real sshd on loopback, of the user that runs the tests, with a key and a home of its own."""

from __future__ import annotations

import fcntl
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.integration.conftest import Scanvit
from tests.ports import free_port

from scanvit.core.errors import RemoteError
from scanvit.platform.cloud import remote
from scanvit.platform.cloud.remote import Host, Timeouts

QUICK = Timeouts(reach_s=3, poll_s=0.1, step_s=120)


@dataclass
class SshServer:
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([str(sshd()), "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        pytest.skip(f"sshd does not start here: {(self.folder / 'log').read_text()[-300:]}")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(10)


def sshd() -> Path:
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None or shutil.which("ssh") is None or shutil.which("git") is None:
        pytest.skip("sshd, ssh or git is not installed (Debian: openssh-server)")
    return Path(found)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    folder = tmp_path_factory.mktemp("sshd")
    sshd()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nPidFile none\n"
        "PasswordAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, started as root, separates its privileges
    server = SshServer(folder, port)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def host(server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    # A wrapper keeps the known hosts of whoever runs the tests as they are.
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F none -o UserKnownHostsFile={tmp_path}/known -o LogLevel=ERROR "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    return Host(address="127.0.0.1", user=getpass.getuser(), port=server.port, key=server.folder / "user", folder=str(tmp_path / "there with space"))


def test_the_checkout_arrives_whole_and_what_was_made_there_stays(host: Host) -> None:
    there = Path(host.folder)
    remote.copy_checkout(host, say=str)
    assert (there / "deploy" / "remote" / "setup").stat().st_mode & 0o100
    assert (there / "src" / "scanvit" / "__init__.py").is_file()
    assert not (there / ".git").exists()
    names = (".venv", "runs", "tunes", "backups", ".mine")
    for name in names:
        (there / name).mkdir()
        (there / name / "kept").touch()
    (there / "src" / "stale.py").touch()
    inode = (there / "runs").stat().st_ino
    remote.copy_checkout(replace(host, folder=f"{host.folder}/"), say=str)
    assert [name for name in names if not (there / name / "kept").exists()] == []
    assert (there / "runs").stat().st_ino == inode
    assert not (there / "src" / "stale.py").exists()
    assert not (there / ".scanvit-incoming").exists()
    assert [path.name for path in there.parent.iterdir() if path.name.startswith(there.name)] == [there.name]


def test_a_copy_that_was_cut_changes_nothing_and_the_next_one_is_whole(host: Host) -> None:
    there = Path(host.folder)
    cut = remote._EXCHANGE.format(folder=shlex.quote(host.folder), busy=98, foreign=97)
    assert remote._run(host, cut, stdin=b"half an archive", timeout_s=60).returncode not in (0, 97)
    (there / "runs").mkdir()
    remote.copy_checkout(host, say=str)
    assert (there / "runs").is_dir()
    before = (there / "README.md").read_bytes()
    assert remote._run(host, cut, stdin=b"half an archive", timeout_s=60).returncode not in (0, 97)
    assert (there / "README.md").read_bytes() == before


def test_a_folder_of_others_is_refused_and_stays(host: Host) -> None:
    there = Path(host.folder)
    there.mkdir()
    (there / "thesis.tex").write_text("years")
    with pytest.raises(RemoteError, match="is not empty, and no copy of scanvit") as caught:
        remote.copy_checkout(host, say=str)
    assert "--folder" in (caught.value.hint or "")
    assert [path.name for path in there.iterdir()] == ["thesis.tex"]


def test_two_set_ups_of_one_folder_do_not_mix(host: Host) -> None:
    there = Path(host.folder)
    there.mkdir()
    descriptor = os.open(there, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(RemoteError, match="Another set-up is at work"):
            remote.copy_checkout(host, say=str)
    finally:
        os.close(descriptor)


def test_the_script_runs_there_with_its_settings_which_no_command_line_shows(host: Host, tmp_path: Path) -> None:
    said: list[str] = []
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    # The checks call these; what they see is what the script sees.
    for name in ("docker", "rclone", "nvidia-smi", "nvtop"):
        (fakes / name).write_text(f'#!/bin/sh\necho "$0 $*" >>{fakes}/called\nps axww -o args >>{fakes}/processes\n')
        (fakes / name).chmod(0o755)
    settings = {"GPU": "nvidia", "PATH": f"{fakes}:/usr/sbin:/usr/bin:/sbin:/bin", "OS_APPLICATION_CREDENTIAL_SECRET": "hush-$HOME-'quoted'"}
    remote.setup(host, ["check"], settings, say=said.append, timeouts=QUICK)
    assert "== Docker: ok" in said
    assert "== GPU: ok" in said
    assert said[-1] == "== Done: check"
    assert "hush" not in (fakes / "processes").read_text()
    assert "nvidia-smi" in (fakes / "called").read_text()
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("*hush*"))


def test_a_check_that_fails_ends_the_set_up_with_its_reason(host: Host, tmp_path: Path) -> None:
    said: list[str] = []
    settings = {"GPU": "amd", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    with pytest.raises(RemoteError, match="ended with exit code 3"):
        remote.setup(host, ["check"], settings, say=said.append, timeouts=QUICK)
    assert any(line.startswith("== GPU: FAILED (rocm-smi)") for line in said)
    with pytest.raises(RemoteError, match="exit code 2"):
        remote.setup(host, ["polish"], {}, say=said.append, timeouts=QUICK)
    assert "error: 'polish' is no step." in said


def test_a_reboot_is_waited_for_and_the_steps_go_on(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own boot cannot be another one here: the file that names the boot is the test's, everything else goes over ssh."""
    boot, log = tmp_path / "boot_id", tmp_path / "log"
    boot.write_text("first")
    monkeypatch.setattr(remote, "_BOOT_ID", f"cat {boot}")
    plain = remote._run

    def run(host: Host, script: str, *, stdin: bytes = b"", timeout_s: float) -> subprocess.CompletedProcess[str]:
        if "systemctl reboot" in script:
            boot.write_text("second")
            script = f"echo reboot >>{log}"
        return plain(host, script, stdin=stdin, timeout_s=timeout_s)

    def steps(host: Host, steps: list[str], settings: dict[str, str], *, say: remote.Say, timeout_s: float) -> int:
        done = plain(host, f"echo steps >>{log}; [ $(cat {boot}) = second ] || exit 100", timeout_s=60)
        return done.returncode

    monkeypatch.setattr(remote, "_run", run)
    monkeypatch.setattr(remote, "_run_steps", steps)
    remote.setup(host, ["driver"], {}, say=str, timeouts=QUICK)
    assert log.read_text().split() == ["steps", "reboot", "steps"]
    monkeypatch.setattr(remote, "_run_steps", lambda *args, **kwargs: 100)
    with pytest.raises(RemoteError, match="does not answer after 3 s: it is still the boot from before"):
        remote.setup(host, ["driver"], {}, say=str, timeouts=QUICK)  # this time the boot stays the second


def test_who_is_refused_or_not_there_is_told_at_once(host: Host, server: SshServer, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True)
    with pytest.raises(RemoteError, match="Permission denied"):
        remote.reach(replace(host, key=stranger), QUICK)
    with pytest.raises(RemoteError, match="does not answer after 3 s"):
        remote.reach(replace(host, port=free_port()), QUICK)
    remote.reach(host, QUICK)
    known = tmp_path / "known"
    name = known.read_text().split()[0]
    known.write_text(f"{name} {' '.join(Path(f'{stranger}.pub').read_text().split()[:2])}\n")
    with pytest.raises(RemoteError, match="verification failed"):
        remote.reach(host, QUICK)


def test_the_command_line(host: Host, server: SshServer, scanvit: Scanvit) -> None:
    words = ["remote", "setup", "127.0.0.1", "--user", getpass.getuser(), "--port", server.port, "--key", server.folder / "user", "--folder", host.folder]
    out = scanvit(*map(str, words), "--data", "swift:xrays", "--dry-run", ST_AUTH="http://127.0.0.1:1/auth", ST_USER="me", ST_KEY="hush")
    assert "run deploy/remote/setup packages driver check install image data platform" in out
    assert "ST_KEY" in out
    assert "hush" not in out
    assert "'polish' is no step" in scanvit(*map(str, words), "--steps", "polish", code=10)
    assert "OS_AUTH_URL" in scanvit(*map(str, words), "--data", "swift:xrays", code=60)
    assert not Path(host.folder).exists()
