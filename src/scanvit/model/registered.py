"""Checkpoints by an address of MLflow: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/ID``."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import CheckpointError
from ..storage.mlflow_client import explain, prepare_mlflow, without_credentials

FILE_NAME = "checkpoint.pth"


def is_address(text: str) -> bool:
    return text.startswith(("models:/", "runs:/"))


@contextmanager
def downloaded(address: str) -> Iterator[Path]:
    """The checkpoint at the address, in a folder that goes when the block ends. MLFLOW_TRACKING_URI says where to look.

    Raises CheckpointError where it cannot be had.
    """
    prepare_mlflow()
    wanted = f"{address}/{FILE_NAME}" if address.startswith("runs:/") and not address.endswith(".pth") else address
    with tempfile.TemporaryDirectory() as folder:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of MLflow's dependencies, about each other
                from mlflow.artifacts import download_artifacts

                found = Path(download_artifacts(wanted, dst_path=folder))
        except Exception as error:
            server = without_credentials(os.environ.get("MLFLOW_TRACKING_URI", "")) or "MLflow"
            raise CheckpointError(
                f"{address} cannot be fetched from {server}: {explain(error).rstrip('.')}.",
                hint="Check the address, and MLFLOW_TRACKING_URI, which says where MLflow is.",
            ) from None
        path = found if found.is_file() else next(iter(sorted(found.rglob(FILE_NAME))), None)
        if path is None:
            raise CheckpointError(f"{address} holds no {FILE_NAME}.", hint="Give a model that scanvit register put there.")
        yield path
