"""The board and what the terminal makes of it."""

from __future__ import annotations

import io

from rich.console import Console

from scanvit.cluster.board import Board
from scanvit.cluster.terminal import Terminal
from scanvit.cluster.watch import start_up

METRICS = {"train_loss": 1.0, "val_loss": 0.5, "val_accuracy": 0.75, "images_per_s": 1234.0}


def started() -> Board:
    board = Board()
    board.join(0, "10.0.0.1", 100, 2)
    board.join(1, "10.0.0.2", 200, 2)
    board.begin({"steps_per_epoch": 10, "max_epochs": 2, "step": 0})
    return board


def test_news_and_epochs_are_told_once() -> None:
    board = started()
    board.end_epoch(1, METRICS, True)
    first, second = board.read(), board.read()
    assert len(first.news) == 2
    assert len(first.epochs) == 1
    assert second.news == second.epochs == []
    assert set(second.workers) == {0, 1}


def test_a_worker_hears_that_it_is_to_stop_with_what_it_says() -> None:
    board = started()
    assert board.tell(0, {"step": 5, "state": "training"}) is False
    board.stop()
    assert board.tell(0, {"step": 6}) is True
    assert board.read().workers[0].step == 6
    assert board.tell(7, {"step": 1}) is True, "one that is not known any more is told as well"


def test_lost_workers_make_room_for_new_ones_whatever_their_order() -> None:
    board = started()
    board.lose({1: "killed"})
    assert "worker 1 failed: killed" in board.read().news
    board.join(1, "10.0.0.3", 300, 2)
    board.join(0, "10.0.0.1", 400, 2)
    workers = board.read().workers
    assert [(workers[rank].node, workers[rank].state) for rank in (0, 1)] == [("10.0.0.1", "starting"), ("10.0.0.3", "starting")]
    assert board.read().attempts == 2


def test_the_newest_stored_checkpoint_never_goes_back() -> None:
    board = started()
    board.keep(20)
    board.keep(10)
    assert board.read().saved_step == 20


def lines(board: Board) -> str:
    console = Console(file=io.StringIO(), width=160, highlight=False, markup=False)
    terminal = Terminal(console)
    terminal.show(board.read())
    terminal.close()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_each_thing_is_a_plain_line() -> None:
    board = started()
    board.end_epoch(1, METRICS, True)
    board.announce("going on [from] here")
    said = lines(board)
    assert "worker 1 started on 10.0.0.2 (process 200)" in said
    assert "epoch   1/2  train_loss 1.0000  val_loss 0.5000  val_accuracy 0.7500  1,234 images/s  best so far" in said
    assert "going on [from] here" in said
    assert "\x1b" not in said


def test_on_a_terminal_there_is_a_table_of_the_workers() -> None:
    board = started()
    board.tell(1, {"step": 7, "state": "training", "loss": 0.25})
    console = Console(file=io.StringIO(), width=100, force_terminal=True, highlight=False, markup=False)
    terminal = Terminal(console)
    terminal.show(board.read())
    terminal.close()
    assert isinstance(console.file, io.StringIO)
    assert "10.0.0.2" in console.file.getvalue()
    assert "training" in console.file.getvalue()


def test_the_start_up_is_told_in_its_parts() -> None:
    said = start_up({"start": 100.0, "cluster": 103.5, "workers started": 110.0, "first step": 112.25})
    assert said == "first step after 12.2 s (cluster 3.5, workers started 6.5, first step 2.2)"
