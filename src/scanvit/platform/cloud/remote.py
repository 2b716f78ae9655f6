"""Another machine made ready over ssh: the checkout is copied there and ``deploy/remote/setup`` does the rest.

The system's own ssh is used, with its configuration, keys and known hosts. Nothing secret stands on a command line, here or there: settings
go through ssh's standard input into a file that only the remote user may read, and that the script deletes once it has read it.
"""

from __future__ import annotations

import posixpath
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import EngineError, RemoteError
from ..compose import deploy_folder

STEPS = ("packages", "driver", "check", "install", "image", "data", "platform")
_REBOOT = 100
"""Exit code of the script that asks for a reboot."""
_UNREACHABLE = 255
"""Exit code of ssh itself."""
_FOREIGN, _BUSY = 97, 98
"""Exit codes of _EXCHANGE: the folder is somebody else's, or another set-up is at work on it."""
_EXCHANGE = """set -e; umask 077; mkdir -p -- {folder}; cd -- {folder}
if command -v flock >/dev/null; then exec 9<.; flock -n 9 || exit {busy}; fi
new=.scanvit-incoming
if [ -n "$(ls -A)" ] && [ ! -e deploy/remote/setup ] && [ ! -d $new ]; then exit {foreign}; fi
mkdir -p $new; find $new -mindepth 1 -delete; tar -xzf - -C $new
for path in $new/* $new/.[!.]* $new/..?*; do
    name=${{path#$new/}}
    case $name in .venv | .scanvit-platform | runs | packs) continue ;; esac
    if [ -e "$path" ] || [ -L "$path" ]; then rm -rf -- "./$name"; mv -- "$path" ./; fi
done
rm -rf $new"""
"""What the archive has is exchanged name by name, when all of it has come, and nothing else is touched. Until the end $new says that the folder is ours."""
_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Host:
    """How to reach a machine. What is not given is ssh's own configuration for ``address``."""

    address: str
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    folder: str = "scanvit"
    """On the machine, from the user's home, or absolute."""

    def __post_init__(self) -> None:
        folder = posixpath.normpath(self.folder.removeprefix("~/"))
        if folder.startswith(("~", "..")) or not folder.strip("./"):
            raise RemoteError(f"{self.folder!r} is no folder for a copy of scanvit.", hint="Name one of its own, from the user's home or absolute: scanvit")
        object.__setattr__(self, "folder", folder)

    @property
    def target(self) -> str:
        return f"{self.user}@{self.address}" if self.user else self.address

    def ssh(self, *, connect_timeout_s: int = 15) -> list[str]:
        """ssh that asks nothing: a new machine's key is kept at first sight, a changed one is refused."""
        words = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new", "-o", f"ConnectTimeout={connect_timeout_s}"]
        words += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8"]
        words += ["-p", str(self.port)] if self.port else []
        words += ["-i", str(self.key), "-o", "IdentitiesOnly=yes"] if self.key else []
        return [*words, "--", self.target]

    def words(self) -> str:
        """What a person types to get there."""
        port = f" -p {self.port}" if self.port else ""
        key = f" -i {shlex.quote(str(self.key))}" if self.key else ""
        return f"ssh{port}{key} {self.target}"


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    reach_s: float = 1200.0
    """Until a machine that is starting answers: bare metal takes ten minutes."""
    poll_s: float = 5.0
    step_s: float = 5400.0
    """For all steps up to a reboot: a driver and images of several GB."""


def setup(host: Host, steps: Sequence[str], settings: Mapping[str, str], *, say: Say, timeouts: Timeouts | None = None) -> None:
    """Copy the checkout and run the steps, with a reboot in between where the driver asks for one. Safe to repeat.

    ``settings``: the variables of the script; secrets among them. Raises RemoteError, EngineError.
    """
    timeouts = timeouts or Timeouts()
    _check_settings(settings)
    if shutil.which("ssh") is None:
        raise EngineError("ssh is not installed.", hint="apt install openssh-client")
    say(f"Waiting for {host.target}")
    boot_id = reach(host, timeouts)
    copy_checkout(host, say=say)
    for _ in range(3):
        code = _run_steps(host, steps, settings, say=say, timeout_s=timeouts.step_s)
        if code != _REBOOT:
            break
        say(f"Rebooting {host.address}")
        _run(host, "if [ $(id -u) = 0 ]; then systemctl reboot; else sudo -n systemctl reboot; fi", timeout_s=60)  # ssh may lose the connection: no news
        boot_id = reach(host, timeouts, another_than=boot_id)
    if code:
        what = "still asks for a reboot after three" if code == _REBOOT else f"ended with exit code {code}"
        raise RemoteError(f"The set-up of {host.target} {what}.", hint="Its last lines are above. Mend that, and give the same command again.")


def reach(host: Host, timeouts: Timeouts, *, another_than: str | None = None) -> str:
    """Wait until ssh answers, of another boot than the one named; the boot's id. Raises RemoteError."""
    deadline = time.monotonic() + timeouts.reach_s
    while True:
        done = _run(host, _BOOT_ID, timeout_s=60)
        if done.returncode == 0 and done.stdout.strip() != another_than:
            return done.stdout.strip()
        said = done.stderr.strip().splitlines()[-1:] or ["it is still the boot from before"]
        if "Permission denied" in said[0] or "verification failed" in done.stderr:
            raise RemoteError(f"{host.target} refuses: {said[0]}", hint=f"This must work without a question: {host.words()} true")
        if time.monotonic() >= deadline:
            raise RemoteError(f"{host.target} does not answer after {timeouts.reach_s:.0f} s: {said[0]}", hint=f"Try by hand: {host.words()}")
        time.sleep(timeouts.poll_s)


def copy_checkout(host: Host, *, say: Say) -> None:
    """The committed files of the checkout that this package runs from. What else lies in the folder there stays. Raises RemoteError, EngineError."""
    root = deploy_folder().parent
    packed = subprocess.run(["git", "-C", str(root), "archive", "--format=tar.gz", "HEAD"], capture_output=True, check=False)
    if packed.returncode:
        raise EngineError(f"{root} is no git checkout: {packed.stderr.decode(errors='replace').strip()}", hint="Clone the repository, and run from there.")
    say(f"Copying scanvit ({len(packed.stdout) / 1e6:.1f} MB)")
    script = _EXCHANGE.format(folder=shlex.quote(host.folder), busy=_BUSY, foreign=_FOREIGN)
    done = _run(host, script, stdin=packed.stdout, timeout_s=600)
    if done.returncode == _FOREIGN:
        raise RemoteError(f"{host.folder} on {host.target} is not empty, and no copy of scanvit. Nothing was changed.", hint="Name another: --folder FOLDER")
    if done.returncode == _BUSY:
        raise RemoteError(f"Another set-up is at work on {host.folder} on {host.target}.", hint="Wait until it has ended, then give the same command again.")
    if done.returncode:
        said = (done.stderr.strip() or "no reason given")[-300:]
        raise RemoteError(f"Copying to {host.folder} on {host.target} failed: {said}", hint=f"Is there space for {host.folder}, and a tar?")


def describe(host: Host, steps: Sequence[str], settings: Mapping[str, str]) -> list[str]:
    """What ``setup`` would do, as lines; of settings the names alone."""
    shown = ", ".join(sorted(settings)) or "none"
    return [
        f"wait for {host.words()}",
        f"copy the committed files of {deploy_folder().parent} to {host.folder} there",
        f"run deploy/remote/setup {' '.join(steps)} (settings: {shown})",
        *(["reboot, and run it again, if the driver asks for it"] if "driver" in steps else []),
    ]


def _run_steps(host: Host, steps: Sequence[str], settings: Mapping[str, str], *, say: Say, timeout_s: float) -> int:
    """Exit code of the script. Its output is handed on line by line."""
    content = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    folder = shlex.quote(host.folder)
    script = (
        f'set -e; umask 077; settings=$(mktemp); trap "rm -f $settings" EXIT HUP TERM; cat >"$settings"; cd {folder}; '
        f"SETUP_ENV=$settings bash deploy/remote/setup {' '.join(map(shlex.quote, steps))} 2>&1"
    )
    with subprocess.Popen(
        [*host.ssh(), script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout_s, end)  # what hangs says nothing: no line comes after which to look
        timer.start()
        try:
            process.stdin.write(content)
            process.stdin.close()
            for line in process.stdout:
                say(line.rstrip("\n"))
        finally:
            timer.cancel()
    if late.is_set():
        raise RemoteError(f"The set-up of {host.target} takes longer than {timeout_s / 60:.0f} minutes.", hint="Give the same command again.")
    if process.returncode == _UNREACHABLE:
        raise RemoteError(f"The connection to {host.target} was lost.", hint="Give the same command again: it goes on where it stopped.")
    return process.returncode


def _run(host: Host, script: str, *, stdin: bytes = b"", timeout_s: float) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run([*host.ssh(), script], input=stdin, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], _UNREACHABLE, "", "no answer")
    except OSError as error:
        raise EngineError(f"ssh cannot be run: {error}.", hint="apt install openssh-client") from None
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def _check_settings(settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        if "\n" in value or "\0" in value or '"' in value:
            raise RemoteError(f"The value of {name} holds a line break or a quotation mark.", hint="Set it without.")
