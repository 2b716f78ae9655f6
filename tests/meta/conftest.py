"""What the tests about the repository itself share."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def source() -> Path:
    return REPOSITORY / "src" / "scanvit"


@pytest.fixture(scope="session")
def repository_files() -> list[Path]:
    """Every file that is committed, or would be by `git add .`."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is no git checkout")
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [path for name in sorted(set(listing.stdout.split("\0"))) if name and (path := REPOSITORY / name).is_file()]


@pytest.fixture(scope="session")
def commands() -> dict[str, click.Command]:
    """Every command by its full name: "", "data", "data prepare", ..."""
    from scanvit.cli import root

    found: dict[str, click.Command] = {}

    def walk(name: str, command: click.Command) -> None:
        found[name] = command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for child in command.list_commands(context):
                below = command.get_command(context, child)
                assert below is not None, f"{child} is listed but does not exist"
                walk(f"{name} {child}".strip(), below)

    walk("", root)
    return found
