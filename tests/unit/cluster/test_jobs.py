"""What goes with a job, and what comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scanvit.cli.jobs import _passed_on
from scanvit.cluster.jobs import Job, JobServer, check_succeeded, job_environment, read_runtime_env
from scanvit.core.errors import ConfigError, JobError


def test_variables_of_storage_go_along_and_the_file_goes_before(tmp_path: Path) -> None:
    file = tmp_path / "runtime.json"
    file.write_text(json.dumps({"env_vars": {"DATA_PATH": "/mnt/object", "AWS_REGION": "there"}, "pip": []}))
    environment = {"AWS_REGION": "here", "AWS_SECRET_ACCESS_KEY": "hidden", "DATA_PATH": "/mine", "HOME": "/root"}
    found = job_environment(read_runtime_env(file), environment)
    assert found["pip"] == []
    assert found["env_vars"] == {
        "PYTHONUNBUFFERED": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "90",
        "AWS_REGION": "there",
        "AWS_SECRET_ACCESS_KEY": "hidden",
        "DATA_PATH": "/mnt/object",
    }
    assert read_runtime_env(None) == {}


@pytest.mark.parametrize("text", ["[]", "{", '{"env_vars": []}', '{"env_vars": {"A": 1}}', '{"working_dir": "."}'])
def test_a_runtime_environment_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "runtime.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"runtime\.json"):
        read_runtime_env(file)


def test_options_are_handed_on_as_they_were_given() -> None:
    options = {"num_workers": 2, "use_gpu": True, "wait_s": 5.0, "storage": "s3://ray", "keep": None, "resources_per_worker": "GPU=1,CPU=8"}
    assert _passed_on(options) == ["--num-workers", "2", "--use-gpu", "--wait", "5.0", "--storage", "s3://ray", "--resources-per-worker", "GPU=1,CPU=8"]


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://", "http://user:" + "secret@head:8265"])
def test_what_is_no_job_server_is_refused_without_its_secret(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JobServer(address)
    assert "secret" not in caught.value.message


def job(status: str, message: str, exit_code: int | None) -> Job:
    return Job(job_id="j", status=status, entrypoint="", message=message, started=None, ended=None, exit_code=exit_code)


def test_a_failed_job_tells_its_exit_code_and_its_error() -> None:
    check_succeeded(job("SUCCEEDED", "", 0), "http://h:8265")
    said = "Job entrypoint command failed with exit code 31, last available logs:\nerror: There is no pack at x.\nhint: Make one.\n"
    with pytest.raises(JobError, match=r"^The job j failed with exit code 31: There is no pack at x\.$"):
        check_succeeded(job("FAILED", said, 31), "http://h:8265")
    with pytest.raises(JobError, match="was stopped"):
        check_succeeded(job("STOPPED", "Job was intentionally stopped.", None), "http://h:8265")
