from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scanvit.core.errors import ScanvitError, SourcesError, UnknownKeyError
from scanvit.data.sources import Sources, load_sources, matcher, sources_from_dict, sources_root, sources_to_dict

ONE = {"sources": [{"name": "a", "path": "a.zip"}]}
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def with_source(**values: object) -> dict[str, object]:
    return {"sources": [{"name": "a", "path": "a.zip", **values}]}


def test_the_defaults_are_the_reference_split() -> None:
    sources = sources_from_dict(ONE)
    assert (sources.split.train, sources.split.val, sources.split.test, sources.split.final_eval) == (7, 2, 1, 0.1)
    assert (sources.image_size_px, sources.channels) == (64, 1)


def test_a_single_pattern_may_stand_without_a_list() -> None:
    source = sources_from_dict(with_source(classes={"x": "*/X/*", "y": ["*/Y/*", "*/Z/*"]}, include="*.png")).sources[0]
    assert source.classes == {"x": ("*/X/*",), "y": ("*/Y/*", "*/Z/*")}
    assert source.include == ("*.png",)


def test_plain_data_and_back_is_the_same() -> None:
    sources = sources_from_dict(with_source(patients={"file": "m.csv", "image": "f", "patient": "p"}, split="keep"))
    assert sources_from_dict(sources_to_dict(sources)) == sources


@pytest.mark.parametrize(
    ("values", "key", "suggestion"),
    [
        ({"sorces": []}, "sorces", "sources"),
        (with_source(clases={}), "sources.0.clases", "classes"),
        (with_source(patients={"fil": "x"}), "sources.0.patients.fil", "file"),
        (ONE | {"split": {"trian": 7}}, "split.trian", "train"),
    ],
)
def test_an_unknown_key_is_named_with_a_suggestion(values: dict[str, object], key: str, suggestion: str) -> None:
    with pytest.raises(UnknownKeyError) as caught:
        sources_from_dict(values)
    assert f"{key!r} is no setting. Did you mean {suggestion!r}?" in caught.value.message


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sources": []}, "sources is []"),
        (with_source(split="maybe"), "'maybe'"),
        (with_source(classes={"<script>": "*"}), "<script>"),
        (with_source(classes={"x": "re:("}), "no regular expression"),
        (with_source(patient="person[0-9]+"), "no group named patient"),
        (with_source(patient="(?P<patient>x)", patients={"file": "m", "image": "i", "patient": "p"}), "both"),
        ({"sources": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}, "two sources"),
        (ONE | {"split": {"final_eval": 1}}, "final_eval"),
        (ONE | {"channels": 2}, "channels is 2"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(SourcesError) as caught:
        sources_from_dict(values)
    assert sentence in caught.value.message
    assert caught.value.hint


def test_globs_match_the_whole_path_and_regular_expressions_any_part() -> None:
    assert matcher(["*/NORMAL/*"])("a/NORMAL/b/c.png")
    assert not matcher(["NORMAL/*"])("a/NORMAL/c.png")
    assert matcher(["re:person[0-9]+_virus"])("a/person12_virus_3.jpeg")
    assert not matcher(["re:^person"])("a/person12")
    assert matcher(["*.png", "*.jpg"])("x.jpg")


@settings(deadline=None)
@given(st.text(max_size=20))
def test_a_path_without_wildcards_matches_itself_alone(text: str) -> None:
    literal = "".join(f"[{c}]" if c in "*?[" else c for c in text)
    if not literal.startswith("re:"):
        assert matcher([literal])(text)
        assert not matcher([literal])(text + "x")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["sources", "name", "path", "classes", "patient", "patients", "split", "include", "seed"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["sources", "split", "image_size_px", "channels", "max_quarantine_share", "x"]), _VALUES, max_size=4))
def test_any_mapping_gives_sources_or_an_error_of_ours(values: dict[str, object]) -> None:
    with suppress(ScanvitError):
        assert isinstance(sources_from_dict(values), Sources)


def test_a_folder_is_its_own_only_source(tmp_path: Path) -> None:
    folder = tmp_path / "my scans (2)"
    folder.mkdir()
    source = load_sources(folder).sources[0]
    assert (source.name, source.path, source.split) == ("my-scans-2", "my scans (2)", "auto")
    assert sources_root(folder) == tmp_path


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (".", "images"),
        ("..", "set"),
        ("../images", "images"),
        ("../latest", "latest"),
        ("../latest.zip", "latest.zip"),
        ("../latest/..", "other"),
    ],
)
def test_a_source_is_what_was_given_whatever_leads_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, name: str) -> None:
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "other" / "v2").mkdir(parents=True)
    (tmp_path / "other" / "v1.zip").touch()
    (tmp_path / "set" / "latest").symlink_to("../other/v2")
    (tmp_path / "set" / "latest.zip").symlink_to("../other/v1.zip")
    monkeypatch.chdir(tmp_path / "set" / "images")
    source = load_sources(given).sources[0]
    assert (source.name, source.path) == (name.removesuffix(".zip"), name)
    assert (sources_root(given) / source.path).samefile(given)


def test_a_link_to_a_sources_file_stands_for_that_file(tmp_path: Path) -> None:
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "mine.yaml").write_text(yaml.safe_dump(with_source(path="images")), encoding="utf-8")
    (tmp_path / "link.yaml").symlink_to("set/mine.yaml")
    assert load_sources(tmp_path / "link.yaml").sources[0].path == "images"
    assert sources_root(tmp_path / "link.yaml") == tmp_path / "set"


def test_a_link_in_a_circle_is_told(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for path in (tmp_path / "circle", tmp_path / "circle" / "images", tmp_path / ("long" * 100)):
        with pytest.raises(SourcesError, match=path.name):
            load_sources(path)


def test_a_folder_with_a_sources_file_is_described_by_it(tmp_path: Path) -> None:
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(with_source(path="images")), encoding="utf-8")
    assert load_sources(tmp_path).sources[0].path == "images"
    assert sources_root(tmp_path) == tmp_path


def test_an_archive_is_named_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "chest.tar.gz").touch()
    assert load_sources(tmp_path / "chest.tar.gz").sources[0].name == "chest"


@pytest.mark.parametrize("name", ["nothing", "nothing.yaml"])
def test_what_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourcesError, match="nothing"):
        load_sources(tmp_path / name)


def test_shipped_sources_files_load() -> None:
    files = sorted(EXAMPLES.glob("**/sources.yaml"))
    assert files
    for file in files:
        load_sources(file)
