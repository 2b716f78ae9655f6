"""Found by Python itself on PYTHONPATH: makes processes of a run fail at exact places.

SCANVIT_TEST_FAULTS is a JSON list of {"rank": 1, "at": "step" | "validation" | "checkpoint", "step": 3, "how": "SIGKILL" | ... | "exception", "once": FILE}.
``step`` counts the optimizer steps made so far. ``once``: made at the fault, which does not happen again where it exists.
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


if "SCANVIT_TEST_FAULTS" in os.environ and "scanvit.training.worker" in sys.orig_argv:
    for described in json.loads(os.environ["SCANVIT_TEST_FAULTS"]):
        if described["rank"] == int(os.environ["RANK"]):
            arm(described)
