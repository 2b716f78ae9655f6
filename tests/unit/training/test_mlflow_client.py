from __future__ import annotations

import pytest

from scanvit.training.mlflow_client import brief, explain, is_refusal, without_credentials


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://ann:secret@host:5000/x", "http://host:5000/x"),
        ("http://ann:p@ss@host/x", "http://host/x"),
        ("postgresql://ann:secret@host/db?sslmode=require&password=secret", "postgresql://host/db?sslmode=require&"),
        ("to http://ann:secret@a/b failed with 'https://c:d@e'", "to http://a/b failed with 'https://e'"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_credentials_are_taken_out(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


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
        ("something\nnew \x1b[31m at http://ann:secret@host", "FailureError: something new [31m at http://host"),
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
