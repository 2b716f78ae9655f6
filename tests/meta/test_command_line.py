"""`--help` of every command: it answers, it teaches, and it imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import click

ASK_EVERY_COMMAND = """
import sys
import click
from click.testing import CliRunner
from scanvit.cli import root

def walk(path, command):
    result = CliRunner().invoke(root, [*path, "--help"])
    assert result.exit_code == 0, (path, result.output, result.exception)
    assert "Usage: " in result.output, path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            walk([*path, name], command.get_command(context, name))

walk([], root)
heavy = {"torch", "pydantic", "lightning", "mlflow", "numpy", "pyarrow", "sklearn", "scipy", "PIL", "yaml", "jinja2", "rich", "torchmetrics", "ray", "optuna"}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
"""


def test_help_of_every_command_imports_only_click() -> None:
    done = subprocess.run([sys.executable, "-c", ASK_EVERY_COMMAND], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, scanvit; scanvit.__version__; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_command_and_option_says_what_it_does(commands: dict[str, click.Command]) -> None:
    silent = [name for name, command in commands.items() if not (command.help or "").strip()]
    options = [
        f"{name} {option.opts[0]}"
        for name, command in commands.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden and not option.help
    ]
    assert not silent
    assert not options


def test_the_first_help_names_the_first_command_to_type(commands: dict[str, click.Command]) -> None:
    text = commands[""].help or ""
    assert "scanvit demo" in text
    assert [text.index(stage) for stage in ("PACK", "RUN", "report.html")] == sorted(text.index(stage) for stage in ("PACK", "RUN", "report.html"))
