"""The tree of errors: the drawing, the classes and the README say the same."""

from __future__ import annotations

import re
from pathlib import Path

from scanvit.core import errors
from scanvit.core.errors import ScanvitError


def classes() -> list[type[ScanvitError]]:
    def below(kind: type[ScanvitError]) -> list[type[ScanvitError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    return [kind for kind in below(ScanvitError) if kind.__module__ == errors.__name__]


def drawing() -> dict[str, tuple[str | None, int]]:
    """Of the docstring: name -> (parent, exit code)."""
    drawn: dict[str, tuple[str | None, int]] = {}
    open_branches: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"^([ │├└─]*)(\w+Error)\s+(\d+)\b", line):
            indent, name, code = len(match[1]), match[2], int(match[3])
            open_branches = [(i, n) for i, n in open_branches if i < indent]
            drawn[name] = (open_branches[-1][1] if open_branches else None, code)
            open_branches.append((indent, name))
    return drawn


def test_the_drawn_tree_is_the_tree_of_the_classes() -> None:
    real = {kind.__name__: (kind.__base__.__name__ if kind is not ScanvitError and kind.__base__ else None, kind.exit_code) for kind in classes()}
    assert drawing() == real


def test_every_error_owns_its_exit_code() -> None:
    codes = [kind.exit_code for kind in classes()]
    assert len(codes) == len(set(codes))
    assert all("exit_code" in vars(kind) for kind in classes())
    assert not set(codes) & {0, 2, 130, 141}, "taken by success, click, the keyboard and a closed pipe"
    assert all(0 < code < 126 for code in codes)


def test_no_error_of_the_package_is_defined_elsewhere(source: Path) -> None:
    pattern = re.compile(r"^class [A-Za-z]\w*\((?:\w+\.)?(?:Exception|RuntimeError|ValueError|OSError|\w*ScanvitError)\)", flags=re.MULTILINE)
    wrong = [str(path.relative_to(source)) for path in source.rglob("*.py") if path.name != "errors.py" and pattern.search(path.read_text(encoding="utf-8"))]
    assert not wrong


def test_the_readme_lists_every_exit_code(repository: Path) -> None:
    table = (repository / "README.md").read_text(encoding="utf-8").split("## Exit codes")[1].split("\n## ")[0]
    listed: set[int] = set()
    for cell in re.findall(r"^\| ([\d, to]+) \|", table, flags=re.MULTILINE):
        first, _, last = cell.partition(" to ")
        listed |= set(range(int(first), int(last) + 1)) if last else {int(code) for code in cell.split(", ")}
    assert {kind.exit_code for kind in classes()} | {0, 2, 130} <= listed
