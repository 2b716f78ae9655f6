"""The platform in containers: ``docker compose`` or ``podman compose`` over the files of ``deploy/``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, EngineError, PlatformStateError, PortTakenError
from ..storage.atomic import write_text
from .processes import run_checked
from .settings import ACCELERATORS, FILE_NAME, Settings
from .state import RUNTIME_FILE, State, write_state
from .variables import VARIABLES

ENGINES = ("docker", "podman")
_PACKAGES = {
    "docker": "apt install docker.io docker-compose-v2 (or Docker's own docker-ce)",
    "podman": "apt install podman docker-compose (Debian 13 or newer)",
}
_DUMP = 'PGPASSWORD="$POSTGRES_PASSWORD" exec "$0" --host 127.0.0.1 --username "$POSTGRES_USER" --no-password "$@"'


def detect(wanted: str | None = None) -> str:
    """Raises EngineError where no engine answers."""
    for name in (wanted,) if wanted else ENGINES:
        if shutil.which(name) and _answers([name, "compose", "version"]):
            if not _answers([name, "info"]):
                raise EngineError(f"{name} is installed, but its engine does not answer.", hint=f"Start it, or ask for the right to use it: {name} info")
            return name
    missing = wanted or "docker"
    raise EngineError(
        f"{missing} compose is not installed." if wanted else "Neither docker compose nor podman compose is installed.",
        hint=f"Install it: {_PACKAGES[missing]}; or run without containers: scanvit platform up --native",
    )


def _answers(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def deploy_folder() -> Path:
    """Where the compose files are: inside an installed package, or beside the sources in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "deploy", package.parents[1] / "deploy"):
        if (folder / "compose.yaml").is_file():
            return folder
    raise EngineError(
        "The compose files are missing from this installation.",
        hint="Install scanvit again; or run without containers: scanvit platform up --native",
    )


def command(engine: str, settings: Settings, profiles: Sequence[str], *arguments: str) -> list[str]:
    folder, accelerator = deploy_folder(), settings["SCANVIT_ACCELERATOR"]
    assert accelerator in ACCELERATORS
    overlays = [accelerator] * (accelerator != "cpu") + [engine] * (engine == "podman")
    files = [folder / "compose.yaml", *(folder / f"compose.{overlay}.yaml" for overlay in overlays)]
    words = [engine, "compose", "--project-name", settings["COMPOSE_PROJECT_NAME"], "--env-file", str(settings.folder / FILE_NAME)]
    words += [word for file in files for word in ("--file", str(file))]
    return [*words, *(word for profile in profiles for word in ("--profile", profile)), *arguments]


def environment(settings: Settings) -> dict[str, str]:
    """Without the variables of ``.env`` and ``client.env``: compose would take the shell's before the file's, and 127.0.0.1 is another place inside."""
    ours = VARIABLES.keys() | settings.client_environment().keys()
    # Podman would say before each answer that another program gives it.
    return {name: value for name, value in os.environ.items() if name not in ours} | {"PODMAN_COMPOSE_WARNING_LOGS": "false"}


def job_environment(settings: Settings) -> dict[str, dict[str, str]]:
    """Ray's runtime environment for `scanvit ray submit`, which sends the addresses of ``client.env`` along: where the services are for the nodes."""
    store = settings["STORE_ENDPOINT_URL"] or "http://store:8333"
    inside = {"AWS_ENDPOINT_URL": store, "MLFLOW_S3_ENDPOINT_URL": store, "MLFLOW_TRACKING_URI": "http://mlflow:8000", "DATA_PATH": "/mnt/object"}
    return {"env_vars": inside}


class Compose:
    """See ``engine.Engine``. Works on all profiles but in ``start``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def preflight(self, settings: Settings, profiles: Sequence[str]) -> None:
        if {"ray", "jupyter"} & set(profiles) and not Path(settings["DATA_PATH"]).is_dir():
            raise ConfigError(
                f"DATA_PATH is {settings['DATA_PATH']}, which is no folder of this machine.",
                hint=f"Make it, or name the folder of your images in {settings.folder / FILE_NAME}.",
            )
        model = json.loads(self._run(settings, profiles, "config", "--format", "json", what="the compose files"))
        for name, service in model["services"].items():
            if "build" not in service:
                self._fetch(settings, profiles, name, service["image"])

    def _fetch(self, settings: Settings, profiles: Sequence[str], service: str, image: str) -> None:
        """The image where it is not there yet: ``up`` would start nothing without it, and not say which it lacks."""
        try:
            self._run(settings, profiles, "pull", "--quiet", "--policy", "missing", service, what=f"the image {image}")
        except EngineError as error:
            hint = (
                f"Nothing was started. Where its registry cannot be reached, bring it in a file ({self.name} save, {self.name} load), or leave its profile out."
            )
            raise EngineError(error.message, hint=hint) from None

    def start(self, settings: Settings, profiles: Sequence[str]) -> None:
        write_state(settings.folder, State(engine=self.name, profiles=tuple(profiles)))
        write_text(settings.folder / RUNTIME_FILE, json.dumps(job_environment(settings), indent=2) + "\n")
        try:
            self._run(settings, profiles, "up", "--detach", "--remove-orphans", what="the platform")
        except EngineError as error:
            if "address already in use" in error.message or "port is already allocated" in error.message:
                raise PortTakenError(error.message, hint=f"End what has the port, or change it in {settings.folder / FILE_NAME}.") from None
            raise

    def failures(self, settings: Settings) -> dict[str, str]:
        return {
            name: f"its container ended with exit code {row['ExitCode']}"
            for name, row in self._containers(settings).items()
            if row.get("State") in ("exited", "dead") and row.get("ExitCode") != 0
        }

    def restarts(self, settings: Settings) -> dict[str, int]:
        """As the engine counts them for each container: those of a container that was made anew are forgotten."""
        names = {str(row.get("Name") or row["Names"][0]): service for service, row in self._containers(settings).items()}
        if not names:
            return {}
        said = run_checked([self.name, "inspect", "--type", "container", "--format", "{{.RestartCount}}", *names], what="the restarts of containers")
        return dict(zip(names.values(), map(int, said.split()), strict=True))

    def logs(self, settings: Settings, service: str, *, lines: int, following: bool) -> Iterator[str]:
        more = ["--follow"] if following else []
        words = self._all(settings, "logs", "--no-color", "--no-log-prefix", "--tail", str(lines), *more, service)
        with subprocess.Popen(words, env=environment(settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
            assert process.stdout is not None
            yield from (line.rstrip("\n") for line in process.stdout)
        if process.returncode:
            raise PlatformStateError(f"{service} has no logs.", hint="scanvit platform status lists the services.")

    def pause(self, settings: Settings, service: str) -> None:
        run_checked(self._all(settings, "stop", service), what=f"stopping {service}", environment=environment(settings))

    def resume(self, settings: Settings, service: str) -> None:
        run_checked(self._all(settings, "start", service), what=f"starting {service}", environment=environment(settings))

    def postgres_tool(self, settings: Settings, name: str) -> tuple[list[str], dict[str, str]]:
        return self._all(settings, "exec", "-T", "postgres", "sh", "-c", _DUMP, name), environment(settings)

    def stop(self, settings: Settings, *, volumes: bool) -> None:
        run_checked(self._all(settings, "down", "--remove-orphans", *(["--volumes"] if volumes else [])), what="stopping", environment=environment(settings))
        if volumes:
            (settings.folder / RUNTIME_FILE).unlink(missing_ok=True)

    def _all(self, settings: Settings, *arguments: str) -> list[str]:
        return command(self.name, settings, ("*",), *arguments)

    def _run(self, settings: Settings, profiles: Sequence[str], *arguments: str, what: str) -> str:
        return run_checked(command(self.name, settings, profiles, *arguments), what=what, environment=environment(settings))

    def _containers(self, settings: Settings) -> dict[str, dict[str, Any]]:
        """By service; docker writes one JSON object a line, podman one list."""
        said = run_checked(self._all(settings, "ps", "--all", "--format", "json"), what="the list of containers", environment=environment(settings)).strip()
        rows = json.loads(said) if said.startswith("[") else [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        return {str(row.get("Service")): row for row in rows}
