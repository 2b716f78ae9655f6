"""PostgreSQL without containers: its programs as Debian, Ubuntu, Fedora and Homebrew place them, its data folder, its password.

It listens on loopback alone, has no socket in the file system, and asks everyone for a password (scram-sha-256).
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from glob import glob
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..core.errors import EngineError, PlatformStateError, UnhealthyError
from ..storage.atomic import atomic_file
from .native.programs import Program, base_environment, find_program, needs
from .processes import identity, run_checked
from .settings import Settings
from .state import read_state
from .variables import LOOPBACK

PACKAGE = "apt install postgresql   (dnf install postgresql-server, brew install postgresql)"
_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/*/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin")


def program(settings: Settings) -> Program:
    options = {"listen_addresses": LOOPBACK, "port": settings["POSTGRES_PORT"], "unix_socket_directories": "", "logging_collector": "off"}
    return Program(
        name="postgres",
        command=(find("postgres", data=folder(settings)), "-D", str(folder(settings)), *(word for k, v in options.items() for word in ("-c", f"{k}={v}"))),
        environment=base_environment(settings.folder),
        port=settings.port("POSTGRES_PORT"),
        user=owner(),
        stop_signal=signal.SIGINT,  # a shutdown that ends sessions; on SIGTERM it would wait for them
    )


def folder(settings: Settings) -> Path:
    return settings.folder / "data" / "postgres"


def find(name: str, *, data: Path | None = None) -> str:
    """A program of PostgreSQL: of the version that made ``data``, where that exists, else the newest."""
    folders = sorted((f for pattern in _FOLDERS for f in glob(pattern)), key=_version, reverse=True)
    version_file = data / "PG_VERSION" if data else None
    if version_file and version_file.is_file():
        made_by = version_file.read_text().strip()
        folders = [f for f in folders if _version(f) == int(made_by)] or folders
    if not folders:
        return find_program(name, package=PACKAGE)
    found = shutil.which(name, path=os.pathsep.join(folders))
    return found or find_program(name, package=PACKAGE)


def _version(path: str) -> int:
    digits = "".join(c for c in Path(path).parent.name if c.isdigit())
    return int(digits) if digits else 0


def owner() -> str | None:
    """PostgreSQL refuses to run as root: root hands it to this user. None: as whoever runs the platform."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


def prepare(settings: Settings) -> None:
    """A data folder with the password and the database of the settings, made the first time; whole or not at all."""
    needs("psycopg", extra="server")
    data, user = folder(settings), owner()
    if (data / "PG_VERSION").is_file():
        _check_version(data)
        return
    unfinished = data.with_name("postgres.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    try:
        _give(unfinished, user)
        _check_reach(unfinished, user)
        _make_cluster(settings, unfinished, user)
        os.rename(unfinished, data)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _make_cluster(settings: Settings, data: Path, user: str | None) -> None:
    environment = base_environment(settings.folder)
    with tempfile.NamedTemporaryFile("w", dir=data.parent, prefix=".password.") as file:  # on a command line anyone could read it
        file.write(settings["POSTGRES_PASSWORD"])
        file.flush()
        _give(Path(file.name), user)
        command = [find("initdb"), "-D", str(data), "-U", settings["POSTGRES_USER"], f"--pwfile={file.name}", "--auth=scram-sha-256"]
        run_checked([*command, "--encoding=UTF8", "--no-locale", "--data-checksums"], what="PostgreSQL's data", environment=environment, user=user)
    if settings["POSTGRES_DB"] != "postgres":
        single = [find("postgres"), "--single", "-D", str(data), "postgres"]
        run_checked(single, what="PostgreSQL's database", environment=environment, user=user, stdin=f"CREATE DATABASE {settings['POSTGRES_DB']};\n")


def _give(path: Path, user: str | None) -> None:
    if user is not None:
        shutil.chown(path, user, pwd.getpwnam(user).pw_gid)


def _check_reach(data: Path, user: str | None) -> None:
    if user is not None and subprocess.run(["test", "-w", str(data)], check=False, **identity(user)).returncode:
        closed = next((p for p in reversed(data.resolve().parents) if not p.stat().st_mode & 0o001), data)
        raise PlatformStateError(
            f"PostgreSQL does not run as root, and the user {user} cannot reach {data.parent}: {closed} is closed to others.",
            hint="Choose a folder that others may pass: scanvit platform init /var/lib/scanvit, then --dir /var/lib/scanvit",
        )


def _check_version(data: Path) -> None:
    made_by = (data / "PG_VERSION").read_text().strip()
    said = run_checked([find("postgres", data=data), "--version"], what="PostgreSQL's version")
    here = said.split()[2].split(".")[0]
    if made_by != here:
        raise EngineError(
            f"The data in {data} is of PostgreSQL {made_by}, and version {here} is installed.",
            hint=f"Install postgresql-{made_by}; or back up with it, then restore into a new platform with version {here}.",
        )


def connect(settings: Settings, *, database: str | None = None, timeout_s: int = 3) -> Any:
    """A psycopg connection that commits each statement. Raises UnhealthyError with the cause."""
    import psycopg

    state = read_state(settings.folder)
    try:
        return psycopg.connect(
            host=settings.host if state and state.engine != "native" else LOOPBACK,
            port=settings.port("POSTGRES_PORT"),
            user=settings["POSTGRES_USER"],
            password=settings["POSTGRES_PASSWORD"],
            dbname=database or settings["POSTGRES_DB"],
            connect_timeout=timeout_s,
            autocommit=True,
        )
    except psycopg.OperationalError as error:
        said = settings.redact(" ".join(str(error).split()))
        if "password authentication failed" in said:
            message = "postgres refuses the password in .env: it has another one since its data was made."
            raise UnhealthyError(message, hint="Put the earlier POSTGRES_PASSWORD back into .env.") from None
        if "does not exist" in said:
            raise UnhealthyError(
                f"postgres has no database {database or settings['POSTGRES_DB']}.", hint="scanvit platform restore BACKUP brings it back."
            ) from None
        why = "does not listen" if "refused" in said else f"does not answer: {said[-160:]}"
        raise UnhealthyError(f"postgres {why}", hint="scanvit platform up starts what is down; scanvit platform logs postgres tells more.") from None


def wait(settings: Settings, *, patience_s: float) -> None:
    """Until it answers: after a crash it replays its log before it does. Raises UnhealthyError."""
    until = time.monotonic() + patience_s
    while True:
        try:
            connect(settings).close()
            return
        except UnhealthyError as error:
            if "does not" not in error.message or time.monotonic() > until:
                raise
        time.sleep(0.3)


def tool(settings: Settings, name: str) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of pg_dump or pg_restore with the connection's options; the password is in the environment."""
    place = ["--host", LOOPBACK, "--port", settings["POSTGRES_PORT"], "--username", settings["POSTGRES_USER"], "--no-password"]
    return [find(name, data=folder(settings)), *place], base_environment(settings.folder) | {"PGPASSWORD": settings["POSTGRES_PASSWORD"]}


def dump(settings: Settings, path: Path, *, tool: tuple[list[str], dict[str, str]], snapshot: str | None = None) -> None:
    """pg_dump of MLflow's database into ``path``, whole or not at all, for its owner's eyes. ``snapshot``: as another session sees it."""
    command, environment = tool
    seen = [f"--snapshot={snapshot}"] if snapshot else []
    with atomic_file(path, private=True) as file:
        words = [*command, "--format=custom", "--no-owner", *seen, settings["POSTGRES_DB"]]
        run_checked(words, what="the copy of the database", environment=environment, stdout=file)


def database_uri(settings: Settings) -> str:
    """For SQLAlchemy. It holds the password: for the environment and private files alone."""
    user, password, database = (quote(settings[f"POSTGRES_{name}"], safe="") for name in ("USER", "PASSWORD", "DB"))
    return f"postgresql+psycopg://{user}:{password}@{LOOPBACK}:{settings['POSTGRES_PORT']}/{database}"
