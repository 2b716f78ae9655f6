"""Each expression of each dashboard, asked of a real Prometheus that has scraped what scanvit and Ray give."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "deploy" / "prometheus" / "prometheus.yml"
DASHBOARDS = sorted((REPOSITORY / "deploy" / "grafana" / "dashboards").glob("*.json"))
RECORDED = REPOSITORY / "tests" / "containers"

pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed (Debian: apt install prometheus)")


class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = (RECORDED / self.path.lstrip("/")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def exporter() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _get(address: str, path: str, **parameters: str) -> Any:
    with urllib.request.urlopen(f"{address}{path}?{urllib.parse.urlencode(parameters)}", timeout=20) as answer:
        return json.load(answer)["data"]


@pytest.fixture(scope="module")
def prometheus(exporter: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The shipped settings, with the recorded metrics in place of each job's targets and a scrape each second."""
    folder = tmp_path_factory.mktemp("prometheus")
    settings = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    settings["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    nodes = folder / "nodes.json"
    nodes.write_text(json.dumps([{"targets": [exporter], "labels": {"job": "ray"}}]), encoding="utf-8")
    for job in settings["scrape_configs"]:
        if job["job_name"] == "ray":
            job |= {"metrics_path": "/ray.metrics", "file_sd_configs": [{"files": [str(nodes)]}]}
        elif job["job_name"] == "scanvit":
            job |= {"metrics_path": "/scanvit.metrics", "static_configs": [{"targets": [exporter]}]}
        else:
            job["static_configs"] = []
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            _wait_for_samples(address, process, folder / "log")
            yield address
        finally:
            process.terminate()


def _wait_for_samples(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            if len(_get(address, "/api/v1/query", query="up == 1")["result"]) == 2:
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    pytest.fail(f"no samples within a minute: {log.read_text(encoding='utf-8')[-2000:]}")


def expressions(dashboard: Path) -> list[tuple[str, str]]:
    panels = json.loads(dashboard.read_text(encoding="utf-8"))["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_shows_something(dashboard: Path, prometheus: str) -> None:
    assert expressions(dashboard)
    empty = []
    for title, expression in expressions(dashboard):
        result = _get(prometheus, "/api/v1/query", query=expression.replace("$run", ".*"))["result"]
        if not result:
            empty.append((title, expression))
    assert not empty


def test_legends_use_labels_that_the_results_have(prometheus: str) -> None:
    wrong = []
    for dashboard in DASHBOARDS:
        for panel in json.loads(dashboard.read_text(encoding="utf-8"))["panels"]:
            for target in panel["targets"]:
                labels = {part.split("}}")[0].strip() for part in target["legendFormat"].split("{{")[1:]}
                result = _get(prometheus, "/api/v1/query", query=target["expr"].replace("$run", ".*"))["result"]
                if missing := labels - set(result[0]["metric"]):
                    wrong.append((dashboard.stem, panel["title"], missing))
    assert not wrong


def test_the_choice_of_runs_finds_them(prometheus: str) -> None:
    assert _get(prometheus, "/api/v1/label/run/values", **{"match[]": "scanvit_running"}) == ["modern", "reference"]


def test_an_expression_that_no_metric_answers_is_found(prometheus: str) -> None:
    assert _get(prometheus, "/api/v1/query", query="scanvit_images_per_secnod")["result"] == []


def test_the_shipped_settings_pass_promtool() -> None:
    result = subprocess.run(["promtool", "check", "config", str(CONFIG)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
