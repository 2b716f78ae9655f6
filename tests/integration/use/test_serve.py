"""The API over real connections: what it says, and what it says to those who send something else than an image."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from tests.integration.conftest import Scanvit

from scanvit.evaluation.predict import predict_files

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PNG = {"content-type": "image/png"}
MOST_MB = 2


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scanvit]:
    made = Scanvit(tmp_path_factory.mktemp("serving"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(runner: Scanvit, onnx_file: Path) -> str:
    """Its address. It takes 2 MB, and waits ten seconds."""
    return started(runner, onnx_file, "--max-mb", str(MOST_MB), "--timeout", "10")


def started(runner: Scanvit, model: Path, *options: str, **environment: str) -> str:
    process = runner.start("serve", model, "--port", "0", *options, **environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, line + (process.stderr.read() if process.stderr and process.poll() is not None else "")
    return found[0]


def ask(server: str, data: bytes, *, headers: dict[str, str] = PNG, timeout: float = 60, **query: Any) -> httpx.Response:
    return httpx.post(f"{server}/api/predict", params=query, content=data, headers=headers, timeout=timeout)


def refusal(answer: httpx.Response, status: int) -> str:
    """The one form that every error has."""
    assert answer.status_code == status, answer.text
    (fault,) = answer.json().values()
    assert set(fault) == {"type", "code", "message", "hint"}
    return str(fault["message"])


def test_the_answer_is_that_of_predict(server: str, onnx_file: Path, pictures: list[Path], small_pack: Path) -> None:
    (expected,) = predict_files(onnx_file, pictures[:1])
    name = expected.judgement["prediction"]
    answer = ask(server, pictures[0].read_bytes(), first_reading=name).json()
    (said,) = answer["images"]
    assert said["frame"] is None
    assert said["agreement"] == "agrees"
    assert said["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert {key: said[key] for key in ("conformal_set", "outlier", "operating_points")} == {
        key: expected.judgement[key] for key in ("conformal_set", "outlier", "operating_points")
    }
    drawn = answer["pictures"]
    assert (drawn["width_px"], drawn["height_px"], drawn["explains"]) == (16, 16, name)
    image, heat = (Image.open(io.BytesIO(base64.b64decode(drawn[key].split(",")[1]))) for key in ("image", "attention"))
    assert (image.size, heat.size, heat.mode) == ((512, 512), (512, 512), "RGBA")
    assert np.asarray(heat)[..., 3].max() > 100, "it shows nothing"
    bare = ask(server, pictures[0].read_bytes(), pictures=False).json()
    assert bare["pictures"] is None


def test_dicom_of_12_bits_and_of_many_frames(server: str, make_dicom: Callable[..., bytes]) -> None:
    dicom = {"content-type": "application/dicom"}
    random = np.random.default_rng(0)
    film = make_dicom(random.integers(0, 4096, (40, 30), dtype=np.uint16), BitsStored=12)
    (said,) = ask(server, film, headers=dicom).json()["images"]
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    volume = ask(server, make_dicom(random.integers(0, 256, (3, 20, 30), dtype=np.uint8)), headers=dicom, frame=2).json()
    assert [said["frame"] for said in volume["images"]] == [1, 2, 3]
    assert (volume["pictures"]["frame"], volume["pictures"]["width_px"]) == (2, 30)
    assert "no frame 2" in refusal(ask(server, film, headers=dicom, frame=2), 422)
    assert "300 frames" in refusal(ask(server, make_dicom(np.zeros((300, 8, 8), np.uint8)), headers=dicom), 413)


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in some kilobytes."""
    head = (60_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1_000_000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks)


def test_what_is_no_image_gets_a_sentence(server: str, pictures: list[Path]) -> None:
    png = pictures[0].read_bytes()
    assert "no readable" in refusal(ask(server, b"<html>"), 422)
    assert "cannot be decoded" in refusal(ask(server, png[: len(png) // 2]), 422)
    assert "too large" in refusal(ask(server, bomb()), 422)
    assert "no file" in refusal(ask(server, b""), 400)
    assert "larger than 2,000,000 bytes" in refusal(ask(server, b"\0" * (MOST_MB * 10**6 + 1)), 413)
    assert "content type" in refusal(ask(server, png, headers={"content-type": "text/plain"}), 415)
    assert "content type" in refusal(ask(server, png, headers={}), 415)
    assert "no class 'spleen'" in refusal(ask(server, png, first_reading="spleen"), 422)
    assert "frame" in refusal(ask(server, png, frame=0), 422)
    assert refusal(httpx.get(f"{server}/nowhere"), 404)
    assert refusal(httpx.get(f"{server}/api/predict"), 405)
    assert "not called" in refusal(ask(server, png, headers=PNG | {"host": "evil.example"}), 421)
    assert ask(server, png).status_code == 200, "it goes on"


def test_a_body_without_a_length_is_counted(server: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b"\0" * 100_000

    try:
        answer = httpx.post(f"{server}/api/predict", content=endless(), headers=PNG, timeout=60)
    except httpx.TransportError:
        return  # the server stopped listening in the middle, as it may
    assert "larger than" in refusal(answer, 413)


def test_slow_clients_are_sent_away(server: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    head = b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as body:
        body.sendall(head + b"\x89PNG")
        said = b""
        while part := body.recv(4096):
            said += part
            if b"did not arrive" in said:
                break
    assert said.startswith(b"HTTP/1.1 408")
    with socket.create_connection((host, int(port)), timeout=60) as silent:
        silent.sendall(b"POST /api/pre")
        assert silent.recv(4096).startswith(b"HTTP/1.1 408")


def test_clients_that_leave_take_nothing_with_them(server: str, pictures: list[Path]) -> None:
    host, port = server.removeprefix("http://").split(":")
    png = pictures[0].read_bytes()
    for sent in (b"", png[:20], png):
        for _ in range(12):  # more than there are places
            with socket.create_connection((host, int(port)), timeout=60) as gone:
                gone.sendall(f"POST /api/predict HTTP/1.1\r\nHost: a\r\nHost: 127.0.0.1\r\nContent-Length: {len(png)}\r\n".encode()[: 32 if not sent else None])
                if sent:
                    gone.sendall(b"Content-Type: image/png\r\n\r\n" + sent)
    deadline = time.monotonic() + 60
    while ask(server, png).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_more_than_it_can_do_at_once_is_refused_and_the_rest_answered(server: str, make_dicom: Callable[..., bytes]) -> None:
    volume = make_dicom(np.random.default_rng(0).integers(0, 256, (120, 100, 100), dtype=np.uint8))
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(ask(server, volume, headers={"content-type": "application/dicom"}).status_code)) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 503, 504}
    assert {200, 503} <= set(statuses)


def test_a_secret_is_asked_for_and_must_be_long(runner: Scanvit, onnx_file: Path, pictures: list[Path]) -> None:
    token = "0123456789abcdef" * 2
    guarded = started(runner, onnx_file, SCANVIT_SERVE_TOKEN=token)
    assert "secret" in refusal(ask(guarded, pictures[0].read_bytes()), 401)
    assert ask(guarded, pictures[0].read_bytes(), headers=PNG | {"authorization": f"Bearer {token}"}).status_code == 200
    process = runner.processes[-1]
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert token not in out + err
    runner("serve", onnx_file, "--port", "0", code=10, SCANVIT_SERVE_TOKEN="short")
    taken = guarded.rpartition(":")[2]
    with socket.create_server(("127.0.0.1", 0)) as busy:
        taken = str(busy.getsockname()[1])
        assert "port" in runner("serve", onnx_file, "--port", taken, code=92)


def test_others_on_the_network_are_warned_of(runner: Scanvit, onnx_file: Path) -> None:
    address = started(runner, onnx_file, "--host", "0.0.0.0")
    assert httpx.get(address.replace("0.0.0.0", "127.0.0.1") + "/health").json() == {"status": "ok"}
    process = runner.processes[-1]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert "unencrypted" in err
    assert "Stopped" in out


def test_nothing_of_an_image_is_left(runner: Scanvit, server: str, pictures: list[Path]) -> None:
    """Neither in what it prints nor in a file that it holds open or made."""
    ask(server, pictures[0].read_bytes())
    process = psutil.Process(runner.processes[0].pid)
    assert [file.path for file in process.open_files() if file.path.startswith(str(runner.folder))] == []
    assert list(runner.folder.rglob("*")) == []


def test_the_api_is_what_its_document_says(server: str, tmp_path: Path) -> None:
    """schemathesis draws requests from /openapi.json. Whether bytes are an image no schema can say, so their refusal is no fault."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server}/openapi.json", "--checks", checks, "--max-examples", "25", "--no-color"]
    done = subprocess.run([*command, "--seed", "1"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    paths = json.loads(httpx.get(f"{server}/openapi.json").text)["paths"]
    assert set(paths) == {"/health", "/api/model", "/api/predict"}
