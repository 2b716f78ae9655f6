"""Decoding on real Ray clusters, one local and one of two nodes, each process with a home folder of its own: Ray leaves a token there."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from tests.integration.cluster_harness import RayCluster

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
]
SOURCE = Path(__file__).resolve().parents[2] / "src"
RUN = """
import json, sys
from scanvit.core.errors import ScanvitError
from scanvit.data import batches
from scanvit.data.prepare import prepare
batches.BATCH_IMAGES = 16
if __name__ == "__main__":
    steps = []
    try:
        summary = prepare(sys.argv[1], sys.argv[2], engine=sys.argv[3], workers=1, progress=lambda *step: steps.append(step))
        print(json.dumps({"fingerprint": summary.fingerprint, "reused": summary.reused, "decoded": [s for s in steps if s[0] == "Decoding"][-1]}))
    except ScanvitError as error:
        print(json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint}))
"""


def png(seed: int, side_px: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side_px, side_px + 4), np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder and a zip archive, with a file that cannot be read."""
    files = {f"{name}/p{i}_0.png": png(100 * label + i) for label, name in enumerate(("healthy", "ill")) for i in range(60)}
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    for number, path in enumerate(files):
        (tmp_path / "one" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / path).write_bytes(png(10_000 + number) if path != "ill/p3_0.png" else b"broken")
    described = [{"name": name, "path": path, "patient": "(?P<patient>p[0-9]+)_"} for name, path in (("one", "one"), ("two", "two.zip"))]
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"image_size_px": 16, "sources": described}), encoding="utf-8")
    return tmp_path / "sources.yaml"


def run(sources: Path, out: Path, engine: str, **environment: str) -> dict[str, Any]:
    (sources.parent / "home").mkdir(exist_ok=True)
    (sources.parent / "run.py").write_text(RUN, encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    clean |= {"PYTHONPATH": str(SOURCE), "HOME": str(sources.parent / "home"), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, str(sources.parent / "run.py"), str(sources), str(out), engine]
    result = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def content(pack: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(pack.iterdir())}


def test_a_cluster_gives_the_byte_identical_pack(sources: Path, tmp_path: Path) -> None:
    local, ray = run(sources, tmp_path / "local", "local"), run(sources, tmp_path / "ray", "ray")
    assert local["decoded"] == ray["decoded"] == ["Decoding", 240, 240]
    assert local["fingerprint"] == ray["fingerprint"]
    assert content(tmp_path / "local") == content(tmp_path / "ray")
    assert "ill/p3_0.png" in (tmp_path / "ray" / "quarantine.jsonl").read_text(encoding="ascii")


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    """Two nodes of one processor each on this machine, which let in whoever has the token."""
    with RayCluster(head_options={"num-cpus": 1}) as cluster:
        cluster.add_node(cpus=1)
        yield cluster


def decoding(cluster: RayCluster) -> list[psutil.Process]:
    """The processes that decode at this moment."""
    found = []
    for process in cluster.processes:
        with suppress(psutil.NoSuchProcess):
            found += [process] if any("_decode_span" in word for word in process.cmdline()) else []
    return found


def test_two_nodes_with_a_token_and_a_worker_that_is_killed(cluster: RayCluster, tmp_path: Path) -> None:
    files = {f"{name}/p{i}_0.png": png(100 * label + i, 700) for label, name in enumerate(("healthy", "ill")) for i in range(80)}
    for path, data in files.items():
        (tmp_path / "one" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / path).write_bytes(data)
    described = [{"name": "one", "path": "one", "patient": "(?P<patient>p[0-9]+)_"}]
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"image_size_px": 16, "sources": described}), encoding="utf-8")
    run(tmp_path / "sources.yaml", tmp_path / "local", "local")

    stranger = run(tmp_path / "sources.yaml", tmp_path / "ray", "ray", RAY_ADDRESS=cluster.address, RAY_AUTH_MODE="disabled")
    assert stranger["error"] == "DataError"
    assert "RAY_AUTH_MODE" in stranger["hint"]

    secured = {name: cluster.client_environment[name] for name in ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    killed: list[int] = []
    done = threading.Event()

    def kill_one() -> None:
        while not done.is_set():
            for process in decoding(cluster):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                    killed.append(process.pid)
                    return
            time.sleep(0.005)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        ray = run(tmp_path / "sources.yaml", tmp_path / "ray", "ray", **secured)
    finally:
        done.set()
        killer.join()
    assert killed
    assert ray["decoded"] == ["Decoding", 160, 160]
    assert content(tmp_path / "local") == content(tmp_path / "ray")


def test_a_cluster_that_is_not_there_is_named(sources: Path, tmp_path: Path) -> None:
    answer = run(sources, tmp_path / "ray", "ray", RAY_ADDRESS="127.0.0.1:9", RAY_gcs_rpc_server_connect_timeout_s="1", RAY_NUM_REDIS_GET_RETRIES="1")
    assert answer["error"] == "DataError"
    assert "127.0.0.1:9" in answer["message"]
    assert not (tmp_path / "ray").exists()
