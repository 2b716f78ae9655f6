from __future__ import annotations

import io
from email.message import Message
from urllib.request import HTTPRedirectHandler, Request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanvit.core.errors import FetchError
from scanvit.storage.address import build_opener, check_address, is_loopback, public_address


@pytest.mark.parametrize("url", ["https://example.org/a.zip?x=1", "http://127.0.0.1:8000/a", "http://localhost/a", "http://[::1]:80/a"])
def test_https_and_this_machine_may_be_fetched(url: str) -> None:
    assert check_address(url).hostname


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.zip",
        "ftp://example.org/a.zip",
        "file:///etc/passwd",
        "https:///a",
        "a.zip",
        "",
        "https://user@example.org/a",
        "https://user:" + "word@example.org/a",
        "https://example.org/a b",
        "https://example.org/a\r\nX: y",
        "https://example.org:99999/a",
        "https://[::1/a",
        "http://localhost.example.org/a",
        "http://127.0.0.1.example.org/a",
    ],
)
def test_nothing_else_may(url: str) -> None:
    with pytest.raises(FetchError) as caught:
        check_address(url)
    assert "word" not in str(caught.value)


def test_https_may_not_lead_to_this_machine_in_the_clear() -> None:
    with pytest.raises(FetchError):
        check_address("http://127.0.0.1/a", loopback=False)


@pytest.mark.parametrize("target", ["http://127.0.0.1/latest/meta-data", "http://localhost:8080/", "http://other.example/a.zip"])
def test_a_server_elsewhere_cannot_redirect_to_this_machine_in_the_clear(target: str) -> None:
    opener = build_opener("https://example.org/a.zip")
    (redirects,) = (handler for handler in opener.handlers if isinstance(handler, HTTPRedirectHandler))
    with pytest.raises(FetchError, match="not https"):
        redirects.redirect_request(Request("https://example.org/a.zip"), io.BytesIO(), 302, "Found", Message(), target)


def test_files_and_ftp_have_no_handler() -> None:
    names = {type(handler).__name__ for handler in build_opener("https://example.org/").handlers}
    assert not names & {"FileHandler", "FTPHandler", "DataHandler"}


def test_what_may_be_secret_is_not_shown() -> None:
    assert public_address("https://user:" + "word@example.org:8443/a/b?token=1#x") == "https://example.org:8443/a/b"
    assert public_address("https://[fe80::1]:9/a") == "https://[fe80::1]:9/a"


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("", "10.0.0.1", "0.0.0.0", "example.org", "localhost.", "127.1.example")))


@given(st.text())
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        parts = check_address(text)
    except FetchError:
        return
    assert parts.scheme == "https" or is_loopback(parts.hostname or "")
