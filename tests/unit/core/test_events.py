"""The event log survives half-written lines and numbers that JSON does not know."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanvit.core import events
from scanvit.core.errors import NoSpaceError
from scanvit.core.events import FILE_NAME, EventLog, metric_history, parse_event, read_events


def test_what_is_written_is_read_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write("start", experiment={"name": "x"})
    log.metrics({"val_loss": 0.5}, epoch=1, step=10)
    assert [(e["kind"], e["step"]) for e in read_events(tmp_path)] == [("start", 0), ("metrics", 10)]


def test_a_line_cut_short_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    EventLog(tmp_path).metrics({"val_loss": 0.5}, epoch=1, step=10)
    with open(tmp_path / FILE_NAME, "ab") as file:
        file.write(b'{"kind": "metrics", "val')
    EventLog(tmp_path).metrics({"val_loss": 0.4}, epoch=2, step=20)
    assert [e["step"] for e in read_events(tmp_path)] == [10, 20]


class Full(io.FileIO):
    """On a disk with room for ten bytes more."""

    room = 10

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken, self.room = super().write(data[: self.room]), 0
        return taken


def test_a_full_disk_takes_one_event_and_not_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path)
    log.metrics({"val_loss": 0.5}, epoch=1, step=10)
    with monkeypatch.context() as full:
        full.setattr(events, "open", lambda path, *_, **__: Full(path, "ab"), raising=False)
        with pytest.raises(NoSpaceError, match=r"events.jsonl"):
            log.metrics({"val_loss": 0.4}, epoch=2, step=20)
    log.metrics({"val_loss": 0.3}, epoch=3, step=30)
    assert [event["step"] for event in read_events(tmp_path)] == [10, 30]
    assert log.path.read_bytes().count(b"\n") == 2


def test_half_a_line_in_the_middle_costs_no_other(tmp_path: Path) -> None:
    """As older versions left it on a full disk: the event behind it is in the same line."""
    log = EventLog(tmp_path)
    for step in (10, 20, 30):
        log.metrics({"val_loss": 0.5, "name": "\u00e9"}, epoch=1, step=step)
    first, second, third = log.path.read_bytes().splitlines(keepends=True)
    for cut in range(1, len(second)):
        log.path.write_bytes(first + second[:cut] + second + third)
        assert [event["step"] for event in read_events(tmp_path)] == [10, 30]


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    EventLog(tmp_path).metrics({"a": float("nan"), "b": float("inf"), "c": 1.0}, epoch=1, step=1)
    line = (tmp_path / FILE_NAME).read_text()
    assert json.loads(line)["values"] == {"a": None, "b": None, "c": 1.0}
    assert list(metric_history(tmp_path)) == ["c"]


def test_steps_written_twice_after_a_resume_count_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for step, value in ((1, 0.9), (2, 0.8), (2, 0.7), (3, 0.6)):
        log.metrics({"loss": value}, epoch=0, step=step)
    assert metric_history(tmp_path) == {"loss": [(0, 1, 0.9), (0, 2, 0.7), (0, 3, 0.6)]}


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_none(line: bytes) -> None:
    event = parse_event(line)
    assert event is None or isinstance(event["values"], dict)
