from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanvit.cli import main
from scanvit.core.errors import AuditError, ConfigError, DataError, PackCorruptError, PackError, PackMissingError, ScanvitError
from scanvit.data.extend import Slice, extend, parse_slice, slice_patients
from scanvit.data.lineage import lineage
from scanvit.data.pack import Pack
from scanvit.data.sources import SPLITS

MakePack = Callable[..., Path]
SHARES = {"train": 14, "val": 4, "test": 2, "final_eval": 20}
ROWS = [(split, label, "s", f"{label}{split}{i}") for split, count in SHARES.items() for label in "ab" for i in range(count) for _ in range(2)]


def people(pack: Path, label: str | None = None) -> dict[str, str]:
    return {row["patient_id"]: row["split"] for row in Pack.open(pack).manifest.to_pylist() if label in (None, row["class_name"])}


def pool(pack: Path, label: str) -> set[str]:
    return {patient for patient, split in people(pack, label).items() if split == "final_eval"}


def by_sha(pack: Path) -> dict[str, tuple[str, int, bytes]]:
    opened = Pack.open(pack)
    return {row["sha256"]: (row["split"], row["row"], opened.images(row["split"])[row["row"]].tobytes()) for row in opened.manifest.to_pylist()}


def take(pack: Path, part: str, *, label: str = "a", name: str = "") -> Path:
    out = pack.with_name(name or f"{pack.name}-{label}{part.replace('/', '_')}")
    extend(pack, out, class_name=label, part=parse_slice(part))
    return out


def test_a_tenth_moves_and_everything_else_stays(make_pack: MakePack) -> None:
    parent = make_pack(ROWS, settings={"split": {"train": 7, "val": 2, "test": 1, "final_eval": 0.1, "seed": 42}})
    summary = extend(parent, parent.with_name("child"), class_name="a", part=Slice(number=3, of=10))
    before, after = by_sha(parent), by_sha(summary.pack)
    assert {sha: pixels for sha, (_, _, pixels) in before.items()} == {sha: pixels for sha, (_, _, pixels) in after.items()}
    assert all(after[sha][:2] == place[:2] for sha, place in before.items() if place[0] != "final_eval"), "the same split and the same row"
    moved = pool(parent, "a") - pool(summary.pack, "a")
    assert summary.moved_patients == len(moved) == 2
    assert sum(summary.moved.values()) == 4
    assert summary.left_patients == 18
    assert pool(parent, "b") == pool(summary.pack, "b")
    Pack.open(summary.pack).verify()
    assert summary.fingerprint != Pack.open(parent).fingerprint
    assert (summary.pack / "audit.json").is_file()
    assert lineage(Pack.open(summary.pack)) == [{"step": "extend", "class": "a", "slice": 3, "of": 10, "parent": Pack.open(parent).fingerprint}]
    assert extend(parent, parent.with_name("again"), class_name="a", part=Slice(number=3, of=10)).fingerprint == summary.fingerprint


def test_a_whole_pool_is_dealt_out_seven_to_two_to_one(make_pack: MakePack) -> None:
    parent = make_pack(ROWS)
    summary = extend(parent, parent.with_name("child"), class_name="a", part=Slice(number=1, of=1))
    assert summary.moved == {"train": 28, "val": 8, "test": 4}
    assert summary.left_patients == 0


def test_all_slices_in_any_order_empty_the_pool_and_hold_the_ratio(make_pack: MakePack) -> None:
    pack = make_pack(ROWS)
    whole, first = pool(pack, "a"), {}
    for number in range(1, 11):
        first[number] = pool(pack, "a") - pool(take(pack, f"{number}/10"), "a")
    assert set.union(*first.values()) == whole
    assert sum(map(len, first.values())) == len(whole)
    for number in (7, 1, 10, 2, 9, 3, 4, 8, 6, 5):
        child = take(pack, f"{number}/10", name=f"step{number}")
        assert pool(pack, "a") - pool(child, "a") == first[number], "a slice holds the same patients whenever it is taken"
        pack = child
    assert not pool(pack, "a")
    assert Counter(people(pack, "a").values()) == {"train": 28, "val": 8, "test": 4}
    assert [step["slice"] for step in lineage(Pack.open(pack))] == [7, 1, 10, 2, 9, 3, 4, 8, 6, 5]


def test_a_slice_is_taken_once(make_pack: MakePack) -> None:
    child = take(make_pack(ROWS), "3/10")
    with pytest.raises(ConfigError, match="slice 3/10 of 'a' is in") as caught:
        take(child, "3/10", name="again")
    assert "1/10, 2/10, 4/10" in str(caught.value.hint)
    assert not child.with_name("again").exists()
    take(child, "3/10", label="b")
    take(child, "1/5")


def test_a_patient_of_two_classes_moves_whole(make_pack: MakePack) -> None:
    both = [("final_eval", label, "s", "both") for label in "ab"]
    parent = make_pack([row for row in ROWS if row[0] != "final_eval"] + both)
    child = take(parent, "1/1")
    rows = [row for row in Pack.open(child).manifest.to_pylist() if row["patient_id"] == "s:both"]
    assert len(rows) == 2
    assert {row["split"] for row in rows} <= {"train", "val", "test"}
    assert len({row["split"] for row in rows}) == 1


def test_a_patient_who_is_in_test_already_joins_the_images_there(make_pack: MakePack) -> None:
    rows = [*ROWS, ("test", "a", "s", "split"), ("final_eval", "a", "s", "split"), ("train", "a", "s", "split")]
    child = take(make_pack(rows), "1/1")
    found = Counter(row["split"] for row in Pack.open(child).manifest.to_pylist() if row["patient_id"] == "s:split")
    assert found == {"test": 2, "train": 1}


@pytest.mark.parametrize(
    ("label", "part", "error", "sentence"),
    [
        ("z", "1/10", ConfigError, "no class 'z'"),
        ("a", "0/10", ConfigError, "'0/10' is no slice"),
        ("a", "11/10", ConfigError, "'11/10' is no slice"),
        ("a", "1/0", ConfigError, "is no slice"),
        ("a", "-1/10", ConfigError, "is no slice"),
        ("a", "third", ConfigError, "is no slice"),
        ("a", "30/1000", DataError, "is empty: only 20 patients"),
    ],
)
def test_what_cannot_be_taken_is_told(make_pack: MakePack, label: str, part: str, error: type[ScanvitError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        take(make_pack(ROWS), part, label=label, name="child")


def test_an_empty_pool_is_told(make_pack: MakePack) -> None:
    parent = make_pack([row for row in ROWS if row[:2] != ("final_eval", "a")])
    with pytest.raises(DataError, match="No patient of 'a' is left"):
        take(parent, "1/10")


def test_an_output_that_stands_is_replaced_only_where_asked(make_pack: MakePack) -> None:
    parent = make_pack(ROWS)
    child = take(parent, "1/10", name="child")
    with pytest.raises(PackError, match="exists"):
        extend(parent, child, class_name="a", part=Slice(number=2, of=10))
    extend(child, child, class_name="a", part=Slice(number=2, of=10), overwrite=True)
    assert [step["slice"] for step in lineage(Pack.open(child))] == [1, 2]
    Pack.open(child).verify()
    assert sorted(path.name for path in child.parent.iterdir()) == ["child", "pack"]


def test_reasons_for_failed_gates_go_with_the_child(make_pack: MakePack) -> None:
    rows = [(split, label, "s" if label == "a" else "t", patient) for split, label, _, patient in ROWS]
    parent = make_pack(rows)
    assert main(["data", "audit", str(parent), "--acknowledge", "G4=one clinic a class"]) in (0, 3)
    gates = {gate["gate"]: gate for gate in Pack.open(take(parent, "1/10")).audit()}
    assert (gates["G4"]["verdict"], gates["G4"]["reason"]) == ("acknowledged", "one clinic a class")


def copied(rows: list[tuple[str, str, str, str]], groups: list[list[str]]) -> dict[int, np.ndarray]:
    """Pixels for make_pack: in each group, the first image of a class-a patient of each of the splits is the same picture."""
    places = {split: [i for i, row in enumerate(rows) if row[:2] == (split, "a")] for split in SPLITS}
    pictures = np.random.default_rng(5).integers(0, 256, (len(groups), 1, 8, 8), np.uint8)
    return {places[split][4 * number]: pictures[number] for number, group in enumerate(groups) for split in group}


def test_a_reason_does_not_cover_a_finding_that_is_new_in_the_child(make_pack: MakePack) -> None:
    parent = make_pack(ROWS, pixels=copied(ROWS, [["train", "val"], ["train", "val", "final_eval"]]))
    main(["data", "audit", str(parent), "--acknowledge", "G2=the same film was filed twice"])
    gates = {gate["gate"]: gate for gate in Pack.open(take(parent, "1/1")).audit()}
    assert gates["G2"]["verdict"] == "fail"
    assert gates["G2"]["reason"] is None
    assert "New, or worse, since it was acknowledged (the same film was filed twice)" in gates["G2"]["detail"]
    assert main(["data", "audit", str(parent.with_name("pack-a1_1"))]) == AuditError.exit_code


def test_a_reason_covers_what_is_left_of_its_finding(make_pack: MakePack) -> None:
    parent = make_pack(ROWS, pixels=copied(ROWS, [["train", "val"], ["train", "val"]]))
    main(["data", "audit", str(parent), "--acknowledge", "G2=the same film was filed twice"])
    child = take(parent, "1/1")
    (gate,) = [gate for gate in Pack.open(child).audit() if gate["gate"] == "G2"]
    assert (gate["verdict"], gate["reason"], len(gate["accepted"])) == ("acknowledged", "the same film was filed twice", 2)
    assert gate["detail"].startswith("2 pictures")


@pytest.mark.parametrize("steps", [3, ["x"], [{"step": "keep"}], [{"step": "extend", "parent": "f", "class": "a", "slice": "1", "of": 10}]])
def test_a_damaged_lineage_is_told(make_pack: MakePack, steps: object) -> None:
    with pytest.raises(PackCorruptError, match="lineage"):
        take(make_pack(ROWS, settings={"lineage": steps}), "1/10")


def test_the_command_tells_what_moved_and_what_comes_next(make_pack: MakePack, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parent = make_pack(ROWS)
    assert main(["data", "extend", str(parent), "--class", "a", "--slice", "3/10", "-o", str(tmp_path / "child")]) == 0
    out, _ = capfd.readouterr()
    assert "slice 3/10 of a: 2 patients moved" in out
    assert "18 left in the pool" in out
    assert f"--pack {tmp_path / 'child'}" in out
    assert main(["data", "extend", str(tmp_path / "no"), "--class", "a", "--slice", "3/10", "-o", str(tmp_path / "x")]) == PackMissingError.exit_code
    assert main(["data", "extend", str(parent), "--class", "a", "--slice", "x", "-o", str(tmp_path / "x")]) == ConfigError.exit_code


@given(st.sets(st.integers(0, 60)), st.integers(1, 12), st.randoms(), st.data())
def test_slices_are_disjoint_complete_and_even(patients: set[int], of: int, rng: object, data: st.DataObject) -> None:
    names = [f"s:{patient}" for patient in patients]
    order = data.draw(st.permutations(range(1, of + 1)))
    alone = {k: slice_patients(names, Slice(number=k, of=of), used=[], class_name="a", seed=1) for k in order}
    left, used = names, list[int]()
    for number in order:
        part = slice_patients(left, Slice(number=number, of=of), used=used, class_name="a", seed=1)
        assert part == alone[number]
        left, used = [name for name in left if name not in part], [*used, number]
    assert not left
    assert max(map(len, alone.values())) - min(map(len, alone.values())) <= 1


def test_patients_who_join_the_pool_are_in_a_slice_that_is_left() -> None:
    names = [f"s:{patient}" for patient in range(30)]
    taken = slice_patients(names, Slice(number=1, of=2), used=[], class_name="a", seed=1)
    joined = [name for name in names if name not in taken] + ["s:new1", "s:new2"]
    assert set(slice_patients(joined, Slice(number=2, of=2), used=[1], class_name="a", seed=1)) == set(joined)


def test_the_arrays_are_plain_npy_files(make_pack: MakePack) -> None:
    child = take(make_pack(ROWS), "1/10")
    for split in SPLITS:
        np.testing.assert_array_equal(np.load(child / f"{split}.npy"), Pack.open(child).images(split))
    assert json.loads((child / "dataset.json").read_bytes())["settings"]["lineage"][0]["class"] == "a"
