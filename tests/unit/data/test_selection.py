from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scanvit.core.errors import EmptyClassError, SourcesError
from scanvit.data.archives.open import open_archive
from scanvit.data.selection import Selection, select
from scanvit.data.sources import sources_from_dict


def run(folder: Path, files: dict[str, str], **rules: Any) -> Selection:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    source = sources_from_dict({"sources": [{"name": "s", "path": ".", **rules}]}).sources[0]
    return select(source, open_archive(folder))


def table(selection: Selection) -> dict[str, tuple[str, str, str | None]]:
    return {c.path: (c.class_name, c.patient_id, c.split) for c in selection.candidates}


def reasons(selection: Selection) -> dict[str, str]:
    return {entry.path: entry.reason for entry in selection.quarantined}


def test_without_rules_the_folder_is_the_class_and_each_image_a_patient(tmp_path: Path) -> None:
    found = run(tmp_path, {"deep/A/x.png": "", "B/y.JPG": "", "B/notes.txt": "", "z.png": ""})
    assert table(found) == {"B/y.JPG": ("B", "s:B/y.JPG", None), "deep/A/x.png": ("A", "s:deep/A/x.png", None)}
    assert reasons(found) == {"z.png": "no-class"}
    assert found.ignored == 1
    assert not found.knows_patients


def test_class_patterns(tmp_path: Path) -> None:
    rules = {"classes": {"bacteria": "*_bacteria_*", "virus": ["re:_virus_", "*/V/*"]}}
    found = run(tmp_path, {"P/p1_bacteria_1.png": "", "P/p1_virus_1.png": "", "P/V/a.png": "", "P/other.png": "", "P/other.csv": ""}, **rules)
    assert {path: row[0] for path, row in table(found).items()} == {"P/p1_bacteria_1.png": "bacteria", "P/p1_virus_1.png": "virus", "P/V/a.png": "virus"}
    assert reasons(found) == {"P/other.png": "no-class"}
    assert found.ignored == 1


def test_an_image_of_two_classes_is_an_error_that_names_both(tmp_path: Path) -> None:
    with pytest.raises(SourcesError, match="'one' and 'two'"):
        run(tmp_path, {"A/x.png": ""}, classes={"one": "A/*", "two": "*.png"})


def test_a_class_pattern_that_finds_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmptyClassError, match="'two'"):
        run(tmp_path, {"A/x.png": ""}, classes={"one": "A/*", "two": "B/*"})


def test_dicom_files_are_known_by_names_as_on_exported_media(tmp_path: Path) -> None:
    images = ["A/IM0001", "A/1.2.840.113", "A/7", "A/CT.1.2.840.113"]
    others = ["A/export.log.0", "A/notes.1", "A/libz.so.1.2.3", "A/.lock", "A/DICOMDIR"]
    found = run(tmp_path, dict.fromkeys([*images, *others], ""), patient="dicom")
    assert sorted(table(found)) == sorted(images)
    assert found.ignored == len(others)


def test_include_leaves_files_out(tmp_path: Path) -> None:
    found = run(tmp_path, {"A/images/x.png": "", "A/masks/x.png": ""}, include="*/images/*", classes={"a": "A/*"})
    assert list(table(found)) == ["A/images/x.png"]
    assert found.ignored == 1


def test_the_patient_is_read_from_the_path_and_is_one_over_the_whole_source(tmp_path: Path) -> None:
    found = run(tmp_path, {"A/person7_1.png": "", "B/person7_2.png": "", "B/nobody.png": ""}, patient="(?P<patient>person[0-9]+)")
    assert {path: row[1] for path, row in table(found).items()} == {"A/person7_1.png": "s:person7", "B/person7_2.png": "s:person7"}
    assert reasons(found) == {"B/nobody.png": "no-patient"}


def test_a_patient_group_that_takes_no_part_is_no_patient(tmp_path: Path) -> None:
    found = run(tmp_path, {"A/x.png": "", "A/x7.png": ""}, patient="x(?P<patient>[0-9]+)?")
    assert reasons(found) == {"A/x.png": "no-patient"}


TABLE = {"file": "metadata.csv", "image": "file", "patient": "who"}


def test_the_patient_is_looked_up_in_a_table(tmp_path: Path) -> None:
    files = {"top/metadata.csv": "\ufefffile,who\nx.png,p1\nA/y.png,p2\n,p3\nz.png,\n", "top/A/x.png": "", "top/A/y.png": "", "top/A/z.png": ""}
    found = run(tmp_path, files, patients=TABLE)
    assert {path: row[1] for path, row in table(found).items()} == {"top/A/x.png": "s:p1", "top/A/y.png": "s:p2"}
    assert reasons(found) == {"top/A/z.png": "no-patient"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("file,name\nx.png,p\n", "no column 'who'"), ("file,who\nx.png,p\nx.png,q\n", "two patients: 'p' and 'q'"), ("", "no column 'file'")],
)
def test_a_table_that_cannot_be_used_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SourcesError, match=sentence):
        run(tmp_path, {"metadata.csv": text, "A/x.png": ""}, patients=TABLE)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourcesError, match=r"no file 'metadata\.csv'"):
        run(tmp_path, {"A/x.png": ""}, patients=TABLE)


METADATA = {"metadata": {"file": "facts.csv", "image": "file", "columns": {"sex": "sex"}}}


def test_metadata_says_something_of_the_images_that_it_names(tmp_path: Path) -> None:
    found = run(tmp_path, {"facts.csv": "file,sex\n./A/x.png,F\ny.png,\n", "A/x.png": "", "A/y.png": "", "A/z.png": ""}, **METADATA)
    assert [found.attributes(candidate) for candidate in found.candidates] == [{"sex": "F"}, {}, {}]
    assert found.undescribed == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,sex\nA\\x.png,F\n", r"fits an image of s: the first is for 'A\\\\x.png', and an image's is 'A/x.png'"),
        ("file,sex\n", "it has none"),
        ("file,sex\nx.png,F\nx.png,M\n", "says two things of 'x.png'"),
        ("file,gender\nx.png,F\n", "no column 'sex'"),
    ],
)
def test_metadata_that_cannot_be_used_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(SourcesError, match=sentence):
        run(tmp_path, {"facts.csv": text, "A/x.png": ""}, **METADATA)


SPLIT_TREE = {f"{split}/{name}/{i}.png": "" for split in ("train", "val", "test", "final_eval") for name in "AB" for i in range(2)}


def test_a_tree_that_is_split_keeps_its_splits(tmp_path: Path) -> None:
    for mode in ("keep", "auto"):
        found = run(tmp_path, SPLIT_TREE, split=mode)
        assert found.keeps_splits
        assert all(row == (path.split("/")[1], f"s:{path}", path.split("/")[0]) for path, row in table(found).items())


def test_auto_splits_anew_where_a_split_is_missing(tmp_path: Path) -> None:
    found = run(tmp_path, {"train/A/x.png": "", "train/B/x.png": "", "test/A/x.png": ""}, split="auto")
    assert not found.keeps_splits
    assert {row[2] for row in table(found).values()} == {None}


def test_keep_needs_a_split_for_each_image(tmp_path: Path) -> None:
    found = run(tmp_path, {**SPLIT_TREE, "other/A/x.png": ""}, split="keep")
    assert reasons(found) == {"other/A/x.png": "no-split"}


@pytest.mark.parametrize(
    ("files", "rules", "sentence"),
    [
        ({"A/p1.png": "", "B/q1.png": ""}, {"patient": "(?P<patient>p[0-9]+)"}, r"'B' are in the quarantine. B/q1.png: the patient rule finds none"),
        ({"A/p1.png": "", "B/q1.png": ""}, {"patient": "(?P<patient>p[0-9]+)", "classes": {"one": "A/*", "two": "B/*"}}, "'two' are in the quarantine"),
        ({**SPLIT_TREE, "other/C/x.png": ""}, {"split": "keep"}, "'C' are in the quarantine"),
    ],
)
def test_a_class_of_which_nothing_is_left_is_told(tmp_path: Path, files: dict[str, str], rules: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EmptyClassError, match=sentence):
        run(tmp_path, files, **rules)


def test_a_split_folder_is_no_class(tmp_path: Path) -> None:
    assert reasons(run(tmp_path, {"train/x.png": "", "train/A/y.png": ""})) == {"train/x.png": "no-class"}


def test_a_folder_name_that_is_no_class_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourcesError, match="<img src=x>"):
        run(tmp_path, {"<img src=x>/x.png": ""})
