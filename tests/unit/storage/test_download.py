from __future__ import annotations

import json
import logging
import random
import shutil
import subprocess
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from tests.file_server import Answer, FileServer, Good, Hang, Status

from scanvit.core.errors import ChecksumError, FetchError, NoSpaceError
from scanvit.storage.download import DownloadPolicy, Remote, download

QUICK = DownloadPolicy(tries=3, base_s=0.001, cap_s=0.05, timeout_s=5, chunk_bytes=4096)
DATA = random.Random(0).randbytes(100_000)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "file.zip.part"


def get(server: FileServer, part: Path, *answers: Answer, data: bytes = DATA, policy: DownloadPolicy = QUICK, **remote: Any) -> bytes:
    server.files["/file"] = data
    server.answers["/file"] = list(answers)
    download(Remote(url=server.url("/file"), **remote), part, policy=policy)
    return part.read_bytes()


def ranges(server: FileServer) -> list[str | None]:
    return [seen.headers["Range"] for seen in server.seen]


def test_a_file_comes_whole_with_progress(file_server: FileServer, part: Path) -> None:
    file_server.files["/file"] = DATA
    steps: list[tuple[int, int | None]] = []
    download(Remote(url=file_server.url("/file")), part, policy=QUICK, progress=lambda done, total: steps.append((done, total)))
    assert part.read_bytes() == DATA
    assert steps[0] == (0, len(DATA))
    assert steps[-1] == (len(DATA), len(DATA))
    assert steps == sorted(steps)


def test_an_empty_file_is_a_file(file_server: FileServer, part: Path) -> None:
    assert get(file_server, part, data=b"") == b""


def test_cut_connections_are_resumed_where_they_ended(file_server: FileServer, part: Path) -> None:
    assert get(file_server, part, *(Good(cut_at=n) for n in (30_000, 1, 20_000, 5_000))) == DATA
    assert ranges(file_server) == [None, "bytes=30000-", "bytes=30001-", "bytes=50001-", "bytes=55001-"]
    assert all(seen.headers["If-Range"] for seen in file_server.seen[1:])
    assert sum(seen.sent_bytes for seen in file_server.seen) == len(DATA)


def test_attempts_that_bring_something_are_not_counted_as_failures(file_server: FileServer, part: Path) -> None:
    assert get(file_server, part, *[Good(cut_at=5_000)] * 15) == DATA


def test_a_later_call_goes_on_too(file_server: FileServer, part: Path) -> None:
    with pytest.raises(FetchError, match=r"ends after 40,000 of 100,000 bytes \(3 attempts"):
        get(file_server, part, Good(cut_at=40_000), *[Good(cut_at=0)] * 3)
    assert part.stat().st_size == 40_000
    file_server.seen.clear()
    assert get(file_server, part) == DATA
    assert ranges(file_server) == ["bytes=40000-"]


def test_what_is_complete_is_not_asked_for_again(file_server: FileServer, part: Path) -> None:
    get(file_server, part)
    file_server.seen.clear()
    assert get(file_server, part) == DATA
    assert not file_server.seen


def test_chunked_answers_end_where_they_say(file_server: FileServer, part: Path) -> None:
    assert get(file_server, part, Good(chunked=True, cut_at=30_000), Good(chunked=True, ignores_range=True)) == DATA


def test_a_length_that_promises_too_much_is_found_out(file_server: FileServer, part: Path) -> None:
    lie = Good(length=len(DATA) + 50, headers={"Content-Range": f"bytes 0-{len(DATA) + 49}/{len(DATA) + 50}"})
    with pytest.raises(FetchError, match="did not come through"):
        get(file_server, part, *[lie] * 10)


def test_a_length_that_hides_the_rest_is_found_out_where_the_length_is_known(file_server: FileServer, part: Path) -> None:
    with pytest.raises(ChecksumError, match="is 60,000 bytes long; 100,000 were recorded"):
        get(file_server, part, Good(length=60_000), size_bytes=len(DATA))


def test_a_body_without_any_length_is_refused(file_server: FileServer, part: Path) -> None:
    with pytest.raises(FetchError, match="without its length"):
        get(file_server, part, Good(says_length=False))


@pytest.mark.parametrize("length", ["-5", "many", "9" * 5000, "12 34", ""])
def test_a_length_that_is_no_number_is_refused(file_server: FileServer, part: Path, length: str) -> None:
    with pytest.raises(FetchError):
        get(file_server, part, Good(headers={"Content-Length": length}))


def test_a_server_without_ranges_sends_all_anew(file_server: FileServer, part: Path) -> None:
    assert get(file_server, part, Good(cut_at=30_000), Good(ignores_range=True)) == DATA
    assert ranges(file_server) == [None, "bytes=30000-"]


def test_a_file_that_changes_meanwhile_is_never_mixed(file_server: FileServer, part: Path) -> None:
    other = random.Random(1).randbytes(len(DATA))
    with pytest.raises(FetchError):
        get(file_server, part, Good(cut_at=40_000), *[Good(cut_at=0)] * 3)
    assert get(file_server, part, data=other) == other
    assert ranges(file_server)[-1] == "bytes=40000-"
    assert file_server.seen[-1].sent_bytes == len(other)


def test_a_server_that_ignores_the_condition_is_found_out_by_its_etag(file_server: FileServer, part: Path) -> None:
    other = random.Random(1).randbytes(len(DATA))
    with pytest.raises(FetchError):
        get(file_server, part, Good(cut_at=40_000), *[Good(cut_at=0)] * 3)

    def ignorant(handler: Any, data: bytes) -> None:
        handler.headers.replace_header("If-Range", "x")
        del handler.headers["If-Range"]
        Good()(handler, data)

    assert get(file_server, part, ignorant, data=other) == other
    assert ranges(file_server)[-2:] == ["bytes=40000-", None]


@pytest.mark.parametrize(
    "content_range", ["", "bytes 0-99999/100000", "bytes 40000-50000/100000", "bytes 40000-99999/*", "bytes 40000-100049/100050", "x" * 9999]
)
def test_a_range_that_does_not_fit_starts_anew(file_server: FileServer, part: Path, content_range: str) -> None:
    assert get(file_server, part, Good(cut_at=40_000), Good(headers={"Content-Range": content_range})) == DATA
    assert ranges(file_server) == [None, "bytes=40000-", None]


def test_a_range_not_satisfiable_starts_anew(file_server: FileServer, part: Path) -> None:
    assert get(file_server, part, Good(cut_at=40_000), Status(416, {"Content-Range": "bytes */30000"})) == DATA
    assert ranges(file_server) == [None, "bytes=40000-", None]


def test_a_range_not_satisfiable_can_mean_that_all_is_there(file_server: FileServer, part: Path) -> None:
    get(file_server, part)
    state = json.loads(part.with_name(part.name + ".json").read_text())
    part.with_name(part.name + ".json").write_text(json.dumps(state | {"total_bytes": None}))
    assert get(file_server, part) == DATA
    assert ranges(file_server)[-1] == f"bytes={len(DATA)}-"


def test_without_a_validator_nothing_is_resumed(file_server: FileServer, part: Path) -> None:
    file_server.has_etag = False
    assert get(file_server, part, Good(cut_at=40_000)) == DATA
    assert ranges(file_server) == [None, None]


def test_a_weak_etag_is_no_validator_but_a_date_is(file_server: FileServer, part: Path) -> None:
    file_server.has_etag = False
    date = formatdate(0, usegmt=True)
    headers = {"ETag": 'W/"1"', "Last-Modified": date}
    assert get(file_server, part, Good(cut_at=40_000, headers=headers)) == DATA
    assert file_server.seen[1].headers["If-Range"] == date


@pytest.mark.parametrize("state", ["", "[]", "{}", '{"url_sha256": 1, "total_bytes": "x", "etag": "y"}', '{"url_sha256": "0", "etag": "\\"1\\""}'])
def test_a_damaged_or_foreign_state_means_starting_anew(file_server: FileServer, part: Path, state: str) -> None:
    part.write_bytes(b"old" * 1000)
    part.with_name(part.name + ".json").write_text(state)
    assert get(file_server, part) == DATA
    assert ranges(file_server) == [None]


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_passing_troubles_are_waited_out(file_server: FileServer, part: Path, code: int) -> None:
    assert get(file_server, part, Status(code, {"Retry-After": "0"}), Status(code)) == DATA


def test_a_retry_after_beyond_patience_ends_in_a_sentence(file_server: FileServer, part: Path) -> None:
    with pytest.raises(FetchError, match=r"answers 503, and asks to wait 3600 s"):
        get(file_server, part, Status(503, {"Retry-After": "3600"}))
    assert len(file_server.seen) == 1


def test_a_retry_after_may_be_a_date_or_nonsense(file_server: FileServer, part: Path) -> None:
    with pytest.raises(FetchError, match="asks to wait"):
        get(file_server, part, Status(429, {"Retry-After": "Fri, 31 Dec 2399 23:59:59 GMT"}))
    assert get(file_server, part, Status(429, {"Retry-After": formatdate(0, usegmt=True)}), Status(429, {"Retry-After": "soon"})) == DATA


@pytest.mark.parametrize(
    ("code", "sentence"), [(401, "refuses access"), (403, "refuses access"), (404, "is not there"), (410, "is not there"), (400, "answers 400")]
)
def test_final_answers_are_not_retried(file_server: FileServer, part: Path, code: int, sentence: str) -> None:
    with pytest.raises(FetchError, match=sentence) as caught:
        get(file_server, part, *[Status(code)] * 5, hint="Do this.")
    assert caught.value.hint == "Do this."
    assert len(file_server.seen) == 1


def test_a_silent_server_is_left_and_tried_again(file_server: FileServer, part: Path) -> None:
    hasty = DownloadPolicy(tries=2, base_s=0.001, timeout_s=0.2)
    assert get(file_server, part, Hang(), policy=hasty) == DATA
    part.unlink()
    assert get(file_server, part, Hang(after=40_000), policy=hasty) == DATA
    assert ranges(file_server)[-1] == "bytes=40000-"
    part.unlink()
    with pytest.raises(FetchError, match="the server is silent"):
        get(file_server, part, Hang(), Hang(), policy=hasty)


def test_nobody_listens(file_server: FileServer, part: Path) -> None:
    url = file_server.url("/file")
    file_server.close()
    with pytest.raises(FetchError, match=r"Connection refused.*3 attempts"):
        download(Remote(url=url), part, policy=QUICK)


def test_an_answer_that_is_no_http(file_server: FileServer, part: Path) -> None:
    def nonsense(handler: Any, data: bytes) -> None:
        handler.wfile.write(b"220 mail.example ready\r\n")

    with pytest.raises(FetchError, match="BadStatusLine"):
        get(file_server, part, *[nonsense] * 3)


def test_an_endless_body_stops_at_the_cap(file_server: FileServer, part: Path) -> None:
    with pytest.raises(FetchError, match="longer than the 50,000 bytes allowed"):
        get(file_server, part, Good(chunked=True), max_bytes=50_000)
    with pytest.raises(FetchError, match="longer than the 50,000 bytes allowed"):
        get(file_server, part, max_bytes=50_000)
    assert part.stat().st_size <= 50_000 + QUICK.chunk_bytes


def test_a_body_that_cannot_fit_is_not_begun(file_server: FileServer, part: Path) -> None:
    with pytest.raises(NoSpaceError, match="no room for the 1,000,000,000,000,000 bytes"):
        get(file_server, part, Good(length=10**15), max_bytes=10**16)
    assert not part.exists()


def test_an_encoding_that_nobody_asked_for_is_refused(file_server: FileServer, part: Path) -> None:
    with pytest.raises(FetchError, match="encoding 'gzip'"):
        get(file_server, part, Good(headers={"Content-Encoding": "gzip"}))


SECRET = "Basic " + "c2VjcmV0"


def test_a_credential_goes_to_its_own_host_alone(file_server: FileServer, part: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = FileServer()
    try:
        other.files["/signed"] = DATA
        file_server.answers["/file"] = [Status(302, {"Location": "/again"}), Status(503)]
        file_server.answers["/again"] = [Status(307, {"Location": other.url("/signed?token=" + "tttt")})]
        file_server.files["/file"] = DATA
        with caplog.at_level(logging.DEBUG):
            download(Remote(url=file_server.url("/file?key=" + "kkkk"), authorization=SECRET), part, policy=QUICK)
        assert part.read_bytes() == DATA
        assert [seen.headers["Authorization"] for seen in file_server.seen] == [SECRET, SECRET]
        assert [seen.headers["Authorization"] for seen in other.seen] == [None]
        written = caplog.text + part.with_name(part.name + ".json").read_text() + repr(Remote(url="https://h/", authorization=SECRET))
        assert not any(secret in written for secret in ("c2VjcmV0", "kkkk", "tttt"))
    finally:
        other.close()


def test_no_error_tells_a_secret(file_server: FileServer, part: Path) -> None:
    file_server.answers["/file"] = [Status(302, {"Location": "/signed?token=" + "tttt"})]
    with pytest.raises(FetchError) as caught:
        download(Remote(url=file_server.url("/file?key=" + "kkkk"), authorization=SECRET), part, policy=QUICK)
    assert caught.value.__cause__ is None
    assert not any(secret in f"{caught.value} {caught.value.hint}" for secret in ("c2VjcmV0", "kkkk", "tttt"))


@pytest.mark.parametrize(
    "location", ["ftp://127.0.0.1/file", "file:///etc/passwd", "http://example.com/file", "https://user@example.com/", "http://[::1", "data:,x"]
)
def test_redirects_lead_to_https_alone(file_server: FileServer, part: Path, location: str) -> None:
    with pytest.raises(FetchError):
        get(file_server, part, Status(302, {"Location": location}))
    assert not part.exists()


def test_redirects_in_a_circle_end(file_server: FileServer, part: Path) -> None:
    with pytest.raises(FetchError, match="in a circle"):
        get(file_server, part, *[Status(302, {"Location": "/file"})] * 50)
    assert len(file_server.seen) < 20


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(tmp_path: Path, part: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
    subprocess.run(make, check=True, capture_output=True)
    server = FileServer(tls=(certificate, key))
    try:
        server.files["/file"] = DATA
        with pytest.raises(FetchError, match="cannot prove who it is"):
            download(Remote(url=server.url("/file")), part, policy=QUICK)
        assert not server.seen
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(certificate))
            with pytest.raises(FetchError, match="cannot prove who it is"):  # vouched for, but for localhost and not for this address
                download(Remote(url=server.url("/file")), part, policy=QUICK)
            download(Remote(url=server.url("/file").replace("127.0.0.1", "localhost")), part, policy=QUICK)
        assert part.read_bytes() == DATA
    finally:
        server.close()
