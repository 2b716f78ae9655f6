"""The lock of a run folder, and what is told when somebody takes the folder away."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scanvit.core.errors import RunMissingError
from scanvit.training.run_folder import locked


def _take_away(run: Path, *, then: type[BaseException], is_made_again: bool = False) -> None:
    with locked(run):
        shutil.rmtree(run)
        if is_made_again:  # by whoever else writes into it, such as a checkpoint
            (run / "checkpoints").mkdir(parents=True)
        raise then


@pytest.mark.parametrize("is_made_again", [False, True], ids=["gone", "made-again"])
def test_errors_in_a_folder_that_was_taken_away_are_one_sentence(tmp_path: Path, is_made_again: bool) -> None:
    with pytest.raises(RunMissingError, match=r"run was deleted or moved") as caught:
        _take_away(tmp_path / "run", then=FileNotFoundError, is_made_again=is_made_again)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_an_interrupt_stays_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _take_away(tmp_path / "run", then=KeyboardInterrupt)


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "run"):
        (tmp_path / "run" / "events.jsonl").open("rb")
