"""The catalog: where archives of images come from, under which licence, and what is known of their bytes.

    sources:
      oct2017:
        title: Retinal B-scans in four classes
        url: https://HOST/PATH                # https, or http on this machine
        file: OCT2017.tar.gz                  # what it is called on disk
        page: https://HOST/PAGE               # where a person finds it
        licence: CC BY 4.0
        citation: [...]
        images: 84484
        about_bytes: 5800000000               # shown, and the base of the cap
        size_bytes: 5793183169                # exact: anything else is refused
        sha256: ...                           # without it, the first fetch records one in fetch.lock.json
        credentials: {user: KAGGLE_USERNAME, key: KAGGLE_KEY}    # names of environment variables, never values

The catalog of the package (catalog.yaml) is used unless another is given. A datasets_config.yaml of the original project serves too.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..core.errors import FetchError, SourcesError
from ..core.loading import did_you_mean, parse_yaml, read_text
from ..storage.address import check_address
from .original import catalog_values, is_datasets_config
from .sources import Name, Sources

_FORBID = ConfigDict(extra="forbid", validate_default=True)
_KAGGLE_HOSTS = ("www.kaggle.com", "kaggle.com")
_CAP_FACTOR = 4

EnvironmentName = Annotated[str, Field(pattern=r"^(KAGGLE|SCANVIT_FETCH)_[A-Z0-9_]{1,60}$")]
"""No other variable can be named, so that a catalog from elsewhere cannot ask for the keys of a cloud account."""
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Bytes = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class Credentials:
    """Names of environment variables with a user and a key, sent as basic authentication to the entry's own host alone."""

    user: EnvironmentName
    key: EnvironmentName

    def header(self) -> str | None:
        """None where one of them is not set."""
        user, key = os.environ.get(self.user, ""), os.environ.get(self.key, "")
        if not user or not key:
            return None
        return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode("ascii")


@dataclass(frozen=True, kw_only=True, config=_FORBID)
class CatalogEntry:
    name: Name
    url: str
    file: FileName
    title: str = ""
    page: str = ""
    licence: str = "not stated"
    citation: tuple[str, ...] = ()
    images: Bytes | None = None
    about_bytes: Bytes | None = None
    size_bytes: Bytes | None = None
    max_bytes: Bytes | None = None
    """More is never downloaded; left out: four times about_bytes, or 100 GiB."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    credentials: Credentials | None = None
    note: str = ""

    @property
    def shown_bytes(self) -> int | None:
        return self.size_bytes or self.about_bytes

    @property
    def cap_bytes(self) -> int:
        if self.max_bytes or self.size_bytes:
            return self.max_bytes or self.size_bytes or 0
        return _CAP_FACTOR * self.about_bytes if self.about_bytes else 100 << 30


_ADAPTER = TypeAdapter(CatalogEntry)


def load_catalog(path: Path | str | None = None) -> dict[str, CatalogEntry]:
    """{name: entry} of a catalog file, or of the catalog shipped with the package. Raises SourcesError."""
    if path is None:
        where, text = "the catalog", (resources.files("scanvit.data") / "catalog.yaml").read_text(encoding="utf-8")
    else:
        where, text = str(path), read_text(Path(path), error=SourcesError)
    values = parse_yaml(text, where=where, error=SourcesError)
    entries = catalog_values(values, where=where) if is_datasets_config(values) else values.get("sources")
    if not isinstance(entries, dict) or not entries:
        raise SourcesError(f"{where} names no sources.", hint="Write them as sources: {NAME: {url: ..., file: ...}}.")
    catalog = {str(name): _entry(str(name), entry, where) for name, entry in entries.items()}
    files = [entry.file.lower() for entry in catalog.values()]
    if twice := next((entry.file for entry in catalog.values() if files.count(entry.file.lower()) > 1), None):
        raise SourcesError(f"{where}: two sources have the file {twice!r}.", hint="Give each its own.")
    return catalog


def choose(catalog: Mapping[str, CatalogEntry], names: Iterable[str]) -> list[CatalogEntry]:
    """The entries of these names, each once, in their order. Raises SourcesError for an unknown one."""
    chosen = []
    for name in dict.fromkeys(names):
        if name not in catalog:
            message = f"The catalog has no source {name!r}.{did_you_mean(name, catalog)}"
            raise SourcesError(message, hint=f"It has: {', '.join(catalog)}. Another one: --catalog FILE.")
        chosen.append(catalog[name])
    return chosen


def entries_of(catalog: Mapping[str, CatalogEntry], sources: Sources) -> list[CatalogEntry]:
    """The entries whose files a sources file asks for. Raises SourcesError where there is none."""
    wanted = {source.path for source in sources.sources}
    found = [entry for entry in catalog.values() if entry.file in wanted]
    if not found:
        raise SourcesError("The sources file names no archive of the catalog.", hint=f"The catalog's files: {', '.join(e.file for e in catalog.values())}.")
    return found


def _entry(name: str, values: Any, where: str) -> CatalogEntry:
    if not isinstance(values, dict) or "name" in values:
        raise SourcesError(f"{where}: {name!r} holds no mapping of its own settings.", hint="Write at least url and file.")
    try:
        entry = _ADAPTER.validate_python({"name": name, **values})
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # an input may be a credential in the wrong place
        key = ".".join(str(part) for part in first["loc"])
        raise SourcesError(f"{where}: {name}: {key}: {first['msg'][0].lower()}{first['msg'][1:]}.", hint="Mend the catalog.") from None
    try:
        parts = check_address(entry.url)
    except FetchError as error:
        raise SourcesError(f"{where}: {name}: {error.message}", hint=error.hint) from None
    if entry.file.endswith((".part", ".part.json")) or entry.file == "fetch.lock.json":
        raise SourcesError(f"{where}: {name}: the file name {entry.file!r} is taken for other things.", hint="Choose another.")
    named = (entry.credentials.user, entry.credentials.key) if entry.credentials else ()
    if any(variable.startswith("KAGGLE_") for variable in named) and parts.hostname not in _KAGGLE_HOSTS:
        raise SourcesError(f"{where}: {name}: the Kaggle key may go to kaggle.com alone, not to {parts.hostname}.", hint="Name SCANVIT_FETCH_... variables.")
    return entry
