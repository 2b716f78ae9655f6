from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from scanvit.serving.guards import Guard, host_name, is_address

TOKEN = "a-secret-of-the-tests"


def get(path: str, *, token: str | None = None, host: str = "127.0.0.1:8080", headers: dict[str, str] | None = None) -> httpx.Response:
    app = Starlette(routes=[Route(path, lambda request: PlainTextResponse("served")) for path in ("/", "/api/model")])
    app.add_middleware(Guard, allowed_hosts=["reader.example"], token=token)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{host}") as client:
            return await client.get(path, headers={name: value.encode("latin-1") for name, value in (headers or {}).items()})

    return asyncio.run(ask())


@pytest.mark.parametrize(("host", "name"), [("a:80", "a"), ("A", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("127.0.0.1:1", "127.0.0.1"), ("", "")])
def test_the_name_in_a_host_header(host: str, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize(
    ("name", "expected"), [("127.0.0.1", True), ("::1", True), ("192.168.1.4", True), ("localhost", False), ("127.0.0.1.evil.example", False)]
)
def test_addresses_cannot_be_rebound(name: str, expected: bool) -> None:
    assert is_address(name) is expected


@pytest.mark.parametrize(
    ("host", "status"), [("127.0.0.1:8080", 200), ("localhost", 200), ("reader.example:9", 200), ("evil.example", 421), ("localhost.evil", 421)]
)
def test_only_own_names_are_answered(host: str, status: int) -> None:
    answer = get("/", host=host)
    assert answer.status_code == status
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["cache-control"] == "no-store"


def test_pages_of_other_sites_may_open_but_not_call_it() -> None:
    foreign = {"sec-fetch-site": "cross-site"}
    assert get("/api/model", headers=foreign | {"sec-fetch-mode": "no-cors"}).status_code == 403
    assert get("/", headers=foreign | {"sec-fetch-mode": "navigate"}).status_code == 200
    assert get("/api/model", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_the_api_asks_for_the_secret_and_the_page_does_not() -> None:
    assert get("/", token=TOKEN).status_code == 200
    for wrong in ({}, {"authorization": f"Basic {TOKEN}"}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer \xe9"}):
        answer = get("/api/model", token=TOKEN, headers=wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, 52)
        assert answer.headers["www-authenticate"] == "Bearer"
    assert get("/api/model", token=TOKEN, headers={"authorization": f"bearer {TOKEN}"}).status_code == 200
