"""``scanvit serve``."""

from __future__ import annotations

from pathlib import Path

import click

_HELP = """A web page and an HTTP API to try a network as a second reader.

RUN is a run folder, a checkpoint.pth, an address of MLflow, or what 'scanvit export' wrote (.onnx, .safetensors). Drop an image or a DICOM file onto the
page: it shows calibrated probabilities with the operating points, the set of classes that holds the truth as often as promised, where the network
looked, whether the image is unlike all that it knows, and whether it agrees with a first reading. No image is kept or logged.

It listens on this machine alone. For others, give --host, and a secret in the environment variable SCANVIT_SERVE_TOKEN; there is no encryption, so put a
server with TLS in front.

\b
  scanvit serve runs/mine
  curl --data-binary @film.png -H 'Content-Type: image/png' http://127.0.0.1:8080/api/predict
"""


@click.command(help=_HELP)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes any free one.")
@click.option("--allowed-host", multiple=True, metavar="NAME", help="A name by which browsers may call this server; addresses and localhost always may.")
@click.option("--max-mb", type=click.IntRange(1, 2000), default=64, show_default=True, help="The largest file that is taken, in MB.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(1, 600), default=30.0, show_default=True, help="Seconds to receive a file, and to judge it.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the network.  [default: what the engine chooses]")
def serve(run: Path, host: str, port: int, allowed_host: tuple[str, ...], max_mb: int, timeout_s: float, threads: int | None) -> None:
    import os

    from ..evaluation.engines import note_on_calibration, open_engine
    from ..serving.server import Settings, bind, is_loopback
    from ..serving.server import serve as run_server

    token = os.environ.get("SCANVIT_SERVE_TOKEN") or None
    settings = Settings(token=token, allowed_hosts=allowed_host, most_bytes=max_mb * 10**6, timeout_s=timeout_s)
    with bind(host, port) as listening:
        engine = open_engine(run, threads=threads)
        if note := note_on_calibration(engine):
            click.echo(note, err=True)
        name = f"[{host}]" if ":" in host else host
        click.echo(f"{engine.name} on http://{name}:{listening.getsockname()[1]}  (Ctrl-C ends it)")
        if not is_loopback(host):
            click.secho(
                f"Others on the network can reach this: images cross it unencrypted{'' if token else ', and no secret is asked for'}.", fg="yellow", err=True
            )
            if not token:
                click.echo("Set SCANVIT_SERVE_TOKEN to a secret of 16 characters or more, and put a server with TLS in front.", err=True)
        run_server(engine, listening, settings)
    click.echo("Stopped.")
