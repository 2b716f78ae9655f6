"""What the driver keeps of a run, and where."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scanvit.cluster import train
from scanvit.cluster.packs import PackSource
from scanvit.cluster.settings import STATE, ClusterSettings, load_settings
from scanvit.cluster.storage import open_storage
from scanvit.core.config import Experiment
from scanvit.core.errors import ConfigError, PackMissingError, RunExistsError, StorageError
from scanvit.core.loading import load_experiment
from scanvit.data.pack import Pack
from scanvit.storage.atomic import write_json
from scanvit.training.run_folder import load_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / "run"
    folder.mkdir(parents=True)
    return folder


def test_a_moved_run_is_found_where_it_is_now(run_dir: Path, tmp_path: Path) -> None:
    name, storage = train._place(run_dir, ClusterSettings())
    assert storage.path == str(run_dir / "ray" / name)
    moved = tmp_path / "there"
    run_dir.rename(moved)
    train._refuse_change(moved, ClusterSettings())
    again, storage = train._place(moved, load_settings(moved))
    assert (again, storage.path) == (name, str(moved / "ray" / name))


def test_a_run_of_an_older_version_that_was_moved_is_found_as_well(run_dir: Path, tmp_path: Path) -> None:
    write_json(run_dir / STATE, asdict(ClusterSettings(storage=str(run_dir / "ray"), name="run-1")))
    assert load_settings(run_dir).storage is None, "not moved, and not begun"
    (run_dir / "ray" / "run-1").mkdir(parents=True)
    run_dir.rename(tmp_path / "there")
    _, storage = train._place(tmp_path / "there", load_settings(tmp_path / "there"))
    assert storage.path == str(tmp_path / "there" / "ray" / "run-1")


def test_another_storage_or_number_of_workers_is_refused(run_dir: Path, tmp_path: Path) -> None:
    train._place(run_dir, ClusterSettings(num_workers=2))
    for other in (ClusterSettings(num_workers=3), ClusterSettings(num_workers=2, storage=str(tmp_path)), ClusterSettings(num_workers=2, name="other")):
        with pytest.raises(RunExistsError, match="holds a run with"):
            train._refuse_change(run_dir, other)


@pytest.mark.parametrize("written", ["{}", "file://{}"])
def test_the_run_s_own_storage_may_be_said_again_and_again(run_dir: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    settings = ClusterSettings(storage=written.format(run_dir / "ray"), name="run-1")
    monkeypatch.setattr(train, "obtain", lambda *_: Pack.open(run_dir))
    train._place(run_dir, settings)
    for _ in range(2):
        with pytest.raises(PackMissingError):  # what is looked at next
            train.train(Experiment(), PackSource(path=str(run_dir)), run_dir, settings)
        (run_dir / "ray" / "run-1").mkdir(parents=True, exist_ok=True)


def test_more_workers_than_images_are_refused_before_a_cluster_is_made(run_dir: Path, small_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "connected", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(ConfigError, match="images in val for 60 processes") as caught:
        train.train(load_experiment("tiny"), PackSource(path=str(small_pack)), run_dir, ClusterSettings(num_workers=60))
    assert "--num-workers" in str(caught.value.hint)
    assert not list(run_dir.iterdir())


def test_a_run_that_may_have_fewer_workers_has_no_more_than_images(
    run_dir: Path, small_pack: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "connected", lambda *_, **__: pytest.fail("connected"))
    source, images = PackSource(path=str(small_pack)), Pack.open(small_pack).size("val")
    with pytest.raises(ConfigError, match=f"for {images + 1} processes"):
        train.train(load_experiment("tiny"), source, run_dir, ClusterSettings(num_workers=60, min_workers=images + 1))
    settings = ClusterSettings(num_workers=60, min_workers=1)
    for overrides in ([], [], ["trainer.devices=60"]):  # the same command goes on
        with pytest.raises(pytest.fail.Exception, match="connected"):
            train.train(load_experiment("tiny", overrides), source, run_dir, settings)
        assert f"{images} images in val: at most so many workers train, not 60" in capsys.readouterr().out.replace("\n", " ")
        assert load_run(run_dir).trainer.devices == images
    assert load_settings(run_dir).num_workers == 60


def test_a_run_taken_up_from_a_folder_of_the_first_run_folder_goes_on_there(run_dir: Path, tmp_path: Path) -> None:
    name, storage = train._place(run_dir, ClusterSettings())
    storage.make()
    for file in (STATE, "experiment.yaml", "tracking.json"):
        (run_dir / file).touch()
        storage.upload(run_dir / file, file)
    train.take_up(storage.address, tmp_path / "second")
    assert train._place(tmp_path / "second", load_settings(tmp_path / "second")) == (name, storage)


def test_of_two_runs_that_publish_a_pack_the_slower_one_takes_the_copy_of_the_other(small_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, storage = Pack.open(small_pack), open_storage(str(tmp_path), {}).below("run-1")
    target, copy = tmp_path / "packs" / opened.fingerprint, shutil.copytree

    def beaten(*args: Any, **options: Any) -> None:
        copy(*args, **options)
        copy(small_pack, target)

    monkeypatch.setattr("scanvit.cluster.train.shutil.copytree", beaten)
    assert train._publish(opened, PackSource(path=str(small_pack)), storage).path == str(target)
    assert [path.name for path in target.parent.iterdir()] == [opened.fingerprint], "no half of a copy is left"
    assert json.loads((target / "dataset.json").read_bytes())


def test_a_copy_that_fails_is_told(small_pack: Path, tmp_path: Path) -> None:
    (tmp_path / "packs").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        train._publish(Pack.open(small_pack), PackSource(path=str(small_pack)), open_storage(str(tmp_path), {}).below("run-1"))
