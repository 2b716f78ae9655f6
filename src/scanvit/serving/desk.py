"""Who waits for the network: one request is computed at a time, a few wait, the rest is told to come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request

_DRAIN_S = 2.0
T = TypeVar("T")


class Desk:
    """``most``: requests that may be received, wait or be computed at once; each holds its file in memory."""

    def __init__(self, *, most: int, most_bytes: int, timeout_s: float) -> None:
        self._most, self._most_bytes, self._timeout_s = most, most_bytes, timeout_s
        self._present = 0
        # One: the network takes all cores by itself, and the decoders are not made for threads.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="network")

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Raises RequestError (503) where all places are taken."""
        if self._present >= self._most:
            raise RequestError(f"{self._most} requests are at work already.", hint="Try again in a moment.", status=503)
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1

    async def receive(self, request: Request) -> bytes:
        """The body. Raises RequestError: 413 too large, 408 too slow, 400 empty; ConnectionResetError where the client left."""
        too_large = RequestError(f"The file is larger than {self._most_bytes:,} bytes.", hint="Start the server with a larger --max-mb.", status=413)
        length = request.headers.get("content-length", "")
        parts: list[bytes] = []
        total = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                if length.isdigit() and int(length) > self._most_bytes:
                    raise too_large
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    total += len(message.get("body", b""))
                    if total > self._most_bytes:
                        raise too_large
                    parts.append(message.get("body", b""))
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise RequestError(f"The file did not arrive within {self._timeout_s:g} s.", hint="Send it again, over a faster line.", status=408) from None
        except RequestError:
            await _drain(request)
            raise
        if not total:
            raise RequestError("The request holds no file.", hint="Send the bytes of the image as the body.", status=400)
        return b"".join(parts)

    async def compute(self, request: Request, work: Callable[[], T]) -> T:
        """In the network's thread. Raises RequestError (504) past the time limit; ConnectionResetError where the client left before."""
        job: asyncio.Future[Any] = asyncio.get_running_loop().run_in_executor(self._pool, work)
        left: asyncio.Future[Any] = asyncio.ensure_future(_left(request))
        try:
            done, _ = await asyncio.wait({job, left}, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if job in done:
                result: T = job.result()
                return result
            job.cancel()  # one that waits is not begun; one at work ends by itself, and keeps those behind it waiting
            if left in done:
                raise ConnectionResetError
            hint = "Try a smaller image, or start the server with a larger --timeout."
            raise RequestError(f"No answer within {self._timeout_s:g} s.", hint=hint, status=504)
        finally:
            left.cancel()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _drain(request: Request) -> None:
    """For a moment, take what is still coming: a socket that is closed on unread bytes takes the answer with it."""

    async def take() -> None:
        more: Any = True
        while more:
            message = await request.receive()
            more = message["type"] == "http.request" and message.get("more_body")

    try:
        async with asyncio.timeout(_DRAIN_S):
            await take()
    except TimeoutError:
        return
