from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scanvit.core.errors import PackCorruptError, PackError, PackMissingError, PackVersionError
from scanvit.data.pack import HASHED, Pack

MakePack = Callable[..., Path]


def change(pack: Path, **values: Any) -> None:
    dataset = json.loads((pack / "dataset.json").read_text(encoding="utf-8"))
    (pack / "dataset.json").write_text(json.dumps(dataset | values), encoding="utf-8")


def test_images_targets_and_rows_stand_in_one_order(make_pack: MakePack) -> None:
    rows = [("test", "b", "s", "1"), ("train", "b", "s", "2"), ("train", "a", "s", "3"), ("test", "a", "s", "4"), ("train", "a", "s", "5")]
    flat = {i: np.full((1, 8, 8), i, np.uint8) for i in range(len(rows))}
    pack = Pack.open(make_pack(rows, flat))
    assert pack.class_names == ("a", "b")
    assert pack.num_classes == 2
    assert pack.images("train")[:, 0, 0, 0].tolist() == [1, 2, 4]
    assert pack.targets("train").tolist() == [1, 0, 0]
    assert pack.targets("train").dtype == np.int64
    assert pack.rows("train")["patient_id"].to_pylist() == ["s:2", "s:3", "s:5"]
    assert pack.rows("test")["row"].to_pylist() == [0, 1]
    assert pack.counts["test"] == {"a": 1, "b": 1}
    assert pack.patients == {"train": 3, "val": 0, "test": 2, "final_eval": 0}
    pack.verify()


def test_an_empty_split_is_an_empty_array(make_pack: MakePack) -> None:
    pack = Pack.open(make_pack([("train", "a", "s", "1")]))
    assert pack.images("val").shape == (0, 1, 8, 8)
    assert pack.targets("val").shape == (0,)
    assert len(pack.rows("val")) == 0


def test_images_are_a_read_only_memory_map(make_pack: MakePack) -> None:
    images = Pack.open(make_pack()).images("train")
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_an_unknown_split_is_named(make_pack: MakePack) -> None:
    with pytest.raises(PackError, match="'valid'"):
        Pack.open(make_pack()).images("valid")


def test_the_fingerprint_depends_on_pixels_manifest_and_contract(make_pack: MakePack) -> None:
    rows = [("train", "a", "s", "1"), ("train", "b", "s", "2")]
    prints = {
        Pack.open(make_pack(rows, name="one")).fingerprint,
        Pack.open(make_pack(rows, {0: np.zeros((1, 8, 8), np.uint8)}, name="pixels")).fingerprint,
        Pack.open(make_pack([rows[0], ("train", "b", "s", "3")], name="patient")).fingerprint,
        Pack.open(make_pack([rows[0], ("val", "b", "s", "2")], name="split")).fingerprint,
    }
    assert len(prints) == 4
    assert Pack.open(make_pack(rows, name="again")).fingerprint in prints


def test_a_pack_can_move(make_pack: MakePack, tmp_path: Path) -> None:
    before = Pack.open(make_pack()).fingerprint
    shutil.move(tmp_path / "pack", tmp_path / "elsewhere")
    assert Pack.open(tmp_path / "elsewhere").fingerprint == before


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.touch()])
def test_no_pack_is_missing_with_the_command_that_makes_one(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "pack")
    with pytest.raises(PackMissingError) as caught:
        Pack.open(tmp_path / "pack")
    assert "data prepare" in str(caught.value.hint)


def test_a_name_that_is_too_long_is_no_pack(tmp_path: Path) -> None:
    with pytest.raises(PackMissingError):
        Pack.open(tmp_path / ("long" * 100))


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_format_version_is_told(make_pack: MakePack, version: object) -> None:
    pack = make_pack()
    change(pack, format=version)
    with pytest.raises(PackVersionError, match="reads format 1"):
        Pack.open(pack)


@pytest.mark.parametrize("name", HASHED)
def test_a_missing_or_cut_file_is_found_at_opening(make_pack: MakePack, name: str) -> None:
    for number, damage in enumerate((Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1]))):
        pack = make_pack(name=f"pack{number}")
        damage(pack / name)
        with pytest.raises(PackCorruptError, match=name):
            Pack.open(pack)


@pytest.mark.parametrize("name", HASHED)
def test_a_flipped_bit_is_found_by_verify(make_pack: MakePack, name: str) -> None:
    pack = make_pack()
    data = bytearray((pack / name).read_bytes())
    data[-20] ^= 1
    (pack / name).write_bytes(data)
    with pytest.raises(PackCorruptError, match=name):
        Pack.open(pack).verify()


@pytest.mark.parametrize(
    "values",
    [
        {"class_names": ["a"]},
        {"class_names": ["b", "a"]},
        {"fingerprint": "0" * 64},
        {"counts": {}},
        {"counts": None},
        {"files": {name: {"bytes": 1, "sha256": ""} for name in HASHED}},
        {"contract": {"image_size_px": 16}},
        {"contract": {"windowing": "lung"}},
        {"contract": None},
        {"patients": []},
        {"patients": {"train": math.inf, "val": 0, "test": 0, "final_eval": 0}},
        {"settings": 3},
    ],
    ids=str,
)
def test_a_changed_dataset_file_is_found(make_pack: MakePack, values: dict[str, Any]) -> None:
    pack = make_pack()
    change(pack, **values)
    with pytest.raises(PackCorruptError):
        Pack.open(pack)


def test_a_manifest_of_other_columns_is_found(make_pack: MakePack) -> None:
    pack = make_pack()
    table = Pack.open(pack).manifest
    opened = Pack.open(pack)
    pq.write_table(table.drop_columns(["patient_id"]), pack / "manifest.parquet")
    with pytest.raises(PackCorruptError, match="columns"):
        _ = opened.manifest


def test_a_manifest_in_another_order_is_found(make_pack: MakePack) -> None:
    pack = make_pack()
    opened = Pack.open(pack)
    table = opened.manifest
    del opened.__dict__["manifest"]
    pq.write_table(pa.concat_tables([table.slice(1), table.slice(0, 1)]), pack / "manifest.parquet", store_schema=False)
    with pytest.raises(PackCorruptError, match="disagree"):
        _ = opened.manifest


def test_findings_are_the_gates_that_did_not_pass(make_pack: MakePack) -> None:
    pack = make_pack()
    assert Pack.open(pack).findings() == []
    gates = [{"gate": "G1", "verdict": "pass"}, {"gate": "G2", "verdict": "fail"}, {"gate": "G4", "verdict": "acknowledged"}]
    (pack / "audit.json").write_text(json.dumps({"format": 1, "gates": gates}), encoding="utf-8")
    assert [gate["gate"] for gate in Pack.open(pack).findings()] == ["G2", "G4"]
    (pack / "audit.json").write_text("[1", encoding="utf-8")
    with pytest.raises(PackCorruptError) as caught:
        Pack.open(pack).findings()
    assert "data audit" in str(caught.value.hint)
