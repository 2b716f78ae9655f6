"""Checkpoints by an address of MLflow: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/ID``."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import CheckpointError

FILE_NAME = "checkpoint.pth"


def is_address(text: str) -> bool:
    return text.startswith(("models:/", "runs:/"))


@contextmanager
def downloaded(address: str) -> Iterator[Path]:
    """The checkpoint at the address, in a folder that goes when the block ends. MLFLOW_TRACKING_URI says where to look.

    Raises CheckpointError where it cannot be had.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    wanted = f"{address}/{FILE_NAME}" if address.startswith("runs:/") and not address.endswith(".pth") else address
    with tempfile.TemporaryDirectory() as folder:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of MLflow's dependencies, about each other
                from mlflow.artifacts import download_artifacts

                found = Path(download_artifacts(wanted, dst_path=folder))
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(
                f"{address} cannot be fetched: {reason}", hint="Check the address, and MLFLOW_TRACKING_URI, which says where MLflow is."
            ) from None
        path = found if found.is_file() else next(iter(sorted(found.rglob(FILE_NAME))), None)
        if path is None:
            raise CheckpointError(f"{address} holds no {FILE_NAME}.", hint="Give a model that scanvit register put there.")
        yield path
