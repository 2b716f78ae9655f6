"""A run's state through the storage: whole or not at all, the one before where the newest is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from scanvit.cluster import bundle
from scanvit.cluster.storage import Storage, insist, open_storage
from scanvit.core.errors import ClusterStorageError, ConfigError, StorageError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in bundle.FILES:
        (folder / name).write_text(f"content of {name}\n", encoding="utf-8")
    return folder


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "storage"), {}).below("first-1a2b")


@pytest.fixture
def said() -> list[str]:
    """What the driver is told."""
    return []


def save(run_dir: Path, storage: Storage, name: str, step: int) -> None:
    held = bundle.snapshot(run_dir, run_dir.parent / f"held-{name}", step=step)
    bundle.upload(held, storage.below(name), {"step": step})


def test_a_run_comes_back_as_it_was(run_dir: Path, storage: Storage, tmp_path: Path, said: list[str]) -> None:
    save(run_dir, storage, "checkpoint_1", 10)
    there = tmp_path / "there"
    there.mkdir()
    assert bundle.restore(storage, there, say=said.append) == 10
    assert {name: (there / name).read_text() for name in bundle.FILES} == {name: (run_dir / name).read_text() for name in bundle.FILES}


def test_a_snapshot_stays_as_it_was_taken(run_dir: Path, tmp_path: Path) -> None:
    held = bundle.snapshot(run_dir, tmp_path / "held", step=1)
    with open(run_dir / "events.jsonl", "a", encoding="utf-8") as events:
        events.write("more\n")
    (run_dir / "new").write_text("newer weights")
    os.replace(run_dir / "new", run_dir / bundle.LAST)
    assert "more" not in (held / "events.jsonl").read_text()
    assert (held / bundle.LAST).read_text() == f"content of {bundle.LAST}\n"


def test_the_newest_whole_bundle_is_taken(run_dir: Path, storage: Storage, tmp_path: Path, said: list[str]) -> None:
    for name, step in (("checkpoint_1", 10), ("checkpoint_2", 20), ("checkpoint_3", 30), ("checkpoint_4", 40)):
        save(run_dir, storage, name, step)
    (Path(storage.path) / "checkpoint_4" / bundle.MANIFEST).unlink()  # its upload was cut off
    damaged = Path(storage.path) / "checkpoint_3" / bundle.LAST
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"X")
    (Path(storage.path) / "run").mkdir()
    there = tmp_path / "there"
    there.mkdir()
    (there / "experiment.yaml").write_text("stays")
    assert bundle.restore(storage, there, say=said.append) == 20
    assert ["step 30" in text for text in said] == [True]
    assert (there / "experiment.yaml").exists()


def test_a_missing_file_counts_as_damage_and_nothing_at_all_is_an_error(run_dir: Path, storage: Storage, tmp_path: Path, said: list[str]) -> None:
    there = tmp_path / "there"
    (there / "checkpoints").mkdir(parents=True)
    assert bundle.restore(storage, there, say=said.append) is None, "a run that has just begun"
    save(run_dir, storage, "checkpoint_1", 10)
    (Path(storage.path) / "checkpoint_1" / "events.jsonl").unlink()
    with pytest.raises(ClusterStorageError, match="Every checkpoint"):
        bundle.restore(storage, there, say=said.append)
    assert not (there / bundle.LAST).exists()


def test_manifests_from_outside_are_not_trusted(storage: Storage) -> None:
    for number, text in enumerate(("", "[]", "{}", '{"files": [], "step": 1}', '{"files": {}, "step": "1"}')):
        place = storage.below(f"checkpoint_{number}")
        place.make()
        place.write(bundle.MANIFEST, text.encode())
    assert bundle.newest(storage) == []


def test_files_that_a_manifest_names_on_its_own_are_not_fetched(run_dir: Path, storage: Storage, tmp_path: Path, said: list[str]) -> None:
    save(run_dir, storage, "checkpoint_1", 10)
    file = Path(storage.path) / "checkpoint_1" / bundle.MANIFEST
    manifest = json.loads(file.read_text())
    manifest["files"]["../../stolen"] = {"bytes": 1, "sha256": "0"}
    file.write_text(json.dumps(manifest))
    there = tmp_path / "there"
    there.mkdir()
    assert bundle.restore(storage, there, say=said.append) == 10
    assert not (tmp_path.parent / "stolen").exists()


def test_an_outage_is_outlasted_and_a_refusal_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("scanvit.cluster.storage.time.sleep", waits.append)
    answers = iter([OSError("away"), OSError("away"), None])

    def action() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "done"

    assert insist(action, what="Writing") == "done"
    assert waits == [1.0, 2.0]

    def refuse() -> None:
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        insist(refuse, what="Writing")


@pytest.mark.parametrize("address", ["gs://bucket", "s3://", "s3://a/../b", "s3://user:" + "secret@bucket", "s3://bucket?endpoint_override=h"])
def test_other_storage_is_refused_without_showing_a_secret(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_storage(address, {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"})
    assert "secret" not in caught.value.message


def test_s3_needs_credentials_and_keeps_them_to_itself() -> None:
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
        open_storage("s3://ray", {})
    storage = open_storage("s3://ray/deep/", {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "hidden"})
    assert (storage.address, storage.path) == ("s3://ray/deep", "ray/deep")
    assert "hidden" not in repr(storage)


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ('{"ray_version": "VERSION", "checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}]}', True),
        ('{"ray_version": "VERSION", "checkpoint_results": [{"checkpoint_dir_name": "checkpoint_2"}]}', False),
        ('{"ray_version": "1.0", "checkpoint_results": []}', False),
        ('{"ray_version": "VERS', False),
        ("[]", False),
    ],
)
def test_notes_that_ray_would_refuse_are_removed(storage: Storage, text: str, stays: bool) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    storage.below("checkpoint_1").make()
    storage.write("checkpoint_manager_snapshot.json", text.replace("VERSION", ray.__version__).encode())
    bundle.forget_broken_notes(storage)
    assert storage.exists("checkpoint_manager_snapshot.json") == stays
    bundle.forget_broken_notes(storage)


def test_checkpoints_that_ray_never_heard_of_go_at_the_end(run_dir: Path, storage: Storage) -> None:
    for name in ("checkpoint_1", "checkpoint_2", "run"):
        save(run_dir, storage, name, 10)
    storage.write("checkpoint_manager_snapshot.json", b"cut short")
    bundle.sweep(storage)
    assert storage.folders() == ["checkpoint_1", "checkpoint_2", "run"]
    storage.write("checkpoint_manager_snapshot.json", b'{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_2"}]}')
    bundle.sweep(storage)
    assert storage.folders() == ["checkpoint_2", "run"]
