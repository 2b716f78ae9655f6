"""Packs that grow: whoever was placed once stays where they are."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scanvit.cli import main
from scanvit.core.errors import PackMissingError, SourcesError
from scanvit.data.lineage import lineage
from scanvit.data.pack import Pack
from scanvit.data.prepare import PrepareSummary, prepare
from scanvit.data.sources import SPLITS, sources_from_dict

pytestmark = pytest.mark.integration
SIDE_PX = 8


def png(seed: int, *, level: int = 6) -> bytes:
    """``level``: of the compression; the same seed has the same pixels at each."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE_PX, SIDE_PX), np.uint8)).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def grow(folder: Path, files: dict[str, bytes], name: str, *, keep: str | None = None, **values: Any) -> PrepareSummary:
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    source = {"name": "s", "path": f"{name}.zip", "patient": "/(?P<patient>[a-z]+[0-9]+)_"}
    sources = sources_from_dict({"image_size_px": SIDE_PX, "sources": [source], **values})
    return prepare(sources, folder / name, root=folder, workers=1, keep=folder / keep if keep else None)


def patients(pack: Path) -> dict[str, str]:
    return {row["patient_id"]: row["split"] for row in Pack.open(pack).manifest.to_pylist()}


def images(pack: Path) -> dict[str, str]:
    return {row["path"]: row["split"] for row in Pack.open(pack).manifest.to_pylist()}


def scans(numbers: range, per_patient: int = 1) -> dict[str, bytes]:
    return {f"{'ab'[number % 2]}/p{number}_{i}.png": png(1000 * number + i) for number in numbers for i in range(per_patient)}


def someone_in(pack: Path, split: str) -> str:
    return next(path for path, found in sorted(images(pack).items()) if found == split)


def test_everybody_stays_and_the_totals_meet_the_ratios(tmp_path: Path) -> None:
    first = grow(tmp_path, scans(range(120)), "first")
    second = grow(tmp_path, scans(range(1000)), "second", keep="first")
    before, after = patients(first.pack), patients(second.pack)
    assert after.items() >= before.items()
    assert lineage(Pack.open(second.pack)) == [{"step": "keep", "parent": first.fingerprint}]
    for split, share in {"train": 0.63, "val": 0.18, "test": 0.09, "final_eval": 0.1}.items():
        for label in "ab":
            counts = second.counts[split]
            assert abs(counts[label] / 500 - share) < 0.01, (split, label, counts)
    free = grow(tmp_path, scans(range(1000)), "free")
    assert patients(free.pack) != after, "without --keep somebody would have moved"


def test_totals_are_met_where_the_earlier_pack_had_other_ratios(tmp_path: Path) -> None:
    grow(tmp_path, scans(range(100)), "first", split={"train": 1, "val": 1, "test": 1, "final_eval": 0})
    second = grow(tmp_path, scans(range(1000)), "second", keep="first")
    assert [sum(second.counts[split].values()) for split in SPLITS] == pytest.approx([630, 180, 90, 100], abs=10)


def test_nothing_added_gives_the_same_pack(tmp_path: Path) -> None:
    first = grow(tmp_path, scans(range(40)), "first")
    assert grow(tmp_path, scans(range(40)), "second", keep="first").fingerprint == first.fingerprint


@pytest.mark.parametrize("copy", ["the same bytes", "the same pixels"])
def test_a_renamed_patient_goes_where_one_of_the_images_stood(tmp_path: Path, copy: str) -> None:
    files = scans(range(60))
    first = grow(tmp_path, files, "first")
    for split in SPLITS:
        old = someone_in(first.pack, split)
        number = int(old.split("/p")[1].split("_")[0])
        again = files[old] if copy == "the same bytes" else png(1000 * number, level=1)
        assert (again == files[old]) == (copy == "the same bytes")
        name = old.replace("/p", "/renamed")
        more = {path: data for path, data in files.items() if path != old} | {name: again, name.replace("_0", "_1"): png(7_000_000 + number)}
        second = grow(tmp_path, more, f"second-{split}", keep="first")
        found = images(second.pack)
        assert {found[name], found[name.replace("_0", "_1")]} == {split}


def test_a_copy_under_a_new_name_pulls_its_patient_though_the_copy_itself_goes(tmp_path: Path) -> None:
    files = scans(range(60))
    first = grow(tmp_path, files, "first")
    old = someone_in(first.pack, "test")
    label = old[0]
    # "aa" comes before "p": without looking at the earlier pack, the copy would be kept and the original dropped.
    more = files | {f"{label}/aa1_0.png": files[old], f"{label}/aa1_1.png": png(7_000_000)}
    second = grow(tmp_path, more, "second", keep="first")
    assert images(second.pack)[old] == "test"
    assert images(second.pack)[f"{label}/aa1_1.png"] == "test"
    assert [entry.path for entry in second.quarantined["duplicate"]] == [f"{label}/aa1_0.png"]


def test_two_known_patients_who_become_one_are_named(tmp_path: Path) -> None:
    files = scans(range(60))
    first = grow(tmp_path, files, "first")
    one, two = someone_in(first.pack, "train"), someone_in(first.pack, "test")
    merged = {path: data for path, data in files.items() if path not in (one, two)} | {"a/merged1_0.png": files[one], "a/merged1_1.png": files[two]}
    with pytest.raises(SourcesError, match="'s:merged1' has images that stood in two splits") as caught:
        grow(tmp_path, merged, "second", keep="first")
    assert "merged1_0.png (train)" in caught.value.message
    assert "merged1_1.png (test)" in caught.value.message
    assert not (tmp_path / "second").exists()


def test_an_image_that_goes_over_to_a_patient_of_another_split_is_named(tmp_path: Path) -> None:
    files = scans(range(60))
    first = grow(tmp_path, files, "first")
    owner, image = someone_in(first.pack, "train"), someone_in(first.pack, "test")
    taken = owner.replace("_0", "_9")
    moved = {path: data for path, data in files.items() if path != image} | {taken: files[image]}
    with pytest.raises(SourcesError, match=f"{taken} stood in test of .*belongs to train"):
        grow(tmp_path, moved, "second", keep="first")


def test_a_tree_that_is_split_cannot_contradict_the_earlier_pack(tmp_path: Path) -> None:
    files = scans(range(60))
    first = grow(tmp_path, files, "first")
    known = images(first.pack)
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for path, data in files.items():
            archive.writestr(f"{'val' if path == someone_in(first.pack, 'test') else known[path]}/{path}", data)
    values = {"image_size_px": SIDE_PX, "sources": [{"name": "s", "path": "tree.zip", "patient": "/(?P<patient>p[0-9]+)_", "split": "keep"}]}
    with pytest.raises(SourcesError, match="stood in test of"):
        prepare(sources_from_dict(values), tmp_path / "second", root=tmp_path, workers=1, keep=first.pack)


def test_another_image_size_knows_files_again_and_says_so(tmp_path: Path) -> None:
    files = scans(range(60))
    first = grow(tmp_path, files, "first")
    old = someone_in(first.pack, "test")
    more = {path: data for path, data in files.items() if path != old} | {f"{old[0]}/renamed1_0.png": files[old]}
    second = grow(tmp_path, more, "second", keep="first", image_size_px=16)
    assert images(second.pack)[f"{old[0]}/renamed1_0.png"] == "test"
    assert any("by their bytes alone" in warning for warning in second.warnings)


def test_patients_who_are_gone_are_told(tmp_path: Path) -> None:
    grow(tmp_path, scans(range(60)), "first")
    second = grow(tmp_path, scans(range(5, 60)), "second", keep="first")
    assert any(warning.startswith("5 patients of ") for warning in second.warnings)


def test_the_command_keeps_and_tells_of_a_missing_pack(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = grow(tmp_path, scans(range(60)), "first")
    grow(tmp_path, scans(range(80)), "more")
    command = ["data", "prepare", str(tmp_path / "more.zip"), "-o", str(tmp_path / "second"), "--workers", "1", "--image-size", str(SIDE_PX)]
    assert main([*command, "--keep", str(first.pack)]) == 0
    assert images(tmp_path / "second").items() >= images(first.pack).items()
    assert main([*command, "--overwrite", "--keep", str(tmp_path / "nothing")]) == PackMissingError.exit_code
    capfd.readouterr()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_repeated_additions_never_move_anybody(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, files, seed, people = Path(name), {"a/p0_0.png": png(0), "b/p1_0.png": png(1)}, 2, 2
        before = grow(folder, files, "0").pack
        for version in range(1, data.draw(st.integers(2, 4)) + 1):
            expected: dict[str, str] = {}
            for kind in data.draw(st.lists(st.sampled_from(("new", "renamed", "more")), min_size=1, max_size=12)):
                label, old = data.draw(st.sampled_from("ab")), data.draw(st.sampled_from(sorted(images(before))))
                if kind == "more":  # another image of a known patient
                    files[f"{old.split('_')[0]}_{seed}.png"] = png(seed)
                elif kind == "renamed" and old in files:
                    split = images(before)[old]
                    files[f"{old[0]}/r{people}_{seed}.png"], files[f"{old[0]}/r{people}_{seed + 1}.png"] = files.pop(old), png(seed + 1)
                    expected[f"{old[0]}/r{people}_{seed + 1}.png"] = split
                else:
                    files[f"{label}/p{people}_{seed}.png"] = png(seed)
                seed, people = seed + 2, people + 1
            after = grow(folder, files, str(version), keep=str(version - 1)).pack
            old_rows, new_rows = Pack.open(before).manifest.to_pylist(), Pack.open(after).manifest.to_pylist()
            stood = {row["sha256"]: row["split"] for row in old_rows}
            assert all(stood.get(row["sha256"], row["split"]) == row["split"] for row in new_rows)
            people_before, people_after = patients(before), patients(after)
            assert all(people_before[who] == split for who, split in people_after.items() if who in people_before)
            assert all(images(after)[path] == split for path, split in expected.items())
            assert len({(row["patient_id"], row["split"]) for row in new_rows}) == len(people_after)
            before = after
