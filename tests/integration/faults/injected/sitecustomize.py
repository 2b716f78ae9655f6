"""Found by Python itself on PYTHONPATH: makes processes of a run fail at exact places.

SCANVIT_TEST_FAULTS is a JSON list of {"rank": 1, "at": "step" | "validation" | "checkpoint", "step": 3, "how": HOW, "once": FILE}.
``rank``: null is the command that trains in its own process. ``step`` counts the optimizer steps made so far. HOW: a signal, which the process
sends to itself ("SIGKILL"), to the one that started it ("SIGKILL to parent") or to all of its group ("SIGINT to all"); or "exception". ``once``:
made at the fault, which does not happen again where it exists.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def fail(fault: dict[str, Any]) -> None:
    try:
        os.close(os.open(fault["once"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if fault["how"] == "exception":
        raise ValueError("an injected exception")
    name, _, to = fault["how"].partition(" to ")
    # Process 0 stands for a whole group.
    os.kill({"": os.getpid(), "parent": os.getppid(), "all": 0}[to], getattr(signal, name))


def arm(fault: dict[str, Any]) -> None:
    from scanvit.training.module import ClassificationModule

    name = {"step": "training_step", "validation": "validation_step", "checkpoint": "on_save_checkpoint"}[fault["at"]]
    original = getattr(ClassificationModule, name)
    renames = fault["at"] == "checkpoint" and fault["rank"] == 0

    def wrapped(module: Any, *args: Any, **kwargs: Any) -> Any:
        if module.global_step == fault["step"]:
            if renames:
                _fail_before_renaming(fault)
            else:
                fail(fault)
        return original(module, *args, **kwargs)

    setattr(ClassificationModule, name, wrapped)


def _fail_before_renaming(fault: dict[str, Any]) -> None:
    """From now on: the new last.ckpt is written under its temporary name."""
    replace = os.replace

    def wrapped(source: Any, target: Any) -> None:
        if Path(target).name == "last.ckpt":
            fail(fault)
        replace(source, target)

    os.replace = wrapped  # type: ignore[assignment]


def _rank() -> int | None:
    return int(os.environ["RANK"]) if "scanvit.training.worker" in sys.orig_argv else None


if "SCANVIT_TEST_FAULTS" in os.environ and ("scanvit.training.worker" in sys.orig_argv or "train" in sys.orig_argv):
    for described in json.loads(os.environ["SCANVIT_TEST_FAULTS"]):
        if described["rank"] == _rank():
            arm(described)
