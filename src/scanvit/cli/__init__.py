"""The command line. One module a command or command group; each imports only click and the standard library at its top."""

from __future__ import annotations

import errno
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..core.errors import NoSpaceError, ScanvitError

__all__ = ["main", "root"]

# In the order of the road. A name is the module in this package and the click command inside it.
SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Start here", ("demo",)),
    ("Images", ("data",)),
    ("Train", ("train", "tune", "ray", "track", "ui")),
    ("Judge", ("evaluate", "compare", "register")),
    ("Use", ("export", "predict", "serve")),
    ("Serve", ("platform", "remote", "chameleon")),
)

_HELP = """From raw scans to a trained, tracked, honestly judged model.

\b
  images --prepare--> PACK --train--> RUN --evaluate--> report.html
                       |               |                    |
                     audit           MLflow              compare

First time? This needs no images of yours and takes about three minutes:

\b
  scanvit demo

Then with your own, a folder or archive with one folder a class:

\b
  scanvit data prepare IMAGES -o packs/mine
  scanvit train modern --pack packs/mine --run-dir runs/mine
  scanvit evaluate runs/mine
"""

_EPILOG = """Exit codes: 0 done, 2 wrong usage, 3 a gate of the audit failed, 4 done but some inputs were skipped, 75 stopped by a signal
after a checkpoint, 130 interrupted; every other error has its own (README)."""


class _ReaderGoneError(Exception):
    """Nobody reads stdout any more. Not an OSError, which click would turn into exit code 1."""


class _Road(click.Group):
    """Commands by section, imported when they are asked for, so that importing one of them does not need the others."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for _, names in SECTIONS for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        limit = formatter.width - 6 - max(map(len, self.list_commands(ctx)))
        for title, names in SECTIONS:
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(limit)) for name, command in commands if command])


@click.group(cls=_Road, help=_HELP, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="scanvit")
@click.option("-v", "--verbose", is_flag=True, help="Tell more, and show the traceback of an error.")
def root(verbose: bool) -> None:
    logger = logging.getLogger("scanvit")
    logger.setLevel(logging.DEBUG if verbose or os.environ.get("SCANVIT_DEBUG") else logging.WARNING)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process. Errors end in a sentence on stderr, not in a traceback."""
    try:
        result = root.main(args=args, prog_name="scanvit", standalone_mode=False)
        sys.stdout.flush()
    except (_ReaderGoneError, BrokenPipeError):
        return _closed_pipe()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return 130
    except Exception as error:  # the one place where an error of any kind becomes an exit code
        return _report(error)
    return result if isinstance(result, int) else 0  # click hands on the code of ctx.exit()


def _report(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Free some space, or choose another folder; then run the same command again."
        error = NoSpaceError(f"No space is left to write {error.filename or 'a file'}.", hint=hint).with_traceback(error.__traceback__)
    if logging.getLogger("scanvit").isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    if isinstance(error, ScanvitError):
        _say(error.message, error.hint)
        return error.exit_code
    if isinstance(error, MemoryError):
        _say("The machine ran out of memory.", "Use a smaller batch: --set trainer.per_device_batch_size=8, or a smaller image size.")
        return 1
    _say(f"Unexpected {type(error).__name__}: {_first_line(error)}", _keep_traceback(error))
    return 1


def _say(message: str, hint: str | None) -> None:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {printable(message)}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {printable(hint)}", err=True)


def printable(text: str) -> str:
    """File names come from outside: escape what could steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")


def _keep_traceback(error: Exception) -> str:
    text = "".join(traceback.format_exception(error))
    try:
        descriptor, name = tempfile.mkstemp(prefix="scanvit-traceback-", suffix=".txt")
        os.close(descriptor)
        Path(name).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return f"This is a fault of scanvit. No file could be written, so here is its traceback:\n{text}"
    return f"This is a fault of scanvit. Its traceback is in {name}: please report it."


def _closed_pipe() -> int:
    """The reader left (`| head`): say nothing, end as a program killed by SIGPIPE would."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter's last flush complains
    return 141
