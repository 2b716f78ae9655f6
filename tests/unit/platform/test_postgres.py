from __future__ import annotations

import configparser
from dataclasses import replace
from pathlib import Path

import pytest

from scanvit.platform.native import mlflow_server
from scanvit.platform.postgres import database_uri
from scanvit.platform.settings import Settings, init

SIGNS = "p@ss/w%rd:100%40"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = init(tmp_path, {})[0]
    return replace(made, values={**made.values, "POSTGRES_PASSWORD": SIGNS})


def test_a_password_of_any_characters_arrives_whole(settings: Settings) -> None:
    url = pytest.importorskip("sqlalchemy").make_url(database_uri(settings))
    assert (url.password, url.host, url.database) == (SIGNS, "127.0.0.1", "mlflow")


def test_it_arrives_through_the_file_of_the_accounts_as_well(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_server, "needs", lambda module, *, extra: None)
    (settings.folder / "run").mkdir()
    mlflow_server.prepare(settings)
    read = configparser.ConfigParser()  # as MLflow's server does
    read.read(settings.folder / "run" / "mlflow-accounts.ini")
    assert read["mlflow"]["database_uri"] == database_uri(settings)
