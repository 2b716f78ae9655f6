"""A headless Chromium under control: its DevTools protocol over two pipes, without a port and without a driver's package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
_FIXED = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run", "--hide-scrollbars")
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Page:
    """One tab. ``console`` collects what the page and the browser say in it: messages, errors, refusals of the policy."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._buffer, self._number = to_browser, from_browser, b"", 0
        self.console: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = None
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str, *, width_px: int = 1280, height_px: int = 900, dark: bool = False, paper: bool = False) -> None:
        self._call("Emulation.setDeviceMetricsOverride", width=width_px, height=height_px, deviceScaleFactor=1, mobile=False)
        scheme = "dark" if dark else "light"
        self._call("Emulation.setEmulatedMedia", media="print" if paper else "", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call("Page.navigate", url=url)
        self._receive(lambda message: message.get("method") == "Page.loadEventFired")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """As a person does: the browser decides what it means."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]} | ({"text": "\r"} if key == "Enter" else {})
        self._call("Input.dispatchKeyEvent", type="keyDown", **code)
        self._call("Input.dispatchKeyEvent", type="keyUp", **{name: value for name, value in code.items() if name != "text"})

    def point(self, x: float, y: float) -> None:
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        """The whole page, not only what is in the window."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True, format="png")["data"]))

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self._call("Page.printToPDF", printBackground=False)["data"])

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        number, message = self._number, {"id": self._number, "method": method, "params": params}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answer = self._receive(lambda message: message.get("id") == number)
        assert "error" not in answer, answer["error"]
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self, wanted: Any) -> dict[str, Any]:
        while True:
            while b"\0" not in self._buffer:
                piece = os.read(self._from, 1 << 20)
                assert piece, "the browser has ended"
                self._buffer += piece
            line, _, self._buffer = self._buffer.partition(b"\0")
            message: dict[str, Any] = json.loads(line)
            params = message.get("params", {})
            match message.get("method"):
                case "Runtime.consoleAPICalled":
                    self.console.append(" ".join(str(argument.get("value")) for argument in params["args"]))
                case "Runtime.exceptionThrown":
                    self.console.append(params["exceptionDetails"]["text"])
                case "Log.entryAdded":
                    self.console.append(params["entry"]["text"])
            if wanted(message):
                return message


@contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """A browser with a profile of its own; it ends with the block."""
    for_browser, to_browser = os.pipe()
    from_browser, by_browser = os.pipe()
    # The browser reads its descriptor 3 and writes its descriptor 4.
    wiring = f'exec "$0" "$@" 3<&{for_browser} 4>&{by_browser}'
    command = ["bash", "-c", wiring, str(CHROMIUM), *_FIXED, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
    process = subprocess.Popen(command, pass_fds=(for_browser, by_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(for_browser)
    os.close(by_browser)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)
        os.close(from_browser)
        process.terminate()
        process.wait(timeout=30)
