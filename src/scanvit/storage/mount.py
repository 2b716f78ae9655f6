"""An object store as a read-only folder, by ``rclone mount``."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..core.errors import StorageError
from .atomic import storage_errors
from .credentials import Credentials, credentials_from
from .failures import explain, missing
from .rclone import Rclone, rclone_or_fail
from .remote import Remote

_START_S = 60.0
_UNMOUNT_S = 10.0


def mount(
    remote: Remote, folder: Path | str, environment: Mapping[str, str], *, cache: Path | None = None, daemon: bool = False, on_ready: Callable[[], None]
) -> None:
    """Mount ``remote`` at ``folder``, call ``on_ready``, and stay until rclone ends or the caller is interrupted; then it is unmounted.

    With ``daemon`` it returns once the mount stands, which then stays until ``fusermount3 -u`` (or ``umount``). What was read is kept in
    ``cache``, by default below the user's cache folder. Raises StorageError where the machine cannot mount, where ``folder`` is in use, and
    where the remote is missing or holds nothing.
    """
    folder = Path(folder).absolute()
    credentials = credentials_from(environment, remote.kind)
    store = Rclone(remote, credentials, program=rclone_or_fail(remote))
    _check_fuse()
    _check_folder(folder)
    if not store.top():
        raise missing(remote)
    arguments = ["mount", str(remote), str(folder), *_options(cache or _default_cache(credentials, environment))]
    with tempfile.TemporaryFile() as log:
        try:
            with store.process(arguments, detached=daemon, stdout=subprocess.DEVNULL, stderr=log) as process:
                mounted = _wait_until_mounted(folder, process)
                if mounted:
                    on_ready()
                if not mounted or (not daemon and process.wait()):
                    log.seek(0)
                    raise explain(log.read().decode("utf-8", errors="replace"), remote, credentials)
        finally:
            if not daemon or not os.path.ismount(folder):
                unmount(folder)


def unmount(folder: Path) -> None:
    """Also where the process behind the mount is gone, or somebody still reads in it. Nothing happens where nothing is mounted."""
    until = time.monotonic() + _UNMOUNT_S
    while _is_mounted(folder) and time.monotonic() < until:
        program = _fusermount()
        lazy = ["-z"] if time.monotonic() > until - _UNMOUNT_S / 2 else []
        subprocess.run([program, "-u", *lazy, str(folder)], capture_output=True, check=False, timeout=_UNMOUNT_S)
        time.sleep(0.1)


def _options(cache: Path) -> list[str]:
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    # The time of the upload comes with the listing; the file's own would cost a request for each file.
    options = ["--read-only", "--vfs-cache-mode", "full", "--cache-dir", str(cache), "--use-server-modtime"]
    return [*options, "--allow-other"] if _may_allow_others() else options


def _default_cache(credentials: Credentials, environment: Mapping[str, str]) -> Path:
    """One for each account: rclone itself tells two stores apart by the remote's name alone."""
    base = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "scanvit" / "objects" / hashlib.sha256(credentials.account.encode()).hexdigest()[:16]


def _check_fuse() -> None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        raise StorageError(
            f"This machine cannot mount: /dev/fuse: {error.strerror}.",
            hint="In a container, start it with --device /dev/fuse --cap-add SYS_ADMIN; or copy instead of mounting: scanvit data pull",
        ) from None
    _fusermount()


def _fusermount() -> str:
    if program := shutil.which("fusermount3") or shutil.which("fusermount"):
        return program
    raise StorageError("This machine cannot mount: fusermount3 is not installed.", hint="Install it: apt install fuse3")


def _check_folder(folder: Path) -> None:
    if _is_mounted(folder):
        raise StorageError(f"Something is mounted at {folder} already.", hint=f"Unmount it first: fusermount3 -u {folder}")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise StorageError(f"{folder} is not empty: a mount would hide what is in it.", hint="Give an empty or new folder.")


def _is_mounted(folder: Path) -> bool:
    try:
        os.lstat(folder)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.EIO)  # mounted, but the process behind it is gone
    return os.path.ismount(folder)


def _may_allow_others() -> bool:
    """FUSE lets root, and users where the administrator says so, show a mount to others."""
    if os.geteuid() == 0:
        return True
    try:
        lines = Path("/etc/fuse.conf").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split("#")[0].strip() == "user_allow_other" for line in lines)


def _wait_until_mounted(folder: Path, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        if os.path.ismount(folder):
            return True
        time.sleep(0.05)
    return False
