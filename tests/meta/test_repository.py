"""What must not be in the repository, and what must be in the package."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FORBIDDEN = {
    "a path of one machine": r"(?<![\w.}])/(?:work|root|opt)/(?!rocm|conda)|/home/(?!jovyan|ray|ubuntu|cc\b)\w+/",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "a token of a code host": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{40,}|glpat-[\w-]{20})\b",
    "a private key": r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
    "a password": r"(?i)\b(?:password|passwd|secret_key|access_key|api_key|auth_token)\b[\"']?\s*[:=]\s*[\"'](?!\$|\{)[^\s\"'{}$<>]{8,}[\"']",
    "a credential in an address": r"://[^\s/:@\"'{}$<>]+:[^\s/@\"'{}$<>]{3,}@",
}
BINARY = {".png", ".jpg", ".jpeg", ".npz", ".npy", ".gz", ".zip", ".tar", ".dcm"}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str, repository: Path, repository_files: list[Path]) -> None:
    pattern = re.compile(FORBIDDEN[what])
    hits = []
    for path in repository_files:
        if path.suffix.lower() in BINARY:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if pattern.search(line):
                hits.append(f"{path.relative_to(repository)}:{number}")
    assert not hits


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of one machine", "open('" + "/wo" + "rk/main/x')"),
        ("a path of one machine", "cd " + "/roo" + "t/.cache"),
        ("an AWS key", "AKIA" + "A" * 16),
        ("a password", "pass" + "word = 'correct-horse'"),
        ("a credential in an address", "postgresql://me:" + "hunter2@localhost/db"),
        ("a private key", "-----BEGIN " + "RSA PRIVATE KEY-----"),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)


def test_no_large_file_is_committed(repository: Path, repository_files: list[Path]) -> None:
    assert not [f"{path.relative_to(repository)}: {path.stat().st_size} bytes" for path in repository_files if path.stat().st_size > 2_000_000]


def test_no_module_grows_past_one_reading(repository: Path, repository_files: list[Path]) -> None:
    python = [path for path in repository_files if path.suffix == ".py" and "src" in path.relative_to(repository).parts]
    assert python
    assert not {str(path.relative_to(repository)): n for path in python if (n := len(path.read_text(encoding="utf-8").splitlines())) > 350}


def test_no_module_is_called_utils(repository_files: list[Path]) -> None:
    assert not [path.name for path in repository_files if path.stem in {"utils", "util", "helpers", "misc", "common"}]


def test_scripts_can_be_run_and_stop_at_the_first_error(repository: Path) -> None:
    scripts = [*(repository / "scripts").iterdir(), repository / ".ci" / "run"]
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert script.stat().st_mode & 0o111, f"{script.name} cannot be run"
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nset -euo pipefail\n" in text


def test_the_workflow_pins_its_actions_and_may_only_read(repository: Path) -> None:
    for path in (repository / ".github" / "workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", use) for use in re.findall(r"uses: (\S+)", text))
        assert "permissions:\n  contents: read\n" in text
        assert "secrets." not in text


def test_the_wheel_carries_its_data_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=repository, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in inside if re.fullmatch(r"scanvit-[^/]+/entry_points.txt", name))
    source = repository / "src"
    wanted = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    # And what `scanvit platform` builds images and starts stacks from.
    beside = [path for folder in ("deploy", "examples", "requirements") for path in (repository / folder).rglob("*") if path.is_file()]
    beside += [repository / name for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE")]
    wanted |= {f"scanvit/{path.relative_to(repository)}" for path in beside if "__pycache__" not in path.parts}
    assert {"scanvit/py.typed", "scanvit/experiments/reference.yaml", "scanvit/deploy/compose.yaml", "scanvit/deploy/Containerfile"} <= wanted
    assert wanted == {name for name in inside if not re.match(r"scanvit-[^/]+\.dist-info/", name)}
    assert "scanvit = scanvit.cli:main" in entry_points
    assert any(name.endswith("licenses/LICENSE") for name in inside)
