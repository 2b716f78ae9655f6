"""Runs as jobs of a cluster elsewhere, by Ray's job server (the port of its dashboard, 8265)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..core.config import Experiment
from ..core.errors import ClusterError, ConfigError, JobError
from ..core.loading import experiment_to_yaml, parse_yaml, read_text
from ..data.ray_decoding import require_ray
from ..storage.address import public_address
from ..storage.atomic import write_text
from .exposure import warn_of_dashboard
from .session import secure
from .settings import travelling

_log = logging.getLogger(__name__)
EXPERIMENT = "experiment.yaml"
_STOP_S = 90
"""How long Ray waits between SIGTERM and SIGKILL to a job that is stopped; its own default of 3 s is too short for a last checkpoint."""
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, kw_only=True)
class Job:
    job_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    entrypoint: str
    message: str
    started: float | None
    """Unix time, s."""
    ended: float | None
    exit_code: int | None

    @property
    def is_over(self) -> bool:
        return self.status in _ENDED


class JobServer:
    """One cluster's job server. Every method raises ClusterError where it does not answer or refuses the token."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ConfigError(
                f"{public_address(address) if '://' in address else repr(address)} is no address of a job server.",
                hint="Write http://HOST:8265, the address of the cluster's dashboard.",
            )
        secure(os.environ, create=False)
        require_ray()
        self.address = address
        warn_of_dashboard(address)
        with self._errors():
            from ray.job_submission import JobSubmissionClient

            for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
                logging.getLogger(name).setLevel(logging.ERROR)
            os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray takes it before the address that it is given
            self._client = JobSubmissionClient(address)

    def submit(self, entrypoint: str, *, job_id: str, runtime_env: Mapping[str, Any]) -> str:
        with self._errors():
            return str(self._client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=dict(runtime_env)))

    def job(self, job_id: str) -> Job:
        with self._errors(job_id):
            return _job(self._client.get_job_info(job_id))

    def jobs(self) -> list[Job]:
        """Newest first; only what was submitted as a job."""
        with self._errors():
            found = [_job(info) for info in self._client.list_jobs() if info.submission_id]
        return sorted(found, key=lambda job: job.started or 0.0, reverse=True)

    def logs(self, job_id: str) -> str:
        with self._errors(job_id):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        """Hand on the job's output as it comes, until its end."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job_id):
                write(text)

        with self._errors(job_id):
            asyncio.run(tail())
        return self.job(job_id)

    def stop(self, job_id: str) -> bool:
        """Whether it was running. The run writes a checkpoint first."""
        with self._errors(job_id):
            return bool(self._client.stop_job(job_id))

    @contextmanager
    def _errors(self, job_id: str | None = None) -> Iterator[None]:
        import requests
        from ray.exceptions import AuthenticationError

        place = public_address(self.address)
        try:
            yield
        except AuthenticationError:
            hint = "Give the cluster's token: RAY_AUTH_TOKEN_PATH=FILE (or RAY_AUTH_TOKEN), with RAY_AUTH_MODE=token."
            raise ClusterError(f"The job server at {place} refused the token, or got none.", hint=hint) from None
        except (ConnectionError, requests.RequestException) as error:
            _log.debug("%s", error)
            raise ClusterError(f"No job server answers at {place}.", hint="Check --address: it is the dashboard's, http://HOST:8265.") from None
        except RuntimeError as error:
            text = " ".join(str(error).split())
            if job_id is not None and "does not exist" in text:
                raise JobError(f"There is no job {job_id} at {place}.", hint=f"scanvit ray status --address {place} lists the jobs.") from None
            raise ClusterError(f"The job server at {place} refused: {text[:300]}", hint="Look at its dashboard.") from None


def read_runtime_env(file: Path | None) -> dict[str, Any]:
    """``runtime.json``: Ray's runtime environment. Raises ConfigError."""
    if file is None:
        return {}
    values = parse_yaml(read_text(file, error=ConfigError), where=str(file))  # JSON is YAML
    variables = values.get("env_vars", {})
    if not isinstance(variables, dict) or not all(isinstance(text, str) for pair in variables.items() for text in pair):
        raise ConfigError(f"{file}: env_vars is no table of names and texts.", hint='Write "env_vars": {"DATA_PATH": "/mnt/object"}.')
    if "working_dir" in values:
        raise ConfigError(
            f"{file} names a working_dir.",
            hint="Leave it out: the experiment travels by itself. To send code as well, use ray job submit (docs/cluster.md).",
        )
    return values


def job_environment(runtime_env: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """``runtime_env`` with DATA_PATH and the variables of storage and tracking that are set here; what the file says goes before."""
    own = travelling(environment) | {name: environment[name] for name in ("DATA_PATH",) if name in environment}
    return {**runtime_env, "env_vars": {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S)} | own | dict(runtime_env.get("env_vars", {}))}


def submit_run(server: JobServer, experiment: Experiment | None, arguments: Sequence[str], *, name: str, runtime_env: Mapping[str, Any]) -> str:
    """Send ``scanvit ray train`` with ``arguments`` as a job called ``name``. The experiment goes along as a file, resolved here."""
    with tempfile.TemporaryDirectory(prefix="scanvit-job-") as folder:
        command = ["python", "-m", "scanvit", "ray", "train"]
        if experiment is not None:
            write_text(Path(folder) / EXPERIMENT, experiment_to_yaml(experiment))
            command.append(EXPERIMENT)
        write_text(Path(folder) / "job.json", json.dumps({"name": name}))  # Ray sends no empty folder
        return server.submit(shlex.join([*command, *arguments]), job_id=name, runtime_env={**runtime_env, "working_dir": folder})


def check_succeeded(job: Job, address: str) -> None:
    """Raises JobError."""
    if job.status == "SUCCEEDED":
        return
    code = "" if job.exit_code is None else f" with exit code {job.exit_code}"
    verb = "was stopped" if job.status == "STOPPED" else f"{job.status.lower()}{code}"
    raise JobError(f"The job {job.job_id} {verb}: {_reason(job.message)}", hint=f"Its output: scanvit ray logs {job.job_id} --address {address}")


def _job(info: Any) -> Job:
    return Job(
        job_id=str(info.submission_id),
        status=getattr(info.status, "value", str(info.status)),
        entrypoint=info.entrypoint or "",
        message=info.message or "",
        started=info.start_time / 1000 if info.start_time else None,
        ended=info.end_time / 1000 if info.end_time else None,
        exit_code=getattr(info, "driver_exit_code", None),
    )


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason was given"]
    return next((line.removeprefix("error:").strip() for line in reversed(lines) if line.startswith("error:")), lines[-1])[:300]
