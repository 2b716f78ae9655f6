"""MLflow's server with accounts. ``python -m scanvit.platform.native.mlflow_server`` brings the database up to date, then becomes the server.

The database's address holds a password, so it travels in the environment and in a private file, never on a command line.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import ScanvitError
from ...storage.atomic import write_text
from .. import postgres
from ..compose import deploy_folder
from ..settings import Settings, load
from .programs import Program, base_environment, needs

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory
    from sqlalchemy import Engine

UPGRADES = "before-upgrade"  # folder of the copies of the database that are made before a migration


def program(settings: Settings) -> Program:
    arguments = ["--host", settings.bind, "--port", settings["MLFLOW_PORT"], "--workers", "1", "--app-name", "basic-auth"]
    arguments += ["--artifacts-destination", f"s3://{settings['MLFLOW_BUCKET']}/artifacts", "--allowed-hosts", settings["MLFLOW_ALLOWED_HOSTS"]]
    accounts = {
        "MLFLOW_AUTH_CONFIG_PATH": str(_auth_config(settings)),
        "MLFLOW_AUTH_ADMIN_USERNAME": settings["MLFLOW_TRACKING_USERNAME"],
        "MLFLOW_AUTH_ADMIN_PASSWORD": settings["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": settings["MLFLOW_FLASK_SERVER_SECRET_KEY"],
    }
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "GIT_PYTHON_REFRESH": "quiet"}  # jobs would start seven more processes
    return Program(
        name="mlflow",
        command=(sys.executable, "-m", "scanvit.platform.native.mlflow_server", *arguments),
        environment=base_environment(settings.folder)
        | settings.store_environment()
        | accounts
        | quiet
        | {"MLFLOW_BACKEND_STORE_URI": postgres.database_uri(settings), "PYTHONPATH": str(deploy_folder() / "mlflow")},
        host=settings.host,
        port=settings.port("MLFLOW_PORT"),
        after=("postgres",) if settings["STORE_ENDPOINT_URL"] else ("postgres", "store"),
        cwd=settings.folder / "run",
    )


def prepare(settings: Settings) -> None:
    for module in ("boto3", "flask_wtf", "psycopg"):
        needs(module, extra="server")
    permission = settings.values.get("MLFLOW_DEFAULT_PERMISSION") or "READ"
    uri = postgres.database_uri(settings).replace("%", "%%")  # which the file's reader takes for a reference
    lines = ["[mlflow]", f"default_permission = {permission}", f"database_uri = {uri}", ""]
    write_text(_auth_config(settings), "\n".join(lines), private=True)


def _auth_config(settings: Settings) -> Path:
    return settings.folder / "run" / "mlflow-accounts.ini"


def main() -> None:
    settings = load(Path(os.environ["SCANVIT_PLATFORM"]))
    try:
        postgres.wait(settings, patience_s=60)
        upgrade(settings)
    except ScanvitError as error:
        sys.exit(f"{error.message} {error.hint}")
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *sys.argv[1:]])  # noqa: S606 - the arguments are a list of ours


def upgrade(settings: Settings) -> Path | None:
    """Bring an older database to the schema of the installed MLflow. Returns the copy that was made of it before, if that was needed."""
    import sqlalchemy
    from mlflow.db import upgrade as command

    engine = sqlalchemy.create_engine(postgres.database_uri(settings))
    try:
        found, wanted = schema_revision(engine), newest_revision()
    finally:
        engine.dispose()
    if found in (None, wanted):  # an empty database is filled by the server
        return None
    copy = settings.folder / UPGRADES / f"{time.strftime('%Y%m%d-%H%M%S')}-{found}.dump"
    print(f"The database has MLflow's schema {found}, and {wanted} is installed: copying it to {copy}, then upgrading.", flush=True)  # noqa: T201
    postgres.dump(settings, copy, tool=postgres.tool(settings, "pg_dump"))
    command.main(args=[postgres.database_uri(settings)], standalone_mode=False)
    return copy


def schema_revision(engine: Engine) -> str | None:
    """None for a database without MLflow's tables."""
    import sqlalchemy

    with engine.connect() as connection:
        if not sqlalchemy.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()


def newest_revision() -> str:
    head = _migrations().get_current_head()
    assert head is not None
    return head


def knows_revision(revision: str) -> bool:
    """Whether the installed MLflow can read, or upgrade, a database of this schema."""
    return revision in {script.revision for script in _migrations().walk_revisions()}


def _migrations() -> ScriptDirectory:
    import mlflow.store.db_migrations
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.store.db_migrations.__file__).parent))


def set_admin_password(settings: Settings) -> None:
    """The administrator gets the password of ``.env``: it may have been changed there, or the accounts may come from a backup.

    MLflow itself takes it once alone, when it makes the account.
    """
    from werkzeug.security import generate_password_hash

    name, hashed = settings["MLFLOW_TRACKING_USERNAME"], generate_password_hash(settings["MLFLOW_TRACKING_PASSWORD"])
    with postgres.connect(settings) as connection:
        connection.execute("UPDATE users SET password_hash = %s WHERE username = %s AND is_admin", (hashed, name))


if __name__ == "__main__":
    main()
