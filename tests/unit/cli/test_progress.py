from __future__ import annotations

import os
import signal

import pytest

from scanvit.cli.progress import size_text, stage_progress, stoppable
from scanvit.core.errors import PreemptedError


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_000_000, "3.0 MB"), (820_000_000, "820 MB"), (5.8e9, "5.8 GB"), (7e15, "7000 TB")]
)
def test_sizes(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text


def test_plain_lines_at_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with stage_progress(in_bytes=lambda stage: stage != "Decoding") as progress:
        for done in range(101):
            progress("Decoding", done, 100)
        progress("OCT2017.tar.gz", 2_000_000, 4_000_000)
        progress("unknown.zip", 10**9 - 1, None)
        progress("unknown.zip", 10**9, None)
        progress("Writing", 0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["decoding: 10 of 100", "decoding: 20 of 100"]
    assert lines[9:] == ["decoding: 100 of 100", "OCT2017.tar.gz: 2.0 MB of 4.0 MB", "unknown.zip: 1.0 GB", "writing: 0 B"]


def test_a_signal_is_not_lost_in_a_library_that_takes_every_exception_for_an_outage() -> None:
    swallowed = False

    def wait() -> None:
        nonlocal swallowed
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            swallowed = True

    with pytest.raises(PreemptedError, match=r"Stopped by SIGTERM\."), stoppable():
        wait()
    assert not swallowed
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
