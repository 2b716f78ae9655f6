"""The commands of the documents, block by block.

Above each block of commands stands, invisible to a reader, one of

    <!-- run -->                   the test runs it, as it stands, after the blocks before it in the same document
    <!-- run: exit code 3 -->      and it ends so
    <!-- tested: tests/FILE -->    a test of its own runs these commands, with its own values in place of the document's
    <!-- not run: why -->          it needs what a test has not: a card, a cloud, the network
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
_MARK = re.compile(r"^<!-- (run|tested|not run)(?:: (.+?))? -->$")
_NAMES = ("scanvit", "mlflow", "docker", "ray", "rclone", "kubectl", "ssh", "sudo", "torchrun", "python", "curl", "export", ".")
_PROGRAMS = (*(f"{name} " for name in _NAMES), "scripts/", "deploy/")


@dataclass(frozen=True)
class Block:
    document: Path
    line: int
    commands: str
    mark: str | None
    """run, tested, not run, or None where there is none."""
    detail: str | None

    @property
    def exit_code(self) -> int:
        return int(self.detail.removeprefix("exit code ")) if self.mark == "run" and self.detail else 0

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def blocks(document: Path) -> Iterator[Block]:
    """Fenced or indented blocks that hold commands."""
    lines, number, mark = document.read_text(encoding="utf-8").splitlines(), 0, None
    while number < len(lines):
        line = lines[number]
        if match := _MARK.match(line):
            mark = match
        elif line.startswith("```") or (line.startswith("    ") and (number == 0 or not lines[number - 1].strip())):
            start, number, code = number + 1, *_read(lines, number)
            if any(command.strip().startswith(_PROGRAMS) for command in code):
                yield Block(document, start, "\n".join(code), mark and mark[1], mark and mark[2])
            mark = None
            continue
        elif line.strip():
            mark = None
        number += 1


def _read(lines: list[str], number: int) -> tuple[int, list[str]]:
    """(the line behind the block, its lines)."""
    if lines[number].startswith("```"):
        end = next(i for i in range(number + 1, len(lines)) if lines[i].startswith("```"))
        return end + 1, lines[number + 1 : end]
    end = number
    while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
        end += 1
    return end, [line[4:] for line in lines[number:end] if line.strip()]
