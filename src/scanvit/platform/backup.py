"""Copies of what the platform holds: MLflow's database (runs, registry, accounts) and the bucket of its artifacts, in one folder.

manifest.json    versions, counts, when
database.dump    pg_dump's custom format
artifacts/       the bucket's objects under their names
SHA256SUMS       of all these files; `sha256sum --check` reads it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import PlatformStateError
from ..storage.atomic import atomic_folder, write_json, write_text
from ..storage.checksum import sha256_file
from ..storage.remote import Remote
from ..storage.transfer import open_store, pull
from ..storage.workplace import tells_apart
from . import postgres
from .control import require_healthy, running
from .engine import Engine
from .settings import Settings
from .state import exclusive

FORMAT = 1
DUMP, ARTIFACTS, MANIFEST, SUMS = "database.dump", "artifacts", "manifest.json", "SHA256SUMS"
COUNTED = ("experiments", "runs", "metrics", "params", "registered_models", "model_versions", "users")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Summary:
    counts: dict[str, int]
    objects: int
    size_bytes: int


def backup(folder: Path, target: Path, *, progress: Progress) -> Summary:
    """Copy the running platform's tracking data to ``target``, a new folder that appears when it is whole.

    The database comes first: every artifact that it names was there by then, and is in the copy. Raises PlatformStateError where ``target``
    exists or nothing runs, UnhealthyError, NoSpaceError.
    """
    if target.exists():
        raise PlatformStateError(f"{target} exists.", hint="Give a new folder: a backup never replaces another.")
    with exclusive(folder):
        settings, engine, services = running(folder)
        require_healthy(settings, services, ("postgres", "store"))
        with atomic_folder(target) as work:
            work.chmod(0o700)  # names of patients' studies may be in it, and hashes of passwords are
            facts = _dump(settings, engine, work / DUMP)
            objects, size_bytes = _pull_bucket(settings, work / ARTIFACTS, progress)
            write_json(work / MANIFEST, _manifest(settings, facts, objects, size_bytes))
            _write_sums(work)
    return Summary(counts=facts["counts"], objects=objects, size_bytes=size_bytes)


def tracking_store(settings: Settings) -> Any:
    """The bucket of the artifacts, through pyarrow, which needs no program installed."""
    remote = Remote(kind="s3", bucket=settings["MLFLOW_BUCKET"])
    return open_store(remote, settings.store_environment(), engine="pyarrow")


def count_rows(connection: Any) -> dict[str, int]:
    """Rows of MLflow's tables; one that this version of MLflow does not have is left out."""
    there = {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()}
    names = [name for name in COUNTED if name in there]
    return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names}  # noqa: S608 - names of COUNTED


def _dump(settings: Settings, engine: Engine, path: Path) -> dict[str, Any]:
    """What is counted is what is dumped, while runs go on writing: both see the database at one moment."""
    with postgres.connect(settings) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        snapshot = connection.execute("SELECT pg_export_snapshot()").fetchone()[0]
        has_tables = connection.execute("SELECT to_regclass('alembic_version')").fetchone()[0]
        revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0] if has_tables else None
        facts = {"postgres": connection.info.server_version // 10000, "schema": revision, "counts": count_rows(connection)}
        postgres.dump(settings, path, tool=engine.postgres_tool(settings, "pg_dump"), snapshot=snapshot)
        connection.execute("COMMIT")
    return facts


def _manifest(settings: Settings, facts: dict[str, Any], objects: int, size_bytes: int) -> dict[str, Any]:
    from importlib.metadata import version

    versions = {"scanvit": __version__, "mlflow": version("mlflow"), "postgres": facts["postgres"], "schema": facts["schema"]}
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "format": FORMAT,
        "made": made,
        "versions": versions,
        "rows": facts["counts"],
        "bucket": settings["MLFLOW_BUCKET"],
        "objects": objects,
        "size_bytes": size_bytes,
    }


def _pull_bucket(settings: Settings, target: Path, progress: Progress) -> tuple[int, int]:
    store = tracking_store(settings)
    target.mkdir()
    if not store.listing(checksums=False).objects:
        return 0, 0
    done = pull(store, target, apart=tells_apart(target), progress=progress)  # MLflow takes any names for artifacts
    return done.objects, done.size_bytes


def _write_sums(folder: Path) -> None:
    lines = [f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}" for path in sorted(folder.rglob("*")) if path.is_file()]
    write_text(folder / SUMS, "\n".join(lines) + "\n")
