"""Found by Python itself on PYTHONPATH: makes one process of a run fail at an exact place.

SCANVIT_TEST_FAULT is JSON: {"rank": 1, "at": "step" | "validation" | "checkpoint", "step": 3, "how": "SIGKILL" | ... | "exception", "once": FILE}. ``step``
counts the optimizer steps made so far. ``once``: made at the fault, which does not happen again where it exists.
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
    os.kill(os.getpid(), getattr(signal, fault["how"]))


def arm(fault: dict[str, Any]) -> None:
    from scanvit.training.module import ClassificationModule

    if fault["at"] == "checkpoint" and fault["rank"] == 0:
        _fail_before_renaming(fault)
        return
    name = {"step": "training_step", "validation": "validation_step", "checkpoint": "on_save_checkpoint"}[fault["at"]]
    original = getattr(ClassificationModule, name)

    def wrapped(module: Any, *args: Any, **kwargs: Any) -> Any:
        if module.global_step == fault["step"]:
            fail(fault)
        return original(module, *args, **kwargs)

    setattr(ClassificationModule, name, wrapped)


def _fail_before_renaming(fault: dict[str, Any]) -> None:
    """The new checkpoint is written under its temporary name. ``step`` counts the checkpoints here."""
    replace, left = os.replace, [fault["step"]]

    def wrapped(source: Any, target: Any) -> None:
        if Path(target).name == "last.ckpt":
            left[0] -= 1
            if left[0] == 0:
                fail(fault)
        replace(source, target)

    os.replace = wrapped  # type: ignore[assignment]


if "SCANVIT_TEST_FAULT" in os.environ and "scanvit.training.worker" in sys.orig_argv:
    described = json.loads(os.environ["SCANVIT_TEST_FAULT"])
    if described["rank"] == int(os.environ["RANK"]):
        arm(described)
