"""The page in a real browser: a file is dropped, the answer stands there, and hostile class names do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.browser import CHROMIUM, Browser
from tests.integration.conftest import Scanvit
from tests.integration.use.test_serve import started

from scanvit.model.checkpoint import load_model, save_checkpoint

OWNED = "document.documentElement.dataset.owned='yes'"
HOSTILE = [f"<script>{OWNED}</script>", f'"><img src=x onerror="{OWNED}">', "normal"]
TOKEN = "a secret that is long enough"

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def address(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hostile")
    model = load_model(trained)
    gate = {"gate": "G1", "title": f"<script>{OWNED}</script>", "verdict": "fail", "reason": None}
    about: dict[str, Any] = {"contract": model.contract, "experiment": model.experiment, "fingerprint": model.fingerprint, "metrics": {}}
    save_checkpoint(folder / "checkpoint.pth", state_dict=model.network.state_dict(), class_names=HOSTILE, audit=[gate], **about)
    runner = Scanvit(folder)
    yield started(runner, folder / "checkpoint.pth", SCANVIT_SERVE_TOKEN=TOKEN)
    runner.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    made = Browser(tmp_path / "profile")
    yield made
    made.close()


def test_a_file_is_dropped_and_read(browser: Browser, address: str, pictures: list[Path], make_dicom: Callable[..., bytes], tmp_path: Path) -> None:
    browser.open(address)
    # The server asks for its secret: one message of the browser about the 401, and a field to type it.
    browser.wait("!document.querySelector('#secret').hidden")
    browser.console.clear()
    browser.evaluate("document.querySelector('#token').focus()")
    browser.send("Input.insertText", text=TOKEN)
    browser.press("Tab", 9)
    browser.wait("document.querySelector('#card').children.length > 0")

    browser.evaluate("document.querySelector('#reading').selectedIndex = 3")
    browser.drop("#drop", pictures[0])
    browser.wait("!document.querySelector('#found').hidden")
    assert "first reading, normal" in browser.evaluate("document.querySelector('#agreement').textContent")
    assert browser.evaluate("document.querySelectorAll('#rows tr').length") == 3
    browser.wait("document.querySelector('#picture').naturalWidth === 512 && document.querySelector('#heat').naturalWidth === 512")
    assert browser.evaluate("document.querySelector('#rows th').textContent") in HOSTILE
    assert browser.evaluate("document.querySelector('#result').getAttribute('aria-busy')") == "false"
    assert browser.evaluate("document.querySelector('#wait').textContent") == f"Read: {pictures[0].name}"

    browser.evaluate("document.querySelector('#show').focus()")
    browser.press(" ", 32)
    browser.wait("document.querySelector('#heat').hidden")

    (tmp_path / "volume.dcm").write_bytes(make_dicom(np.random.default_rng(0).integers(0, 256, (3, 20, 30), dtype=np.uint8)))
    browser.drop("#drop", tmp_path / "volume.dcm")
    browser.wait("!document.querySelector('#frames').hidden && document.querySelector('#of').textContent === 'of 3'")

    for width in (360, 768, 1280):
        for dark in (False, True):
            browser.resize(width, dark=dark)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.documentElement.dataset.owned") is None
    assert browser.evaluate("document.querySelectorAll('#card script, #rows script, #rows img').length") == 0
    assert browser.console == []


def test_a_bad_file_is_told_and_the_keyboard_reaches_everything(browser: Browser, address: str, tmp_path: Path) -> None:
    browser.open(address)
    browser.wait("!document.querySelector('#secret').hidden")
    browser.evaluate(f"document.querySelector('#token').value = {TOKEN!r}")
    (tmp_path / "bad.png").write_bytes(b"no image")
    browser.drop("#drop", tmp_path / "bad.png")
    browser.wait("document.querySelector('#problem').textContent.includes('no readable')")
    assert browser.evaluate("document.querySelector('#problem').getAttribute('role')") == "alert"
    assert browser.evaluate("document.querySelector('#found').hidden")
    browser.evaluate("document.body.focus()")
    reached = set()
    for _ in range(12):
        browser.press("Tab", 9)
        reached.add(browser.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.tagName"))
    assert {"skip", "file", "reading", "token"} <= reached
    unnamed = "[...document.querySelectorAll('input, select')].filter(field => !field.labels.length).length"
    assert browser.evaluate(unnamed) == 0


def test_a_picture_of_something_else_gets_no_answer(browser: Browser, trained: Path, pictures: list[Path], tmp_path: Path) -> None:
    Image.fromarray(np.kron([[255, 0], [0, 255]], np.ones((32, 32))).astype(np.uint8)).save(tmp_path / "board.png")
    runner = Scanvit(tmp_path)
    try:
        browser.open(started(runner, trained))
        for file, answers in ((pictures[0], True), (tmp_path / "board.png", False)):
            browser.drop("#drop", file)
            browser.wait(f"document.querySelector('#wait').textContent === 'Read: {file.name}'")
            assert (browser.evaluate("document.querySelector('#answer').textContent") != "No answer for this image") == answers
            assert browser.evaluate("document.querySelector('#outlier').hidden") == answers
        assert "do not listen" in browser.evaluate("document.querySelector('#outlier').textContent")
    finally:
        runner.close()


def test_the_page_may_run_nothing_but_its_own_script(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.evaluate(f"document.body.append(Object.assign(document.createElement('script'), {{textContent: `{OWNED}`}}))")
    assert browser.evaluate("document.documentElement.dataset.owned") is None
    assert any("Content Security Policy" in line for line in browser.console)
