from __future__ import annotations

from pathlib import Path

import pytest

from scanvit.storage.mlflow_client import absolute_uri, brief, describe_place, explain, is_refusal, without_credentials

USER = "ann:" + "secret@"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"http://{USER}host:5000/x", "http://host:5000/x"),
        (f"http://ann:p@{USER}host/x", "http://host/x"),
        (f"postgresql://{USER}host/db?sslmode=require&password=secret", "postgresql://host/db?sslmode=require&"),
        (f"postgresql://ann:se/cr'et{USER}host/db?sslmode=require&sslpassword=se'cret&Password=s", "postgresql://host/db?sslmode=require&"),
        ("mysql://ann:se/c:ret" + "@host/db?passwd=secret", "mysql://host/db?"),
        ("OperationalError at 'postgresql://ann:se/cr'et" + "@host:5432/db' (try later)", "OperationalError at 'postgresql://host:5432/db' (try later)"),
        ("https://token" + "@host/x", "https://host/x"),
        (f"to http://{USER}a/b failed with 'https://{USER}e'", "to http://a/b failed with 'https://e'"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_credentials_are_taken_out(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


def test_a_relative_file_is_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute_uri("sqlite:///../b/mlflow.db?timeout=5") == f"sqlite:///{tmp_path.parent}/b/mlflow.db?timeout=5"
    for uri in ("sqlite:////data/mlflow.db", "sqlite:///:memory:", "sqlite:///", "http://host:5000", "postgresql://host/db"):
        assert absolute_uri(uri) == uri


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite:////mlflow.db", "sqlite:///", "sqlite://"])
def test_every_local_store_is_told(uri: str) -> None:
    assert describe_place(uri)


class FailureError(Exception):
    def __init__(self, text: str, error_code: str = "INTERNAL_ERROR") -> None:
        super().__init__(text)
        self.error_code = error_code


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("API request to endpoint /x failed with error code 401 != 200. Response body: 'no'", "MLFLOW_TRACKING_PASSWORD"),
        ("API request to endpoint /x failed with error code 403 != 200. Response body: 'Invalid Host header'", "--allowed-hosts"),
        ("API request to endpoint /x failed with error code 403 != 200.", "may not write there"),
        ("Max retries exceeded (Caused by ResponseError('too many 502 error responses'))", "answers with errors (502)"),
        ("Max retries exceeded (Caused by NewConnectionError: [Errno 111] Connection refused)", "nothing listens there"),
        ("Max retries exceeded (Caused by ReadTimeoutError: Read timed out.)", "no answer within"),
        ("failed to resolve (Caused by NameResolutionError)", "host name is not known"),
        ("API request was successful but the response body was not in a valid JSON format", "no MLflow server"),
        ("Connection aborted. RemoteDisconnected", "breaks off"),
        (f"something\nnew \x1b[31m at http://{USER}host", "FailureError: something new [31m at http://host"),
    ],
)
def test_each_failure_is_one_clause(text: str, sentence: str) -> None:
    assert sentence in explain(FailureError(text))


def test_a_refusal_for_good_is_told_from_an_outage() -> None:
    assert is_refusal(FailureError("Changing param values is not allowed", "INVALID_PARAMETER_VALUE"))
    assert is_refusal(FailureError("failed with error code 413 != 200"))
    for code in ("401", "403", "404", "429", "500", "503"):
        assert not is_refusal(FailureError(f"failed with error code {code} != 200"))


def test_an_error_of_a_library_stays_on_one_short_line() -> None:
    assert len(brief(FailureError("x\n" * 10_000))) < 250
