"""main() turns every end of a command into a sentence and an exit code. Trial commands are hung onto the real root."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from scanvit.cli import main, root
from scanvit.core.errors import PackMissingError, PreemptedError


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run ``body`` as the command `scanvit trial` and return the exit code."""
    monkeypatch.delenv("SCANVIT_DEBUG", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(body: Callable[[], object], *options: str) -> int:
        command = click.Command("trial", callback=body)
        monkeypatch.setattr(root, "get_command", lambda ctx, name: command)
        return main([*options, "trial"])

    return run


def throw(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def test_a_known_error_is_a_sentence_a_hint_and_its_code(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(throw(PackMissingError("There is no pack at p.", hint="Make one: scanvit data prepare IMAGES -o p"))) == 31
    captured = capsys.readouterr()
    assert captured.err == "error: There is no pack at p.\nhint: Make one: scanvit data prepare IMAGES -o p\n"
    assert captured.out == ""


def test_without_a_hint_there_is_no_hint_line(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(throw(PreemptedError("Stopped by SIGTERM after step 12."))) == 75
    assert capsys.readouterr().err == "error: Stopped by SIGTERM after step 12.\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_its_own_code(run: Callable[..., int], capsys: pytest.CaptureFixture[str], number: int) -> None:
    assert run(throw(OSError(number, os.strerror(number), "packs/mine"))) == 61
    assert capsys.readouterr().err.startswith("error: No space is left to write packs/mine.\nhint: ")


def test_an_interrupt_is_130(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(throw(KeyboardInterrupt())) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_unexpected_error_leaves_its_traceback_in_a_file(run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(throw(ZeroDivisionError("by nought\nand more"))) == 1
    err = capsys.readouterr().err
    (kept,) = tmp_path.glob("scanvit-traceback-*.txt")
    assert "error: Unexpected ZeroDivisionError: by nought\n" in err
    assert str(kept) in err
    assert "Traceback" not in err
    assert kept.read_text().startswith("Traceback")


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_traceback_on_request(run: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "environment":
        monkeypatch.setenv("SCANVIT_DEBUG", "1")
    assert run(throw(PackMissingError("There is no pack at p.")), *(["-v"] if how == "option" else [])) == 31
    assert "Traceback" in capsys.readouterr().err


def test_a_hostile_name_cannot_steer_the_terminal(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(throw(PackMissingError("There is no \x1b[2Jpack at ü."))) == 31
    assert capsys.readouterr().err == "error: There is no \\x1b[2Jpack at ü.\n"


def test_out_of_memory_is_a_sentence(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(throw(MemoryError())) == 1
    assert "out of memory" in capsys.readouterr().err


def test_success_and_chosen_codes(run: Callable[..., int]) -> None:
    assert run(lambda: None) == 0
    assert run(lambda: click.get_current_context().exit(4)) == 4


def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-command"]) == 2
    assert main(["--no-such-option"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_leaves_gets_no_complaint() -> None:
    chatter = "click.Command('trial', callback=lambda: [click.echo('x' * 1000) for _ in range(1000)])"
    code = f"import sys, click\nfrom scanvit.cli import main, root\nroot.get_command = lambda ctx, name: {chatter}\nsys.exit(main(['trial']))"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert (writer.stderr.read(), writer.wait()) == (b"", 141)
    writer.stderr.close()
