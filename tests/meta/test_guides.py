"""Every command of the documents is run by a test, or says why not."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from tests.guides import DOCUMENTS, REPOSITORY, Block, blocks

from scanvit.cli import root


def names(group: click.Command) -> Iterator[str]:
    if isinstance(group, click.Group):
        for name in group.list_commands(click.Context(group)):
            yield name
            child = group.get_command(click.Context(group), name)
            assert child is not None
            yield from names(child)


COMMANDS = set(names(root))
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_each_block_of_commands_is_marked(block: Block) -> None:
    assert block.mark is not None, f"{block} holds commands: write <!-- run --> or <!-- not run: why --> above them\n{block.commands}"
    if block.mark == "not run":
        assert len(block.detail or "") > 10, "say why"
    if block.mark == "tested":
        text = "".join((REPOSITORY / path).read_text(encoding="utf-8") for path in str(block.detail).split(", "))
        assert [words for words in said(block.commands) if not re.search(words, text)] == [], f"{block.detail} does not give these commands"


def said(commands: str) -> list[str]:
    """The commands and subcommands of scanvit in a block, as patterns of how a test writes them: ``"data", "pull"`` or ``scanvit data pull``."""
    found = [line.split()[1:] for line in commands.splitlines() if line.startswith("scanvit ")]
    names = [[word for word in line[:2] if re.fullmatch(r"[a-z][a-z-]+", word) and word in COMMANDS] for line in found]
    return [r'[",\s]+'.join(words) for words in names]


def test_there_are_blocks_of_all_kinds() -> None:
    assert {block.mark for block in BLOCKS} == {"run", "tested", "not run"}
