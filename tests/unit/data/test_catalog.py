from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from scanvit.core.errors import ScanvitError, SourcesError
from scanvit.data.catalog import choose, entries_of, load_catalog
from scanvit.data.sources import load_sources

NINE = Path(__file__).resolve().parents[3] / "examples" / "nine_classes" / "sources.yaml"


def write(folder: Path, **entry: Any) -> Path:
    path = folder / "catalog.yaml"
    path.write_text(yaml.safe_dump({"sources": {"mine": {"url": "https://example.org/a.zip", "file": "a.zip"} | entry}}))
    return path


def test_the_shipped_catalog_has_the_three_sets_with_what_a_user_must_know() -> None:
    catalog = load_catalog()
    assert list(catalog) == ["oct2017", "covid19-radiography", "tb-chest"]
    for entry in catalog.values():
        assert entry.url.startswith("https://")
        assert entry.page.startswith("https://")
        assert entry.citation
        assert all("doi:10." in citation for citation in entry.citation)
        assert entry.licence != "not stated"
        assert entry.shown_bytes
        assert entry.images
        assert entry.cap_bytes > entry.shown_bytes


def test_the_nine_classes_ask_for_the_three_sets() -> None:
    sources = load_sources(NINE)
    assert [entry.name for entry in entries_of(load_catalog(), sources)] == ["oct2017", "covid19-radiography", "tb-chest"]
    classes = {name for source in sources.sources for name in source.classes}
    assert classes == {f"lung-{name}" for name in ("normal", "covid", "opacity", "viral-pneumonia", "tuberculosis")} | {
        f"lung-oct-{name}" for name in ("cnv", "dme", "drusen", "normal")
    }


def test_sources_of_other_files_find_no_entry(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    with pytest.raises(SourcesError, match="names no archive of the catalog"):
        entries_of(load_catalog(), load_sources(tmp_path / "scans"))


def test_names_are_chosen_once_each_in_their_order() -> None:
    assert [entry.name for entry in choose(load_catalog(), ["tb-chest", "oct2017", "tb-chest"])] == ["tb-chest", "oct2017"]
    with pytest.raises(SourcesError, match="Did you mean 'oct2017'"):
        choose(load_catalog(), ["oct2018"])


@pytest.mark.parametrize(
    "entry",
    [
        {"url": "http://example.org/a.zip"},
        {"url": "file:///etc/passwd"},
        {"url": "https://me:" + "word-word@example.org/a.zip"},
        {"file": "../a.zip"},
        {"file": ".hidden"},
        {"file": "a/b.zip"},
        {"file": "a.zip.part"},
        {"file": "fetch.lock.json"},
        {"sha256": "abc"},
        {"sha256": "A" * 64},
        {"size_bytes": 0},
        {"size_bytes": "many"},
        {"name": "other"},
        {"credentials": {"user": "AWS_ACCESS_KEY_ID", "key": "AWS_SECRET_ACCESS_KEY"}},
        {"credentials": {"user": "SCANVIT_FETCH_USER", "key": "word-word"}},
        {"credentials": {"user": "KAGGLE_USERNAME", "key": "KAGGLE_KEY"}},
        {"unheard_of": 1},
    ],
    ids=str,
)
def test_a_wrong_entry_is_refused_and_no_secret_is_repeated(tmp_path: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(SourcesError) as caught:
        load_catalog(write(tmp_path, **entry))
    assert "mine" in str(caught.value)
    assert "word-word" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("text", ["", "[]", "sources: []", "sources: {}", "sources: {a: 1}", "sources: {a: {file: a.zip}}", "{", "\x00"])
def test_a_wrong_catalog_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ScanvitError):
        load_catalog(tmp_path / "c.yaml")


def test_two_entries_cannot_share_a_file(tmp_path: Path) -> None:
    entry = {"url": "https://example.org/a.zip", "file": "a.zip"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"sources": {"a": entry, "b": entry | {"file": "A.zip"}}}))
    with pytest.raises(SourcesError, match="two sources have the file"):
        load_catalog(tmp_path / "c.yaml")


def test_credentials_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = load_catalog()["tb-chest"].credentials
    assert credentials is not None
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    monkeypatch.setenv("KAGGLE_KEY", "k" * 8)
    assert credentials.header() is None
    monkeypatch.setenv("KAGGLE_USERNAME", "reader")
    assert credentials.header() == "Basic " + base64.b64encode(b"reader:" + b"k" * 8).decode()
