"""MLflow's client library, kept on a short lead: brief time-outs, no retries behind our back, and its failures as one plain sentence."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.runtime import importing

if TYPE_CHECKING:
    from mlflow import MlflowClient

TIMEOUT_S = 10
"""Without an answer; MLFLOW_HTTP_REQUEST_TIMEOUT changes it."""
_UPLOAD_BYTES_PER_S = 1_000_000
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


def default_tracking_uri(run_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file beside the run folder."""
    return absolute_uri(os.environ.get("MLFLOW_TRACKING_URI") or local_tracking_uri(run_dir.resolve().parent))


def local_tracking_uri(runs: Path) -> str:
    """The embedded tracking store of a folder of runs."""
    return f"sqlite:///{runs.resolve() / 'mlflow.db'}"


def absolute_uri(uri: str) -> str:
    """The same store from every folder: a relative path of an SQLite file begins in this one."""
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri or not path or path.startswith((":", "?")) else f"sqlite:///{os.path.abspath(path)}"


def without_credentials(text: str) -> str:
    """A URI, or a text with URIs in it, without user names and passwords. As SQLAlchemy reads them: a user name goes to the first colon, and a
    password may hold anything, slashes and quotes included. Where an address can be read in two ways, more is taken out."""
    return re.sub(r"(?<=://)[^:/\s]*(?::\S*)?@|(?<=[?&])\w*passw(?:or)?d=[^&\s]*&?", "", text, flags=re.IGNORECASE)


def pages(server: str, run: tuple[str, str] | None = None) -> str:
    """The address of MLflow's pages on runs, or on one: (its experiment's id, its own). Without the type they open on language models."""
    return f"{without_credentials(server)}/#/experiments{'/{}/runs/{}'.format(*run) if run else ''}?workflowType=machine_learning"


def describe_place(uri: str, run: tuple[str, str] | None = None) -> str:
    """Where tracked runs are, or one of them: (its experiment's id, its own). As a sentence's end."""
    if uri.startswith("sqlite:///"):
        folder = os.path.dirname(absolute_uri(uri).removeprefix("sqlite:///")) or os.curdir
        return f"a local MLflow: scanvit ui {min(os.path.relpath(folder), folder, key=len)}"
    return pages(uri, run) if run and uri.startswith("http") else without_credentials(uri)


def prepare_mlflow() -> None:
    """Settings of the client library, before its import: a hanging server costs seconds, and nothing is chatted on the terminal."""
    os.environ.setdefault(_TIMEOUT, str(TIMEOUT_S))
    # Its own retries repeat a "create run" whose answer was lost, which makes a second run. Ours look for the first one before.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)


def make_local_store(uri: str) -> None:
    """Make the SQLite file of an embedded store that is not there yet, whole or not at all.

    It takes seconds, and MLflow can do nothing with a file whose making was broken off ("table ... already exists", for ever): so it is made
    under another name. Of several that make it at the same time, one wins.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        _client(f"sqlite:///{temporary}")
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def connect(uri: str) -> MlflowClient:
    """A client of the tracking store and the registry behind it. Nothing is sent yet."""
    make_local_store(uri)
    return _client(uri)


def _client(uri: str) -> MlflowClient:
    prepare_mlflow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, about each other
        with importing("mlflow"):
            from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def patience(size_bytes: int) -> Iterator[None]:
    """A longer time-out while a file is uploaded: the server answers when it has passed all of it on."""
    before = os.environ.get(_TIMEOUT, str(TIMEOUT_S))
    os.environ[_TIMEOUT] = str(int(before) + size_bytes // _UPLOAD_BYTES_PER_S)
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = before


def error_code(error: BaseException) -> str:
    """MLflow's name for what was wrong, such as RESOURCE_DOES_NOT_EXIST; empty for an error of another kind."""
    return str(getattr(error, "error_code", ""))


def is_refusal(error: BaseException) -> bool:
    """Whether the server understood and said no for good: sending the same again would be in vain."""
    return error_code(error) in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST") or _status(error) in (400, 413, 422)


def explain(error: BaseException) -> str:
    """What is wrong with the server, as a clause: "it refuses the user name or password (401)"."""
    text, status = str(error), _status(error)
    if status == 401 or error_code(error) in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        return "it refuses the user name or password (401); they come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if "Invalid Host header" in text:
        return "it does not know itself by this name (403): the server's --allowed-hosts has to list it"
    if status == 403 or error_code(error) == "PERMISSION_DENIED":
        return "this user may not write there (403)"
    if status and status >= 500:
        return f"it answers with errors ({status})"
    if "Connection refused" in text:
        return "nothing listens there (connection refused)"
    if "timed out" in text or any(isinstance(link, TimeoutError) for link in _chain(error)):
        return f"no answer within {os.environ.get(_TIMEOUT, TIMEOUT_S)} s"
    if "NameResolutionError" in text or "getaddrinfo" in text or "Name or service not known" in text:
        return "its host name is not known"
    if error_code(error) == "ENDPOINT_NOT_FOUND" or "valid JSON" in text or status in (404, 405, 501):
        return "what answers there is no MLflow server"
    if any(sign in text for sign in ("RemoteDisconnected", "Connection aborted", "IncompleteRead", "Connection broken")):
        return "it breaks off the connection"
    return brief(error)


def brief(error: BaseException) -> str:
    """An error of a client library, on one line, without credentials and without what could steer a terminal."""
    text = without_credentials(" ".join(str(error).split()))
    return f"{type(error).__name__}: {''.join(c for c in text if c.isprintable())[:200]}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    for link in _chain(error):
        code = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(code, int):
            return code
        if match := re.search(r"failed with error code (\d{3})\b|too many (\d{3}) error responses", str(link)):
            return int(match[1] or match[2])
    return None
