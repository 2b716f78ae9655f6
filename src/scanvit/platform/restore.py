"""Putting a backup into a running platform. The database that was there is replaced in one step, after the new one is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core.errors import ChecksumError, PlatformStateError
from ..storage.checksum import sha256_file
from ..storage.transfer import push
from . import postgres
from .backup import ARTIFACTS, COUNTED, DUMP, FORMAT, MANIFEST, SUMS, Progress, Summary, count_rows, tracking_store
from .control import OnHealth, require_healthy, running, wait_healthy
from .engine import Engine
from .processes import run_checked
from .settings import Settings
from .state import exclusive

_NEW, _OLD = "scanvit_restore", "scanvit_replaced"


def restore(folder: Path, source: Path, *, force: bool, progress: Progress, on_health: OnHealth) -> Summary:
    """Put the backup in ``source`` in the place of what the platform tracks, and wait until MLflow serves it.

    MLflow is stopped meanwhile. An older schema is upgraded when it starts again. Objects of the bucket that the backup does not have stay.
    Raises ChecksumError for a damaged backup, and PlatformStateError for one that cannot be used, or where runs or artifacts are there
    already (unless ``force``); nothing has changed then.
    """
    manifest = read_manifest(source)
    verify(source, progress)
    with exclusive(folder):
        settings, engine, services = running(folder)
        require_healthy(settings, services, ("postgres", "store"))
        _check_schema(manifest, engine)
        if not force:
            _refuse_to_overwrite(settings)
        _drop(settings, _NEW)
        try:
            _load(settings, engine, source / DUMP, manifest)
            if (source / ARTIFACTS).is_dir() and any((source / ARTIFACTS).iterdir()):
                push(tracking_store(settings), source / ARTIFACTS, create=True, apart=True, progress=progress)
            engine.pause(settings, "mlflow")
            try:
                _swap(settings)
            finally:
                engine.resume(settings, "mlflow")
        finally:
            _drop(settings, _NEW)
        wait_healthy(settings, engine, services, on_health)
    return Summary(counts=manifest["rows"], objects=manifest["objects"], size_bytes=manifest["size_bytes"])


def read_manifest(source: Path) -> dict[str, Any]:
    """Raises PlatformStateError for what is no backup, or of a format that this version does not know."""
    try:
        manifest: dict[str, Any] = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT
        _ = manifest["rows"], manifest["versions"]["schema"], manifest["objects"], manifest["size_bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        raise PlatformStateError(
            f"{source} is no backup: it has no {MANIFEST} that can be read.", hint="Give a folder that scanvit platform backup made."
        ) from None
    if not known:
        raise PlatformStateError(f"{source} has the format {manifest['format']!r}, and this scanvit knows {FORMAT}.", hint="Use the scanvit that made it.")
    return manifest


def verify(source: Path, progress: Progress) -> None:
    """Compare every file with SHA256SUMS. Raises ChecksumError for a file that differs, is missing, or is not listed."""
    listed: dict[str, str] = {}
    for line in _read_sums(source):
        digest, _, name = line.partition("  ")
        listed[name] = digest
    there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()} - {SUMS}
    for number, name in enumerate(sorted(there | listed.keys()), start=1):
        path = source / name
        if name not in listed or name not in there or path.is_symlink() or sha256_file(path) != listed[name]:
            raise ChecksumError(f"{name} of {source} is not what was backed up.", hint="Use another copy of the backup. Nothing was changed.")
        progress("Checking", number, len(listed))


def _read_sums(source: Path) -> list[str]:
    try:
        text = (source / SUMS).read_text(encoding="utf-8")
        return text.removesuffix("\n").split("\n")  # splitlines would also split at the U+2028 of a name
    except (OSError, UnicodeDecodeError):
        raise ChecksumError(f"{source / SUMS} cannot be read.", hint="Use another copy of the backup. Nothing was changed.") from None


def _check_schema(manifest: dict[str, Any], engine: Engine) -> None:
    """A database of a newer MLflow cannot be read by an older one. In containers, MLflow's own start tells."""
    revision = manifest["versions"]["schema"]
    if engine.name != "native" or revision is None:
        return
    from .native.mlflow_server import knows_revision

    if not knows_revision(revision):
        wanted = manifest["versions"].get("mlflow", "a newer version")
        raise PlatformStateError(
            f"The backup is of MLflow {wanted}, which is newer than the one installed.", hint=f"pip install 'mlflow=={wanted}', then again."
        )


def _refuse_to_overwrite(settings: Settings) -> None:
    with postgres.connect(settings) as connection:
        rows = count_rows(connection)
    objects = len(tracking_store(settings).listing(checksums=False).objects)
    if rows.get("runs", 0) or rows.get("registered_models", 0) or rows.get("experiments", 0) > 1 or objects:
        raise PlatformStateError(
            f"The platform holds {rows.get('runs', 0):,} runs and {objects:,} artifacts, which the backup would replace.",
            hint="Back them up first; then: scanvit platform restore BACKUP --force",
        )


def _load(settings: Settings, engine: Engine, dump: Path, manifest: dict[str, Any]) -> None:
    with postgres.connect(settings, database="postgres") as connection:
        connection.execute(f"CREATE DATABASE {_NEW}")
    command, environment = engine.postgres_tool(settings, "pg_restore")
    arguments = ["--no-owner", "--exit-on-error", "--single-transaction", f"--dbname={_NEW}"]
    with open(dump, "rb") as file:
        run_checked([*command, *arguments], what="the database", environment=environment, stdin=file)
    with postgres.connect(settings, database=_NEW) as connection:
        rows = count_rows(connection)
    if differing := [name for name in COUNTED if rows.get(name) != manifest["rows"].get(name)]:
        raise PlatformStateError(f"The restored database has another number of {differing[0]} than the backup says.", hint="Nothing was changed.")


def _swap(settings: Settings) -> None:
    current = settings["POSTGRES_DB"]
    _drop(settings, _OLD)
    with postgres.connect(settings, database="postgres") as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ANY(%s)", ([current, _NEW],))
        with connection.transaction():  # both names change, or neither
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (current,)).fetchone():
                connection.execute(f"ALTER DATABASE {current} RENAME TO {_OLD}")
            connection.execute(f"ALTER DATABASE {_NEW} RENAME TO {current}")
    _drop(settings, _OLD)


def _drop(settings: Settings, name: str) -> None:
    with postgres.connect(settings, database="postgres") as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
