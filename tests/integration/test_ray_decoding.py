"""Decoding on a real local Ray cluster, in a process and a home folder of its own: Ray leaves a token there."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'scanvit[ray]')"),
]
SOURCE = Path(__file__).resolve().parents[2] / "src"
RUN = """
import json, sys
from scanvit.core.errors import ScanvitError
from scanvit.data import decoding
from scanvit.data.prepare import prepare
decoding.BATCH_IMAGES = 16
if __name__ == "__main__":
    steps = []
    try:
        summary = prepare(sys.argv[1], sys.argv[2], engine=sys.argv[3], workers=1, progress=lambda *step: steps.append(step))
        print(json.dumps({"fingerprint": summary.fingerprint, "reused": summary.reused, "decoded": [s for s in steps if s[0] == "Decoding"][-1]}))
    except ScanvitError as error:
        print(json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint}))
"""


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24), np.uint8)).save(buffer, "PNG")
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
    result = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=180, check=False)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def test_a_cluster_gives_the_byte_identical_pack(sources: Path, tmp_path: Path) -> None:
    local, ray = run(sources, tmp_path / "local", "local"), run(sources, tmp_path / "ray", "ray")
    assert local["decoded"] == ray["decoded"] == ["Decoding", 240, 240]
    assert local["fingerprint"] == ray["fingerprint"]
    names = sorted(path.name for path in (tmp_path / "local").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "ray").iterdir())
    assert all((tmp_path / "local" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes() for name in names if name != "audit.html")
    assert "ill/p3_0.png" in (tmp_path / "ray" / "quarantine.jsonl").read_text(encoding="ascii")


def test_a_cluster_that_is_not_there_is_named(sources: Path, tmp_path: Path) -> None:
    answer = run(sources, tmp_path / "ray", "ray", RAY_ADDRESS="127.0.0.1:9", RAY_gcs_rpc_server_connect_timeout_s="1", RAY_NUM_REDIS_GET_RETRIES="1")
    assert answer["error"] == "DataError"
    assert "127.0.0.1:9" in answer["message"]
    assert not (tmp_path / "ray").exists()
