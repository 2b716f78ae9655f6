"""The pages in a real browser: nothing in the console, nothing past the edge, hostile names do nothing, tables and figures answer to the keyboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.browser import Browser

from scanvit.core.contract import PixelContract
from scanvit.data.manifest import write_manifest
from scanvit.data.pack import seal_pack

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
WIDTHS_PX = (360, 768, 1280)
OWNED = "document.documentElement.dataset.owned='yes'"
CLASS_NAMES = sorted(
    [
        f"<script>{OWNED}</script>",
        f'"><img src="x" onerror="{OWNED}">',
        "a-class-with-a-name-that-is-as-long-as-names-of-findings-can-be",
        "normal",
    ]
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


def hostile_pack(folder: Path) -> None:
    """A pack from elsewhere: class, source and image names hold HTML."""
    folder.mkdir()
    contract, random = PixelContract(image_size_px=16), np.random.default_rng(0)
    columns: dict[str, list[Any]] = {}
    for split, size in {"train": 32, "val": 16, "test": 40, "final_eval": 0}.items():
        np.save(folder / f"{split}.npy", random.integers(0, 256, size=(size, *contract.shape), dtype=np.uint8))
        for row in range(size):
            values = {
                "image_id": f"{split}{row}<script>{OWNED}</script>",
                "class_name": CLASS_NAMES[row % len(CLASS_NAMES)],
                "split": split,
                "patient_id": f"{split}{row // 8}",
                "source": f"<svg onload={OWNED}>",
                "path": f"{split}/{row}.png",
                "sha256": f"{row:064x}",
                "perceptual_hash": f"{row:064x}",
                "width_px": 16,
                "height_px": 16,
                "format": "PNG",
                "row": row,
            }
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
    write_manifest(folder / "manifest.parquet", columns)
    gate = {"gate": "G1", "title": f"<script>{OWNED}</script>", "verdict": "fail", "figure": 1, "detail": f"</main><script>{OWNED}</script>", "reason": None}
    (folder / "audit.json").write_text(json.dumps({"format": 1, "gates": [gate]}))
    seal_pack(folder, class_names=tuple(CLASS_NAMES), contract=contract, settings={})


def browse(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """(the document after it was loaded, lines of the console)."""
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run", "--enable-logging=stderr"]
    command = [str(CHROMIUM), *fixed, f"--user-data-dir={profile}", *options, "--dump-dom", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All pages, made by the commands from the hostile pack and two runs that were trained on it."""
    from scanvit.cli import main

    folder = tmp_path_factory.mktemp("pages")
    hostile_pack(folder / "pack")
    small = ["trainer.max_epochs=2", "model.depth=1", "model.dim=8", "model.stem_widths=[4, 4]", "tracking.mlflow=false", "trainer.accelerator=cpu"]
    for name in ("first", "second"):
        settings = [word for setting in small for word in ("--set", setting)]
        assert main(["train", "tiny", "--pack", str(folder / "pack"), "--run-dir", str(folder / name), *settings]) == 0
        assert main(["evaluate", str(folder / name), "--draws", "200"]) == 0
    assert main(["compare", str(folder / "first"), str(folder / "second"), "-o", str(folder / "comparison.html")]) == 0
    assert main(["data", "audit", str(folder / "pack"), "--acknowledge", f"G3=<script>{OWNED}</script>"]) == 3
    return {"report": folder / "first" / "report.html", "comparison": folder / "comparison.html", "audit": folder / "pack" / "audit.html"}


@pytest.mark.parametrize("name", ["report", "comparison", "audit"])
def test_the_console_stays_empty_and_hostile_names_do_nothing(pages: dict[str, Path], name: str, tmp_path: Path) -> None:
    document, console = browse(pages[name], tmp_path / "profile")
    assert console == []
    assert "data-owned" not in document
    assert not re.search(r"<img src=\"x\"|<svg onload", document)
    assert document.count("<script") == 1  # ours
    if name != "comparison":
        assert f"&lt;script&gt;{OWNED}&lt;/script&gt;" in document


def test_the_check_above_would_see_a_script_run(pages: dict[str, Path], tmp_path: Path) -> None:
    text = pages["report"].read_text(encoding="utf-8")
    injected = tmp_path / "injected.html"
    injected.write_text(text.replace("</main>", f"</main><script>{OWNED}</script>"), encoding="utf-8")
    document, console = browse(injected, tmp_path / "profile")
    assert 'data-owned="yes"' not in document  # the policy of the page stops it all the same
    assert "Content Security Policy" in " ".join(console)
    injected.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", injected.read_text(encoding="utf-8")), encoding="utf-8")
    assert 'data-owned="yes"' in browse(injected, tmp_path / "profile")[0]


@pytest.mark.parametrize("name", ["report", "comparison", "audit"])
def test_nothing_stands_past_the_edge_at_any_width(pages: dict[str, Path], name: str, tmp_path: Path) -> None:
    # A copy without the policy, that tells the frame's owner how wide it is: the policy lets no script in but the page's own.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", pages[name].read_text(encoding="utf-8"))
    measure = "<script>parent.postMessage([innerWidth, document.documentElement.scrollWidth, document.documentElement.scrollHeight], '*')</script>"
    (tmp_path / "copy.html").write_text(text.replace("</body>", f"{measure}</body>"), encoding="utf-8")
    frames = "".join(f'<iframe src="copy.html" width="{width}" height="900" style="border:0"></iframe>' for width in WIDTHS_PX)
    listen = "<script>onmessage = e => { document.body.append(' [' + e.data.join() + '] ') }</script>"
    (tmp_path / "frames.html").write_text(f"<!doctype html><body>{listen}{frames}</body>", encoding="utf-8")
    document, _ = browse(tmp_path / "frames.html", tmp_path / "profile", "--virtual-time-budget=5000", "--allow-file-access-from-files")
    measured = {int(width): (int(content), int(height)) for width, content, height in re.findall(r"\[(\d+),(\d+),(\d+)\]", document)}
    # Classic scroll bars take 15 px of the frame's width.
    assert sorted(measured) == list(WIDTHS_PX)
    for width, (content, height) in measured.items():
        assert content <= width
        assert height > 900


def test_no_figure_is_squeezed_at_any_width(pages: dict[str, Path], tmp_path: Path) -> None:
    """A table beside figures once took their room on a telephone."""
    browser = Browser(tmp_path / "profile")
    try:
        for width in WIDTHS_PX:
            browser.resize(width)
            for name in ("report", "comparison"):
                browser.open(pages[name].as_uri())
                measured = browser.evaluate("[...document.querySelectorAll('.rocs figure, .chart, .gallery .pic')].map(f => f.getBoundingClientRect().width)")
                assert measured
                assert min(measured) > 100 if name == "comparison" else min(measured) > 80
    finally:
        browser.close()


@pytest.fixture(scope="module")
def report(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        browser.resize(1280)
        browser.open(pages["report"].as_uri())
        yield browser
    finally:
        browser.close()


def test_a_table_is_sorted_by_keyboard_and_says_so(report: Browser) -> None:
    heading = "document.querySelector('#table .sortable th:nth-child(3)')"
    column = "[...document.querySelectorAll('#table .sortable tbody tr')].map(row => parseFloat(row.cells[2].firstChild.textContent))"
    before = report.evaluate(column)
    assert report.evaluate(f"{heading}.hasAttribute('aria-sort')") is False
    report.evaluate(f"{heading}.querySelector('button').focus()")
    report.send("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    report.send("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter", windowsVirtualKeyCode=13)
    assert report.evaluate(f"{heading}.getAttribute('aria-sort')") == "descending"
    assert report.evaluate(column) == sorted(before, reverse=True)
    report.evaluate("document.activeElement.click()")  # the focus has stayed on the heading
    assert report.evaluate(f"{heading}.getAttribute('aria-sort')") == "ascending"
    assert report.evaluate(column) == sorted(before)
    names = "[...document.querySelectorAll('#table .sortable tbody th')].map(cell => cell.textContent)"
    report.evaluate("document.querySelector('#table .sortable th button').click()")
    assert report.evaluate(names) == sorted(report.evaluate(names), key=str.casefold) or set(report.evaluate(names)) == set(CLASS_NAMES)
    assert report.evaluate("document.querySelectorAll('#table [aria-sort]').length") == 1


@pytest.mark.parametrize("figure", ["#roc svg[role=img]", "#selective svg[role=img]", "table.confusion"])
def test_a_figure_answers_to_the_keyboard(report: Browser, figure: str) -> None:
    tip = "(tip => tip.hidden ? '' : tip.textContent)(document.querySelector('[role=status]'))"
    report.evaluate(f"document.querySelector({json.dumps(figure)}).focus()")
    report.press("ArrowRight", 39)
    first = report.evaluate(tip)
    assert re.search(r"\d", first)
    report.press("ArrowRight", 39)
    assert report.evaluate(tip) not in ("", first)
    report.press("ArrowLeft", 37)
    assert report.evaluate(tip) == first
    report.press("Escape", 27)
    assert report.evaluate(tip) == ""


def test_a_figure_answers_to_the_pointer(report: Browser) -> None:
    mark = "document.querySelector('#calibration circle.bin')"
    report.evaluate(f"{mark}.scrollIntoView({{block: 'center', behavior: 'instant'}})")

    def answers() -> bool:
        """Asked again where pictures that arrive late have moved the figure from under the pointer."""
        x, y = report.evaluate(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({mark}.getBoundingClientRect())")
        for nearer in (3, 0):
            report.send("Input.dispatchMouseEvent", type="mouseMoved", x=x + nearer, y=y)
        return report.evaluate("(tip => !tip.hidden && tip.textContent.includes('sure on average'))(document.querySelector('[role=status]'))")

    report.until(answers, "the tip of a reliability bin")
    report.send("Input.dispatchMouseEvent", type="mouseMoved", x=3, y=3)
    report.wait("document.querySelector('[role=status]').hidden")


def test_hostile_names_stay_text_in_tooltips(report: Browser) -> None:
    report.evaluate("document.querySelector('table.confusion').focus()")
    report.press("ArrowRight", 39)
    report.press("ArrowDown", 40)
    assert report.evaluate("document.querySelector('[role=status]').children.length") == 0
    assert report.evaluate("document.documentElement.dataset.owned ?? ''") == ""
    assert report.console == []


def test_every_control_can_be_reached_and_named(report: Browser) -> None:
    """What a screen reader says: no focusable element without a name, no heading level left out."""
    nameless = """[...document.querySelectorAll('button, a[href], [tabindex="0"]')]
        .filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || document.getElementById(e.getAttribute('aria-labelledby'))))
        .map(e => e.outerHTML.slice(0, 90))"""
    assert report.evaluate(nameless) == []
    levels = report.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert report.evaluate("[...document.querySelectorAll('table')].filter(t => !t.caption).length") == 0
