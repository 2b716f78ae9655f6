from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scanvit.core.errors import ScanvitError, SourcesError, UnknownKeyError
from scanvit.data.catalog import load_catalog
from scanvit.data.original import catalog_values, sources_values
from scanvit.data.sources import Source, compile_regex, load_sources, matcher, sources_from_dict

CONFIG: dict[str, Any] = {
    "datasets_info": {
        "OCT2017": {"url": "https://example.org/files/1?x=2", "archive_type": "tar.gz", "extract_to": "OCT2017"},
        "COVID19": {"url": "https://example.org/covid", "archive_type": "zip", "extract_to": "COVID-19_Radiography_Dataset"},
        "TB": {"archive_type": "zip", "extract_to": "TB_Chest_Radiography_Database"},
        "Unused": {"url": "https://example.org/brain", "archive_type": "zip", "extract_to": "."},
    },
    "categories": {
        "lung-normal": {"sources": [{"dataset": "COVID19", "paths": ["Normal/images"]}, {"dataset": "TB", "paths": ["Normal"]}]},
        "lung-viral-pneumonia": {"sources": [{"dataset": "COVID19", "paths": ["Viral Pneumonia/images"]}]},
        "lung-tuberculosis": {"sources": [{"dataset": "TB", "paths": "TB_Chest_Radiography_Database/Tuberculosis/"}]},
        "lung-oct-cnv": {"oct": True, "sources": [{"dataset": "OCT2017", "paths": ["train/CNV", "test/CNV"]}]},
        "lung-oct-dme": {"oct": True, "sources": [{"dataset": "OCT2017", "paths": ["OCT2017/DME"]}]},
    },
}


@pytest.fixture
def loaded(tmp_path: Path) -> dict[str, Source]:
    (tmp_path / "datasets_config.yaml").write_text(yaml.safe_dump(CONFIG | {"image_size_px": 32, "split": {"seed": 7}}))
    sources = load_sources(tmp_path / "datasets_config.yaml")
    assert (sources.image_size_px, sources.split.seed) == (32, 7)
    return {source.name: source for source in sources.sources}


def classes_of(source: Source, path: str) -> list[str]:
    return [name for name, patterns in source.classes.items() if matcher(patterns)(path)]


def test_each_used_data_set_is_a_source(loaded: dict[str, Source]) -> None:
    assert {name: source.path for name, source in loaded.items()} == {"OCT2017": "OCT2017.tar.gz", "COVID19": "COVID19.zip", "TB": "TB.zip"}


@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [
        ("OCT2017", "OCT2017/train/CNV/CNV-1-1.jpeg", ["lung-oct-cnv"]),
        ("OCT2017", "test/CNV/CNV-1-1.jpeg", ["lung-oct-cnv"]),
        ("OCT2017", "OCT2017/DME/DME-1-1.jpeg", ["lung-oct-dme"]),
        ("OCT2017", "OCT2017/val/CNV/CNV-1-1.jpeg", []),
        ("OCT2017", "OCT2017/xtrain/CNV/CNV-1-1.jpeg", []),
        ("COVID19", "COVID-19_Radiography_Dataset/Viral Pneumonia/images/Viral Pneumonia-1.png", ["lung-viral-pneumonia"]),
        ("COVID19", "COVID-19_Radiography_Dataset/Viral Pneumonia/masks/Viral Pneumonia-1.png", []),
        ("COVID19", "COVID-19_Radiography_Dataset/Normal/images/Normal-1.png", ["lung-normal"]),
        ("TB", "TB_Chest_Radiography_Database/Normal/Normal-1.png", ["lung-normal"]),
        ("TB", "TB_Chest_Radiography_Database/Tuberculosis/Tuberculosis-1.png", ["lung-tuberculosis"]),
    ],
)
def test_a_path_is_a_folder_of_the_archive_at_any_depth(loaded: dict[str, Source], source: str, path: str, expected: list[str]) -> None:
    assert classes_of(loaded[source], path) == expected
    assert matcher(loaded[source].include)(path) == bool(expected), "what has no class is left out, not put into the quarantine"


def test_oct_tells_the_patient_by_the_second_part_of_the_name(loaded: dict[str, Source]) -> None:
    assert loaded["COVID19"].patient is None
    regex = compile_regex(loaded["OCT2017"].patient or "")
    for path, patient in (("OCT2017/train/CNV/CNV-1016042-12.jpeg", "1016042"), ("a-b-c/DME-77-1.jpeg", "77"), ("DRUSEN-5-1 (2).jpeg", "5")):
        match = regex.search(path)
        assert match is not None
        assert match["patient"] == patient
    assert regex.search("a-b/scan.jpeg") is None


def test_it_is_a_catalog_too(tmp_path: Path) -> None:
    (tmp_path / "datasets_config.yaml").write_text(yaml.safe_dump(CONFIG))
    catalog = load_catalog(tmp_path / "datasets_config.yaml")
    assert {name: (entry.url, entry.file) for name, entry in catalog.items()} == {
        "OCT2017": ("https://example.org/files/1?x=2", "OCT2017.tar.gz"),
        "COVID19": ("https://example.org/covid", "COVID19.zip"),
        "Unused": ("https://example.org/brain", "Unused.zip"),
    }


def test_a_folder_name_is_no_regular_expression() -> None:
    (source,) = sources_values(
        {"datasets_info": {"a": {"archive_type": "zip"}}, "categories": {"x": {"sources": [{"dataset": "a", "paths": ["./set.1 (new)+"]}]}}}, where="c"
    )["sources"]
    matches = matcher(source["classes"]["x"])
    assert matches("in/set.1 (new)+/1.png")
    assert not matches("in/setx1 new/1.png")


def test_a_path_of_ones_own_goes_before_the_archive() -> None:
    config = copy.deepcopy(CONFIG)
    config["datasets_info"]["TB"]["path"] = "unpacked/tb"
    assert sources_values(config, where="c")["sources"][2]["path"] == "unpacked/tb"


def at(*keys: str | int, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    inner: Any = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return config


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"datasets_info": CONFIG["datasets_info"]}, "categories is no mapping"),
        (at("datasets_info", value=[]), "datasets_info is no mapping"),
        (at("datasets_info", "TB", value="TB.zip"), r"datasets_info\.TB is no mapping"),
        (at("datasets_info", "TB", "archive_type", value="rar"), r"archive_type is 'rar'"),
        (at("categories", "lung-oct-cnv", "oct", value="yes"), "oct is 'yes'"),
        (at("categories", "lung-oct-cnv", "oct", value=False), "lung-oct-dme is oct and lung-oct-cnv is not"),
        (at("categories", "lung-oct-cnv", "sources", value={}), "no list of sources"),
        (at("categories", "lung-oct-cnv", "sources", 0, "dataset", value="OCT2018"), "has no 'OCT2018'"),
        (at("categories", "lung-oct-cnv", "sources", 0, "dataset", value=["OCT2017"]), r"has no \['OCT2017'\]"),
        (at("categories", "lung-oct-cnv", "sources", 0, "paths", value=[]), "paths is"),
        (at("categories", "lung-oct-cnv", "sources", 0, "paths", value=["/"]), "paths is"),
        (at("categories", "lung-oct-cnv", "sources", 0, value="OCT2017"), "no mapping"),
    ],
)
def test_mistakes_are_told_with_their_place(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SourcesError, match=sentence):
        sources_values(config, where="c.yaml")


@pytest.mark.parametrize(
    "config", [at("categories", "lung-normal", "ocd", value=True), at("datasets_info", "TB", "archive", value="zip"), at("source", value=1)]
)
def test_an_unknown_key_is_no_setting(config: dict[str, Any]) -> None:
    with pytest.raises(UnknownKeyError, match="is no setting"):
        sources_values(config, where="c.yaml")


_LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["OCT2017", "zip", "oct", "sources", "paths", "dataset", "url"])
_TREES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["OCT2017", "oct", "sources", "paths", "dataset", "url", "archive_type"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(info=_TREES, categories=_TREES)
def test_any_document_is_read_or_refused_by_an_error_of_ours(info: Any, categories: Any) -> None:
    config = {"datasets_info": info, "categories": categories}
    for convert in (lambda: sources_from_dict(sources_values(config, where="c")), lambda: catalog_values(config, where="c")):
        with suppress(ScanvitError):
            convert()
