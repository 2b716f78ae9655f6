from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from scanvit.core.errors import CheckpointError
from scanvit.model.registered import downloaded

SERVER = "http://ann:" + "se/cret@127.0.0.1:9"


@pytest.mark.parametrize("address", ["runs:/0123", "models:/scanvit@champion"])
def test_what_cannot_be_fetched_is_told_soon_and_without_the_password(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(f"Max retries exceeded with url: {SERVER}/api (Caused by NewConnectionError: Connection refused)")

    monkeypatch.setitem(sys.modules, "mlflow.artifacts", SimpleNamespace(download_artifacts=refuse))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    with pytest.raises(CheckpointError, match=f"{address} cannot be fetched from http://127.0.0.1:9: nothing listens there") as caught, downloaded(address):
        pass
    assert "cret" not in f"{caught.value.message} {caught.value.hint}"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0", "MLflow would try for minutes"
