"""Every command of the documents is run by a test, or says why not."""

from __future__ import annotations

import pytest
from tests.guides import DOCUMENTS, Block, blocks

BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_each_block_of_commands_is_marked(block: Block) -> None:
    assert block.mark is not None, f"{block} holds commands: write <!-- run --> or <!-- not run: why --> above them\n{block.commands}"
    if block.mark == "not run":
        assert block.detail
        assert len(block.detail) > 10


def test_there_are_blocks_of_both_kinds() -> None:
    assert {block.mark for block in BLOCKS} == {"run", "not run"}
