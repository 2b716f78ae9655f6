"""``scanvit ui``."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click


@click.command()
@click.argument("runs", default="runs", type=click.Path(path_type=Path))
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="On 127.0.0.1.")
def ui(runs: Path, port: int) -> None:
    """Open MLflow's pages on the runs in a folder.

    RUNS is the folder that holds the run folders and their mlflow.db. The pages listen on this machine alone.
    """
    from ..core.errors import RunMissingError, TrackingError
    from ..storage.mlflow_client import local_tracking_uri, pages

    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if server.startswith("http"):
        click.echo(f"The runs are tracked at {pages(server)}: open that address.")
        return
    if not (runs / "mlflow.db").is_file():
        raise RunMissingError(f"{runs} holds no mlflow.db.", hint="Give the folder that your run folders are in: scanvit ui FOLDER")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise TrackingError(f"Port {port} is taken.", hint=f"Choose another: scanvit ui {runs} --port {port + 1}") from None
    click.echo(f"Starting MLflow on {pages(f'http://127.0.0.1:{port}')}  (Ctrl-C ends it)")
    # Job execution would start seven more processes that nothing here uses.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", local_tracking_uri(runs), "--host", "127.0.0.1", "--port", str(port)]
    # A session of its own: MLflow starts a server process in turn, and both have to end with this one, however it ends.
    process = subprocess.Popen([*command, "--workers", "1"], env=environment, start_new_session=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        return
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    if code:
        raise TrackingError(f"MLflow ended with exit code {code}.", hint="Its own messages are above.")
