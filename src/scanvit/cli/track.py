"""``scanvit track``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

_RUNS = click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")


@click.group()
def track() -> None:
    """Copy runs to the tracking server, and see how far that is."""


@track.command()
@_RUNS
@click.option("--uri", help="The tracking server.  [default: MLFLOW_TRACKING_URI, or where the run began]")
def sync(runs: tuple[Path, ...], uri: str | None) -> None:
    """Send what the server has not got yet of finished or interrupted runs.

    A RUN may also be a folder of runs, or a search, whose trials are sent with it. Safe to repeat: nothing arrives twice. A server that a run
    has not been sent to before gets all of it. A user name and a password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.

    \b
    Examples:
      scanvit track sync runs/mine
      scanvit track sync runs
      scanvit track sync runs/mine --uri http://tracking.example.org:5000
    """
    from ..core.errors import ScanvitError
    from ..storage.mlflow_client import describe_place
    from ..training.run_folder import load_tracking
    from ..training.tracking import sync as send
    from . import printable

    errors: list[ScanvitError] = []

    def failed(what: Path, error: ScanvitError) -> None:
        click.echo(printable(f"{what}: {error.message}"), err=True)
        errors.append(error)

    found: list[tuple[Path, bool]] = []
    for path in runs:
        try:
            found += _find((path,))
        except ScanvitError as error:
            if len(runs) == 1:
                raise
            failed(path, error)
    count = len(found) + len(errors)
    for run_dir, is_in_folder in found:
        try:
            if is_in_folder and not load_tracking(run_dir).mlflow:
                click.echo(printable(f"{run_dir} was run with tracking.mlflow=false."), err=True)
                continue
            shipper = send(run_dir, uri=uri)
        except ScanvitError as error:
            if count == 1 and not is_in_folder:
                raise
            failed(run_dir, error)
            continue
        click.echo(printable(f"{run_dir} is in {describe_place(shipper.uri)} as run {shipper.run_id}."))
        for refusal in shipper.state.refused:
            click.echo(printable(f"  refused there: {refusal}"), err=True)
    if errors:
        hint = "Nothing is lost. Once what is told above is mended, give the same command again."
        raise type(errors[0])(f"{len(errors)} of {count} runs were not sent.", hint=hint)


@track.command()
@_RUNS
@click.option("--json", "as_json", is_flag=True, help="One line of JSON a run.")
def status(runs: tuple[Path, ...], as_json: bool) -> None:
    """Say where each run is tracked, and how far behind its copy there is. No server is asked. Behind a search come its trials.

    \b
    Examples:
      scanvit track status runs/mine
      scanvit track status runs --json
    """
    import json

    from ..storage.mlflow_client import describe_place
    from ..training.monitoring import read_status, status_or_reason
    from . import printable

    for run_dir, is_one_of_many in _find(runs):
        found = status_or_reason(run_dir) if is_one_of_many else read_status(run_dir)
        if isinstance(found, str):
            row = {"run": str(run_dir), "phase": "unreadable", "error": found}
            click.echo(json.dumps(row) if as_json else printable(f"{run_dir}: cannot be read: {found}"))
            continue
        state = found.tracking
        if as_json:
            values = {"run": str(run_dir), "phase": found.phase, "uri": state.uri, "run_id": state.run_id, "status": state.status}
            behind = {"behind_bytes": found.behind_bytes, "behind_s": round(found.behind_s, 1)}
            click.echo(json.dumps(values | behind | {"error": state.error, "refused": state.refused}))
            continue
        where = f"run {state.run_id} in {describe_place(state.uri)}" if state.uri and state.run_id else "not tracked yet"
        lag = f"{_bytes(found.behind_bytes)} behind, for {_seconds(found.behind_s)}" if found.behind_bytes else "all sent"
        click.echo(printable(f"{run_dir}: {found.phase}, {lag}; {where}"))
        if state.error:
            click.echo(printable(f"  the last try failed: {state.error.rstrip('.')}"))
        for refusal in state.refused:
            click.echo(printable(f"  refused there: {refusal}"))
        if found.behind_bytes and found.phase != "running":
            click.echo(printable(f"  send it: scanvit track sync {run_dir}"))


@track.command("serve-metrics")
@click.argument("runs", default="runs", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=9109, show_default=True, type=click.IntRange(1, 65535), help="Of the page.")
def serve_metrics(runs: Path, host: str, port: int) -> None:
    """Let Prometheus scrape a folder of runs at http://HOST:PORT/metrics.

    Losses, images a second, GPU use, and how far the tracking is behind, with a label for the run: docs/tracking.md has the names.
    """
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from ..core.errors import TrackingError
    from ..training.monitoring import exposition, find_runs

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/metrics"
            body = exposition(find_runs(runs)).encode() if found else b"See /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8" if found else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        reason = error.strerror or error
        raise TrackingError(f"{host}:{port} cannot be listened on: {reason}.", hint="Choose another --port, or an address of this machine.") from None
    click.echo(f"http://{host}:{server.server_address[1]}/metrics shows the runs in {runs}  (Ctrl-C ends it)")
    with server:
        server.serve_forever()


def _find(paths: tuple[Path, ...]) -> Iterator[tuple[Path, bool]]:
    """(run, whether it was found in a folder of runs or a search). Raises RunMissingError for a path that is neither."""
    from ..core.errors import RunMissingError
    from ..training.monitoring import find_runs, trials_of

    for path in paths:
        runs = [folder for run in find_runs(path) for folder in (run, *trials_of(run))]
        if not runs:
            raise RunMissingError(f"{path} is no run and holds none.", hint="Give the folder that scanvit train made, or the folder of such folders.")
        yield from ((run, runs != [path]) for run in runs)


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _seconds(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
