"""One file over HTTP(S): resumed by range request, retried with growing pauses, checked for its length.

    NAME.part        what has come so far
    NAME.part.json   what it takes to go on: a hash of the address, the validators of the file (ETag, Last-Modified), its length

A resumed download is never a mixture of two versions of a file: the range is asked for on the condition that the file is still the same
(If-Range, RFC 9110 section 13.1.5), and an answer that shows another version starts it anew.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import random
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from ..core.errors import ChecksumError, FetchError, NoSpaceError
from .address import build_opener, public_address
from .atomic import storage_errors, write_json

_LOGGER = logging.getLogger(__name__)
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_GIB = 1 << 30
_NUMBER = "[0-9]{1,18}"
_CERTIFICATE_HINT = "Behind a proxy with a certificate of its own, name that in SSL_CERT_FILE."

Progress = Callable[[int, int | None], None]
"""Called with (bytes that have come, bytes in all or None)."""


@dataclass(frozen=True, kw_only=True)
class DownloadPolicy:
    tries: int = 6
    """Attempts in a row that bring nothing new before giving up."""
    base_s: float = 1.0
    """First pause; each next one is twice as long, times a random factor of 0.5 to 1."""
    cap_s: float = 120.0
    """Longest pause, also for a Retry-After."""
    timeout_s: float = 60.0
    """Of connecting, and of waiting for more bytes."""
    chunk_bytes: int = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Remote:
    url: str
    size_bytes: int | None = None
    """Exact length, where it is known beforehand."""
    max_bytes: int = 100 * _GIB
    authorization: str | None = field(default=None, repr=False)
    """Header for the host of ``url`` alone: it is not sent on to another host, nor written anywhere."""
    hint: str = "Download it by hand and put it in place."
    """What to do where access is refused or the file is gone."""


@dataclass(frozen=True, kw_only=True)
class _State:
    """Of the file that ``NAME.part`` is the beginning of."""

    url_sha256: str  # the address may hold a token
    etag: str | None = None
    last_modified: str | None = None
    total_bytes: int | None = None

    @property
    def validator(self) -> str | None:
        """For If-Range, which takes no weak ETag."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class _TransientError(Exception):
    """Worth another attempt, after ``wait_s`` where the server says so."""

    def __init__(self, reason: str, *, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def download(remote: Remote, part: Path, *, policy: DownloadPolicy | None = None, progress: Progress | None = None) -> None:
    """Fill ``part`` to the file's full length, going on where an earlier call stopped.

    Raises FetchError where it does not come through (``part`` stays for the next call), ChecksumError where the server's file is not
    ``size_bytes`` long, NoSpaceError, StorageError. No message holds a credential or the query of an address.
    """
    _Download(remote, part, policy or DownloadPolicy(), progress or (lambda *_: None)).run()


def discard(part: Path) -> None:
    """Forget what has come so far."""
    part.unlink(missing_ok=True)
    _state_path(part).unlink(missing_ok=True)


class _Download:
    def __init__(self, remote: Remote, part: Path, policy: DownloadPolicy, progress: Progress) -> None:
        self.remote, self.part, self.policy, self.progress = remote, part, policy, progress
        self.shown = public_address(remote.url)
        self.opener = build_opener(remote.url)
        self.best = 0

    def run(self) -> None:
        with storage_errors(self.part):
            self.part.parent.mkdir(parents=True, exist_ok=True)
        self.best = self._resumable()[1]
        failures = 0
        while True:
            before = self.best
            try:
                return self._attempt()
            except _TransientError as failure:
                failures = 1 if self.best > before else failures + 1
                if failures >= self.policy.tries:
                    raise FetchError(
                        f"{self.shown} did not come through: {failure} ({failures} attempts in a row brought nothing new).",
                        hint="Run the same command again: it goes on where this one stopped.",
                    ) from None
                self._pause(failure, failures)

    def _pause(self, failure: _TransientError, failures: int) -> None:
        wait_s = min(self.policy.base_s * 2 ** (failures - 1), self.policy.cap_s) * random.uniform(0.5, 1)
        if failure.wait_s is not None:
            if failure.wait_s > self.policy.cap_s:
                raise FetchError(f"{self.shown}: {failure}, and asks to wait {failure.wait_s:.0f} s.", hint="Run the same command again then.")
            wait_s = max(wait_s, failure.wait_s)
        _LOGGER.info("%s: %s; another attempt in %.1f s", self.shown, failure, wait_s)
        time.sleep(wait_s)

    def _attempt(self) -> None:
        state, offset = self._resumable()
        if state and offset and state.total_bytes == offset:
            return None
        request = urllib.request.Request(self.remote.url, headers={"Accept-Encoding": "identity", "User-Agent": "scanvit"})  # noqa: S310
        if self.remote.authorization:
            request.add_unredirected_header("Authorization", self.remote.authorization)
        if state and offset:
            request.add_header("Range", f"bytes={offset}-")
            request.add_header("If-Range", state.validator or "")
        try:
            response = self.opener.open(request, timeout=self.policy.timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                return self._judge(error.code, error.headers, state, offset)
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
                raise FetchError(f"{self.shown} cannot prove who it is: its certificate is not valid here.", hint=_CERTIFICATE_HINT) from None
            raise _TransientError(_reason(error)) from None
        except ValueError:
            raise FetchError(f"{self.shown} is redirected to an address that cannot be read.", hint=self.remote.hint) from None
        with response:
            return self._receive(response, state, offset)

    def _receive(self, response: Any, state: _State | None, offset: int) -> None:
        headers: Message = response.headers
        if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
            raise FetchError(f"{self.shown} comes in the encoding {encoding[:40]!r}, which nobody asked for.", hint=self.remote.hint)
        total: int | None
        if response.status == 206 and state and offset:
            total = self._continued(headers, state, offset)
        elif response.status == 200:
            offset, total = 0, self._started(headers)
        else:
            raise FetchError(f"{self.shown} answers with status {response.status}.", hint=self.remote.hint)
        if total is not None and shutil.disk_usage(self.part.parent).free < total - offset:
            raise NoSpaceError(
                f"{self.part.parent} has no room for the {total - offset:,} bytes of {self.shown} that are missing.",
                hint="Free some space or choose another folder.",
            )
        done = self._copy(response, offset, total)
        if total is not None and done < total:
            raise _TransientError(f"it ends after {done:,} of {total:,} bytes")
        self._check_length(done)

    def _started(self, headers: Message) -> int | None:
        """A whole file begins: the length it is said to have, None where its end is marked by the transfer coding."""
        length = headers.get("Content-Length", "").strip()
        chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        total = int(length) if re.fullmatch(_NUMBER, length) and not chunked else None
        if total is None and not chunked:
            raise FetchError(f"{self.shown} comes without its length, so that a part could be taken for the whole.", hint=self.remote.hint)
        self._check_length(total)
        with storage_errors(self.part):
            discard(self.part)  # first, so that old bytes never stand beside the new validators
            url_sha256 = _hash(self.remote.url)
            state = _State(url_sha256=url_sha256, etag=headers.get("ETag"), last_modified=headers.get("Last-Modified"), total_bytes=total)
            write_json(_state_path(self.part), asdict(state))
        return total

    def _continued(self, headers: Message, state: _State, offset: int) -> int:
        match = re.fullmatch(rf"bytes ({_NUMBER})-({_NUMBER})/({_NUMBER})", headers.get("Content-Range", "").strip())
        first, last, total = map(int, match.groups()) if match else (-1, -1, -1)
        changed = any(
            old and new and old != new for old, new in ((state.etag, headers.get("ETag")), (state.last_modified, headers.get("Last-Modified")))
        ) or state.total_bytes not in (None, total)
        if first != offset or last + 1 != total or changed:
            discard(self.part)
            raise _TransientError("the file changed meanwhile" if changed else "the answer to a range request does not fit it")
        self._check_length(total)
        return total

    def _copy(self, response: Any, offset: int, total: int | None) -> int:
        done = offset
        with storage_errors(self.part), open(self.part, "ab", buffering=0) as file:
            assert file.tell() == offset
            while total is None or done < total:
                self.progress(done, total)
                try:
                    chunk = response.read1(min(self.policy.chunk_bytes, total - done) if total is not None else self.policy.chunk_bytes)
                except (OSError, http.client.HTTPException) as error:
                    raise _TransientError(_reason(error)) from None
                if not chunk:
                    break
                _write(file, chunk)
                done += len(chunk)
                self.best = max(self.best, done)
                if done > self.remote.max_bytes:
                    self._check_length(done)
            os.fsync(file.fileno())
        self.progress(done, total)
        return done

    def _judge(self, code: int, headers: Message, state: _State | None, offset: int) -> None:
        """An answer that is neither 200 nor 206. Returns where the file turns out to be complete."""
        if code == 416 and state and offset:
            match = re.fullmatch(rf"bytes \*/({_NUMBER})", headers.get("Content-Range", "").strip())
            if match and int(match[1]) == offset and state.total_bytes in (None, offset):
                return self._check_length(offset)
            discard(self.part)
            raise _TransientError("its length is not what the server said before (416)")
        if code in _RETRIED:
            raise _TransientError(f"the server answers {code}", wait_s=_retry_after(headers.get("Retry-After")))
        if code in (401, 403):
            raise FetchError(f"{self.shown} refuses access ({code}).", hint=self.remote.hint)
        if code in (404, 410):
            raise FetchError(f"{self.shown} is not there ({code}).", hint=self.remote.hint)
        if 300 <= code < 400:
            raise FetchError(f"{self.shown} is redirected in a circle or to nowhere ({code}).", hint=self.remote.hint)
        raise FetchError(f"{self.shown} cannot be fetched: the server answers {code}.", hint=self.remote.hint)

    def _check_length(self, total: int | None) -> None:
        expected = self.remote.size_bytes
        if total is not None and expected is not None and total != expected:
            raise ChecksumError(
                f"{self.shown} is {total:,} bytes long; {expected:,} were recorded.",
                hint="The file has changed. If the new one is meant, mend the catalog or remove its entry from fetch.lock.json.",
            )
        if total is not None and total > self.remote.max_bytes:
            raise FetchError(f"{self.shown} is longer than the {self.remote.max_bytes:,} bytes allowed.", hint="Set max_bytes in the catalog if it is meant.")

    def _resumable(self) -> tuple[_State | None, int]:
        """What is known of the file in ``part``, and how much of it is there; (None, 0) where it cannot be gone on with."""
        with suppress(OSError, ValueError, TypeError):
            state = _State(**json.loads(_state_path(self.part).read_text(encoding="utf-8")))
            offset = self.part.stat().st_size
            if state.url_sha256 == _hash(self.remote.url) and state.validator and offset <= (state.total_bytes or offset):
                return state, offset
        return None, 0


def _state_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:  # an unbuffered write may be short
        view = view[file.write(view) :]


def _hash(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait: RFC 9110 section 10.2.3 allows a number and a date."""
    if value is None:
        return None
    if re.fullmatch(_NUMBER, value.strip()):
        return float(value)
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _reason(error: BaseException) -> str:
    """In words of our own: what the libraries say may quote addresses."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "the server is silent"
    if isinstance(cause, http.client.IncompleteRead):
        return "the connection ends in the middle"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return f"the connection fails ({type(cause).__name__})"
