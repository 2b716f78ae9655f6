"""The documents speak of commands, options, files and versions that exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])


def quoted_commands(text: str) -> list[str]:
    """`scanvit ...` in backticks, and lines of indented or fenced code."""
    spans = re.findall(r"`(scanvit [^`\n]*)`", text)
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    lines = re.findall(r"^ {4,}(scanvit [^\n`|]*)$", text, flags=re.MULTILINE) + re.findall(r"^\$? ?(scanvit [^\n|]*)$", fenced, flags=re.MULTILINE)
    return [re.split(r"\s+#|\s*[;&]", command)[0].strip() for command in [*spans, *lines]]


def resolve(words: list[str], commands: dict[str, click.Command]) -> tuple[str, list[str]]:
    """The longest known command at the head of ``words``, and the rest."""
    name = ""
    while words and (longer := f"{name} {words[0]}".strip()) in commands:
        name, words = longer, words[1:]
    return name, words


def faults(command: str, commands: dict[str, click.Command]) -> str | None:
    words = command.split()[1:]
    if words and words[0] == "COMMAND":
        words = words[1:]
    name, rest = resolve([w for w in words if w not in ("-v", "--verbose")], commands)
    found = commands[name]
    if isinstance(found, click.Group) and rest and not rest[0].startswith(("-", ".")) and not rest[0].isupper():
        return f"{command!r}: no command {rest[0]!r}"
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h", "--version"}
    wrong = [option for word in rest if (option := word.strip("[].,:").split("=")[0]).startswith("-") and len(option) > 1 and option not in known]
    return f"{command!r}: no option {wrong[0]}" if wrong else None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_a_document_exist(path: Path, commands: dict[str, click.Command]) -> None:
    assert not [fault for command in quoted_commands(path.read_text(encoding="utf-8")) if (fault := faults(command, commands))]


def test_the_readme_shows_every_command_but_no_other(commands: dict[str, click.Command]) -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert not [name for name in commands if name and " " not in name and f"scanvit {name}" not in text]
    assert len(quoted_commands(text)) > 10


def test_a_wrong_command_or_option_is_found(commands: dict[str, click.Command]) -> None:
    assert faults("scanvit tarin tiny", commands)
    assert faults("scanvit train tiny --pakc p", commands)
    assert not faults("scanvit data prepare images.zip -o packs/mine", commands)


def test_commands_in_messages_of_the_source_exist(source: Path, commands: dict[str, click.Command]) -> None:
    groups = {name for name, command in commands.items() if name and isinstance(command, click.Group)}
    wrong = []
    for path in source.rglob("*.py"):
        for group, child in re.findall(r"\bscanvit (\w+) ([a-z]+)\b", path.read_text(encoding="utf-8")):
            if group in groups and f"{group} {child}" not in commands:
                wrong.append(f"{path.relative_to(source)}: scanvit {group} {child}")
    assert not wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    anchors = {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        if (file and not (path.parent / file).exists()) or (not file and anchor not in anchors):
            missing.append(target)
    assert not missing


def test_the_version_is_the_same_everywhere() -> None:
    from scanvit import __version__

    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, flags=re.MULTILINE)[1] == __version__  # type: ignore[index]
    assert f"## [{__version__}]" in changelog


def test_contributing_stays_short() -> None:
    assert len((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) < 50
