"""The original project's ``datasets_config.yaml``, read as a sources file and as a catalog.

    datasets_info:
      OCT2017:
        url: https://HOST/PATH
        archive_type: tar.gz          # zip, tar, tar.gz
        extract_to: OCT2017           # not needed here: archives are read without unpacking
        path: OCT2017                 # ours, optional: an unpacked folder or an archive of another name than NAME.archive_type
    categories:
      lung-oct-cnv:
        oct: true
        sources:
          - dataset: OCT2017
            paths: [train/CNV, test/CNV]

What is read into it:

- Each data set is a source, an archive ``NAME.archive_type`` (what ``scanvit data fetch --catalog datasets_config.yaml`` writes).
- ``paths`` are folders at any depth of the archive (the original joined them to ``extract_to``, in one version of the file twice); their
  subfolders count too. Whatever lies elsewhere in the archive, such as masks beside images, is left out.
- ``oct: true``: files are called CLASS-PATIENT-NUMBER, so that the second part tells the patient, over the WHOLE data set. The original
  split each class by itself, so that a patient could stand in train and in test.
- The split, the image size and the rest are those of a sources file and may be given beside the two keys: ``split``, ``image_size_px``,
  ``channels``, ``max_quarantine_share``. The original's ``final_eval``, a copy of half of val and test, is not repeated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..core.errors import SourcesError, UnknownKeyError
from ..core.loading import did_you_mean

_DATASET_KEYS = ("url", "archive_type", "extract_to", "path")
_CATEGORY_KEYS = ("oct", "sources")
_SOURCE_KEYS = ("dataset", "paths")
_SETTINGS = ("split", "image_size_px", "channels", "max_quarantine_share")
_ARCHIVE_TYPES = ("zip", "tar", "tar.gz", "tgz")
_OCT_PATIENT = r"(?:^|/)[^/-]+-(?P<patient>[^/-]+)-[^/]+$"


def is_datasets_config(values: Mapping[str, Any]) -> bool:
    return "datasets_info" in values


def sources_values(values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """What a sources file would hold. Raises SourcesError or UnknownKeyError."""
    _check_keys(values, ("datasets_info", "categories", *_SETTINGS), where)
    datasets = _mapping(values.get("datasets_info"), f"{where}: datasets_info")
    classes: dict[str, dict[str, list[str]]] = {}
    is_oct: dict[str, dict[str, bool]] = {}
    for category, entry in _mapping(values.get("categories"), f"{where}: categories").items():
        place = f"{where}: categories.{category}"
        entry = _mapping(entry, place)
        _check_keys(entry, _CATEGORY_KEYS, place)
        for source in _sources(entry, place):
            dataset = source.get("dataset")
            if not isinstance(dataset, str) or dataset not in datasets:
                raise SourcesError(f"{place}: datasets_info has no {dataset!r}.", hint=f"It has: {', '.join(datasets)}.")
            classes.setdefault(dataset, {}).setdefault(category, []).extend(_patterns(source.get("paths"), place))
            is_oct.setdefault(dataset, {})[category] = _flag(entry.get("oct", False), place)
    if not classes:
        raise SourcesError(f"{where}: no category has a source.", hint="Write categories: {CLASS: {sources: [{dataset: ..., paths: [...]}]}}.")
    sources = [_source(name, datasets[name], classes[name], is_oct[name], where) for name in datasets if name in classes]
    return {"sources": sources} | {key: values[key] for key in _SETTINGS if key in values}


def catalog_values(values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """{data set: what a catalog would hold of it}, of the data sets with an address. Raises SourcesError or UnknownKeyError."""
    entries = {}
    for name, info in _mapping(values.get("datasets_info"), f"{where}: datasets_info").items():
        place = f"{where}: datasets_info.{name}"
        info = _mapping(info, place)
        _check_keys(info, _DATASET_KEYS, place)
        if "url" in info:
            entries[name] = {"url": info["url"], "file": _file(name, info, place), "title": "from a datasets_config.yaml"}
    return entries


def _source(name: str, info: Any, classes: dict[str, list[str]], is_oct: dict[str, bool], where: str) -> dict[str, Any]:
    place = f"{where}: datasets_info.{name}"
    info = _mapping(info, place)
    _check_keys(info, _DATASET_KEYS, place)
    if len(set(is_oct.values())) > 1:
        raise SourcesError(
            f"{where}: of {name}, {next(c for c, flag in is_oct.items() if flag)} is oct and {next(c for c, flag in is_oct.items() if not flag)} is not.",
            hint="One rule must tell the patients of a data set: set oct for all of its categories or for none.",
        )
    source = {"name": name, "path": info.get("path") or _file(name, info, place), "classes": classes}
    source["include"] = [pattern for patterns in classes.values() for pattern in patterns]
    return source | ({"patient": _OCT_PATIENT} if all(is_oct.values()) else {})


def _file(name: str, info: Mapping[str, Any], place: str) -> str:
    kind = info.get("archive_type", "zip")
    if kind not in _ARCHIVE_TYPES:
        raise SourcesError(f"{place}.archive_type is {kind!r}.", hint=f"Known: {', '.join(_ARCHIVE_TYPES)}.")
    return f"{name}.{kind}"


def _patterns(paths: Any, place: str) -> list[str]:
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path.strip("/. ") for path in paths):
        raise SourcesError(f"{place}: paths is {paths!r}.", hint="Give one folder of the archive or a list of them.")
    return [f"re:(?:^|/){re.escape(path.strip('/').removeprefix('./'))}/" for path in paths]


def _sources(entry: Mapping[str, Any], place: str) -> list[Mapping[str, Any]]:
    sources = entry.get("sources")
    if not isinstance(sources, list) or not sources:
        raise SourcesError(f"{place} has no list of sources.", hint="Write sources: [{dataset: ..., paths: [...]}].")
    for number, source in enumerate(sources):
        _check_keys(_mapping(source, f"{place}.sources.{number}"), _SOURCE_KEYS, f"{place}.sources.{number}")
    return sources


def _flag(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise SourcesError(f"{place}: oct is {value!r}.", hint="Write true or false.")
    return value


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value or not all(isinstance(key, str) for key in value):
        raise SourcesError(f"{place} is no mapping.", hint="Write it as 'key: value' lines.")
    return value


def _check_keys(values: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    if unknown := next((key for key in values if key not in known), None):
        raise UnknownKeyError(f"{place}: {unknown!r} is no setting.{did_you_mean(unknown, known)}", hint=f"Settings there: {', '.join(known)}")
