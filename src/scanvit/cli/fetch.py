"""``scanvit data sources`` and ``scanvit data fetch``: the public archives, from the catalog to a folder, and on to a pack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import printable
from .progress import size_text, stage_progress

if TYPE_CHECKING:
    from ..data.catalog import CatalogEntry
    from ..data.fetch import Fetched

_EPILOG = """\b
Examples:
  scanvit data fetch oct2017 -o archives
  scanvit data fetch oct2017 tb-chest -o archives --offline
  scanvit data fetch --sources examples/nine_classes/sources.yaml -o archives --pack packs/nine
"""
_CATALOG = click.option("--catalog", "catalog_file", type=click.Path(path_type=Path), metavar="FILE", help="Another catalog than the one shipped.")


@click.command()
@_CATALOG
def sources(catalog_file: Path | None) -> None:
    """List the archives: size, licence, address, citation."""
    from ..data.catalog import load_catalog

    for number, entry in enumerate(load_catalog(catalog_file).values()):
        click.echo(("\n" if number else "") + click.style(entry.name, bold=True) + f"  {printable(entry.title)}")
        for label, value in _facts(entry):
            click.echo(f"  {label:<9} {printable(value)}")


@click.command(epilog=_EPILOG)
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The folder for the archives.")
@click.option("--offline", is_flag=True, help="Use no network: verify what is there and say what to put where by hand.")
@_CATALOG
@click.option("--sources", "sources_file", type=click.Path(path_type=Path), metavar="FILE", help="Fetch what this sources file asks for.")
@click.option("--pack", type=click.Path(path_type=Path), metavar="PACK", help="Then prepare this pack from --sources.")
@click.option("--tries", type=click.IntRange(1, 100), default=6, show_default=True, help="Attempts in a row that bring nothing new.")
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=60.0, show_default=True, metavar="S", help="Longest silence of the server.")
def fetch(names: tuple[str, ...], out: Path, offline: bool, pack: Path | None, **options: Any) -> None:
    """Download archives, or verify those that are there.

    NAMEs are those of "scanvit data sources".

    Interrupted, the same command goes on where it stopped. The first fetch of a file records its SHA-256 in DIR/fetch.lock.json; every later
    one holds to it. Credentials come from the environment alone.
    """
    from ..data.catalog import choose, entries_of, load_catalog
    from ..data.fetch import fetch as fetch_entries
    from ..data.sources import load_sources
    from ..storage.download import DownloadPolicy

    sources_file: Path | None = options["sources_file"]
    if bool(names) == bool(sources_file):
        raise click.UsageError("Give either NAMEs of the catalog or --sources FILE.")
    if pack and not sources_file:
        raise click.UsageError("--pack needs --sources FILE: what to prepare it from.")
    catalog = load_catalog(options["catalog_file"])
    entries = entries_of(catalog, load_sources(sources_file)) if sources_file else choose(catalog, names)
    if offline:
        _look(entries, out)
    else:
        policy = DownloadPolicy(tries=options["tries"], timeout_s=options["timeout"])
        with stage_progress(in_bytes=lambda name: True) as progress:
            done = fetch_entries(entries, out, policy=policy, progress=progress)
        for one in done:
            _show(one)
    if pack and sources_file:
        _prepare(sources_file, out, pack)
    else:
        click.echo(f"\nNext: scanvit data prepare {sources_file or 'SOURCES.yaml'} --root {out} -o PACK")


def _look(entries: list[CatalogEntry], out: Path) -> None:
    from ..core.errors import PartialError
    from ..data.fetch import look

    with stage_progress(in_bytes=lambda name: True) as progress:
        found = look(entries, out, progress=progress)
    missing = [entry for entry, one in zip(entries, found, strict=True) if one is None]
    for one in found:
        if one is not None:
            _show(one)
    for entry in missing:
        click.echo(f"\n{click.style(entry.name, bold=True)} is missing. On a machine with a network, download it and save it here as\n  {out / entry.file}")
        for label, value in _facts(entry):
            click.echo(f"  {label:<9} {printable(value)}")
    if missing:
        raise PartialError(
            f"{len(missing)} of {len(entries)} archives {'is' if len(missing) == 1 else 'are'} missing in {out}.",
            hint="Put them there as said above and run the same command again: it verifies them.",
        )


def _prepare(sources_file: Path, out: Path, pack: Path) -> None:
    from ..data.prepare import prepare
    from .pack_tables import show_summary

    with stage_progress() as progress:
        summary = prepare(sources_file, pack, root=out, progress=progress)
    show_summary(summary, shown_path=pack)


def _facts(entry: CatalogEntry) -> list[tuple[str, str]]:
    from ..storage.address import public_address

    size = "unknown" if entry.shown_bytes is None else ("" if entry.size_bytes else "about ") + size_text(entry.shown_bytes)
    facts = [("size", size + (f", {entry.images:,} images" if entry.images else "")), ("licence", entry.licence)]
    facts += [("page", entry.page)] if entry.page else []
    facts += [("address", public_address(entry.url)), ("file", entry.file)]
    facts += [("sha256", entry.sha256 or "none published: the first fetch records it")]
    if entry.credentials:
        names = f"{entry.credentials.user} and {entry.credentials.key}"
        state = "set" if entry.credentials.header() else "not set; often not asked for"
        facts += [("sign in", f"with {names} of the environment ({state})")]
    facts += [("cite", citation) for citation in entry.citation]
    return facts + ([("note", entry.note)] if entry.note else [])


def _show(one: Fetched) -> None:
    what = "fetched" if one.state == "fetched" else "there already, verified"
    click.echo(f"{one.path}  {size_text(one.size_bytes)}  {what}\n  sha256 {one.sha256}")
