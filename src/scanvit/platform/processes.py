"""Running a program to its end, and taking what it says for a sentence where it fails."""

from __future__ import annotations

import errno
import os
import pwd
import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..core.errors import EngineError, NoSpaceError


def identity(user: str | None) -> dict[str, Any]:
    """Arguments for ``subprocess`` by which a child is ``user`` and nothing more; None: as this process."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def run_checked(
    command: Sequence[str],
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    cwd: Path | None = None,
    ok: Collection[int] = (0,),
    stdin: str | IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
) -> str:
    """stdout as text (or written to ``stdout``). Raises NoSpaceError or EngineError with the program's last words; ``what`` is what it was for."""
    feed: dict[str, Any] = {"input": stdin.encode()} if isinstance(stdin, str) else {"stdin": stdin or subprocess.DEVNULL}
    try:
        done = subprocess.run(
            command, env=environment, cwd=cwd, stdout=stdout or subprocess.PIPE, stderr=subprocess.PIPE, check=False, **feed, **identity(user)
        )
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be run: {error.strerror}.", hint=f"It is needed for {what}.") from error
    out = (done.stdout or b"").decode(errors="replace")
    if done.returncode not in ok:
        raise _failure(Path(command[0]).name, what, f"{out}\n{done.stderr.decode(errors='replace')}", done.returncode)
    return out


def _failure(program: str, what: str, said: str, code: int) -> Exception:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    full = os.strerror(errno.ENOSPC)
    if any(full in line for line in lines):
        return NoSpaceError(f"No space is left for {what}.", hint="Free some space, then run the same command again.")
    # Podman's, of the program that it runs for compose, and a build's, of the step that failed: what failed there was said before.
    idle = ("Error: executing ", "did not complete successfully: exit code")
    lines = [re.sub(r"^(#\d+ )?\d+\.\d+ ", "", line) for line in lines if not any(words in line for words in idle)] or lines
    telling = [line for line in lines if any(word in line.lower() for word in ("error", "fatal", "failed", "denied", "can't", "cannot"))]
    words = (telling or lines or ["it said nothing"])[-1]
    return EngineError(f"{program} failed for {what}: {words[:300]}", hint=f"It ended with exit code {code}.")
