from __future__ import annotations

import errno
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from scanvit.core.errors import EngineError, PlatformStateError, StorageError
from scanvit.platform import control
from scanvit.platform.health import check_all
from scanvit.platform.native.engine import Native
from scanvit.platform.settings import Settings, init
from scanvit.platform.state import State, read_state, write_state


class Fake:
    """An engine that writes down what it was asked."""

    name = "docker"

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def stop(self, settings: Settings, *, volumes: bool) -> None:
        self.asked.append(volumes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init(tmp_path, {})
    return tmp_path


def test_down_remembers_whose_data_it_leaves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()

    def engine_for(state: State | None, wanted: str | None) -> Any:
        assert state is not None
        assert (state.engine, wanted) == ("docker", None)
        return fake

    monkeypatch.setattr(control, "engine_for", engine_for)
    write_state(folder, State(engine="docker", profiles=("mlflow",)))
    control.down(folder, volumes=False, engine=None)
    assert read_state(folder) == State(engine="docker", profiles=())
    with pytest.raises(PlatformStateError, match="is not up"):
        control.running(folder)
    control.down(folder, volumes=True, engine=None)
    assert fake.asked == [False, True]
    assert read_state(folder) is None


def test_no_data_is_said_to_be_deleted_where_nothing_says_whose_it_is(folder: Path) -> None:
    (folder / "data").mkdir()
    with pytest.raises(PlatformStateError, match="No data was deleted") as caught:
        control.down(folder, volumes=True, engine=None)
    assert f"--dir {folder} --volumes --native" in (caught.value.hint or ""), "without it, the data of the platform in the default folder goes"
    control.down(folder, volumes=False, engine=None)


def test_where_nothing_was_ever_up_there_is_nothing_to_delete(folder: Path) -> None:
    assert control.down(folder, volumes=True, engine=None) is False
    assert control.down(folder, volumes=True, engine="native") is False
    assert read_state(folder) is None


def test_containers_are_asked_for_all_the_same_where_their_engine_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = Fake()
    monkeypatch.setattr(control, "engine_for", lambda state, wanted: fake)
    assert control.down(folder, volumes=True, engine="docker") is True, "its volumes may be there, whatever the folder tells"
    assert fake.asked == [True]


def test_the_data_of_plain_processes_is_not_said_to_be_deleted_by_another_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = Fake()
    monkeypatch.setattr(control, "engine_for", lambda state, wanted: fake)
    (folder / "data").mkdir()
    with pytest.raises(PlatformStateError, match="the data of plain processes") as caught:
        control.down(folder, volumes=True, engine="docker")
    assert "--volumes --native" in (caught.value.hint or "")
    assert fake.asked == []


@pytest.mark.parametrize("profiles", [(), ("mlflow",)], ids=["down", "up"])
def test_the_data_of_another_engine_is_not_said_to_be_deleted(folder: Path, profiles: tuple[str, ...]) -> None:
    write_state(folder, State(engine="docker", profiles=profiles))
    with pytest.raises(PlatformStateError, match="the data of docker, not of native") as caught:
        control.down(folder, volumes=True, engine="native")
    assert f"scanvit platform down --dir {folder} --volumes" in (caught.value.hint or "")
    assert read_state(folder) == State(engine="docker", profiles=profiles), "not forgotten"


def test_a_second_down_needs_no_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    write_state(folder, State(engine="docker", profiles=()))
    control.down(folder, volumes=False, engine=None)
    with pytest.raises(EngineError):
        control.down(folder, volumes=True, engine=None)


def test_after_down_another_engine_may_start(folder: Path) -> None:
    assert control.engine_for(State(engine="docker", profiles=()), "native").name == "native"
    assert control.engine_for(State(engine="native", profiles=()), None).name == "native", "it has the data"
    with pytest.raises(PlatformStateError, match="runs by docker"):
        control.engine_for(State(engine="docker", profiles=("mlflow",)), "native")


def test_only_what_the_platform_made_is_deleted_also_behind_a_link(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    disk = tmp_path_factory.mktemp("disk") / "store"
    (folder / "data" / "postgres").mkdir(parents=True)
    (folder / "data" / "xrays").mkdir()
    disk.mkdir()
    (folder / "data" / "store").symlink_to(disk)
    control.down(folder, volumes=True, engine="native")
    assert [path.name for path in (folder / "data").iterdir()] == ["xrays"]
    assert not disk.exists()
    (folder / "data" / "xrays").rmdir()
    control.down(folder, volumes=True, engine="native")
    assert not (folder / "data").exists()


def test_data_that_cannot_be_deleted_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "data" / "postgres").mkdir(parents=True)
    write_state(folder, State(engine="native", profiles=("mlflow",)))

    def refuse(path: Path, **options: Any) -> None:
        if not options.get("ignore_errors"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(StorageError, match="data/postgres cannot be written"):
        control.down(folder, volumes=True, engine=None)
    assert read_state(folder) is not None, "the same command goes on"
    assert isinstance(control.engine_for(read_state(folder), None), Native)


def test_a_secret_is_taken_out_before_a_line_is_cut(folder: Path) -> None:
    settings = init(folder, {})[0]
    secret = settings["POSTGRES_PASSWORD"]

    class Talking(Fake):
        def logs(self, settings: Settings, service: str, *, lines: int, following: bool) -> list[str]:
            return [" " * (300 - len(secret) // 2) + secret]

    driver: Any = Talking()
    assert secret[: len(secret) // 2] not in control.last_words(settings, driver, "postgres")


def test_without_the_packages_of_the_checks_nothing_is_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in ("psycopg", "boto3") else plain(name, *rest))
    fake = Fake()  # it could start nothing
    monkeypatch.setattr(control, "engine_for", lambda state, wanted: fake)
    with pytest.raises(EngineError, match="psycopg is not installed") as caught:
        control.up(folder, ("mlflow",), engine=None, on_health=lambda health, time_s: None)
    assert "scripts/install all" in (caught.value.hint or "")
    write_state(folder, State(engine="docker", profiles=("mlflow",)))
    with pytest.raises(EngineError, match="psycopg is not installed"):
        check_all(control.running(folder)[2], init(folder, {})[0])
