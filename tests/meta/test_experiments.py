"""Every shipped experiment loads, and its head says how it was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from scanvit.core.loading import load_experiment

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = sorted((REPOSITORY / "src" / "scanvit" / "experiments").glob("*.yaml"))
EXAMPLES = sorted((REPOSITORY / "examples").rglob("*.y*ml"))


def head(path: Path) -> dict[str, str]:
    """The `key: value` lines of the comment at the top."""
    comment = [line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if line.startswith("#")]
    return dict(re.findall(r"^(\w+):\s+(\S.*)$", "\n".join(comment), flags=re.MULTILINE))


def test_the_experiments_of_the_readme_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= {"reference", "tiny", "modern", "small", "base"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_experiment_loads_and_says_how_it_was_measured(path: Path) -> None:
    experiment = load_experiment(path.stem)
    assert experiment.name == path.stem
    assert experiment.description
    assert experiment.data.pack is None, "a pack's path is the user's"
    said = head(path)
    assert {"command", "hardware", "time", "expected"} <= set(said)
    assert said["command"].startswith(f"scanvit train {path.stem}")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_an_example_is_yaml_with_a_comment_at_its_head(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    assert text.startswith("#")
