"""The table of injected faults in docs/reliability.md, made from what the tests measured.

SCANVIT_RECORD_FAULTS=1 python -m pytest tests/integration/faults     measures, and writes both files
python -m tests.integration.faults.table                              writes the table from the recorded rows
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
RESULTS = REPOSITORY / "benchmarks" / "results" / "faults.json"
DOCUMENT = REPOSITORY / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: this table is written by the tests -->", "<!-- faults: end -->"
ENGINES = ("one process", "DDP", "Ray")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One injected fault and what became of the run."""

    engine: str
    """One of ``ENGINES``."""
    fault: str
    where: str
    exit_code: int
    """Of the command that the fault met; 0 where it went on by itself."""
    ended_s: float | None
    """From the fault until the command and all its processes had ended; None where it went on by itself."""
    lost_steps: int
    """Optimizer steps that had been made, and were made again."""
    recovery_s: float | None
    """To the first step that had not been made before: from the command that resumes, or from the fault where it went on by itself."""
    same_weights: bool
    """Whether the last and the best weights equal the undisturbed run's, bit for bit."""

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.engine, self.fault, self.where)


def load_rows() -> list[Row]:
    return [Row(**row) for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]] if RESULTS.is_file() else []


def merge(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """New rows take the places of old ones of the same fault, or come behind those of their engine."""
    return sorted({row.key: row for row in [*old, *new]}.values(), key=lambda row: ENGINES.index(row.engine))


def write(rows: Iterable[Row], about: Mapping[str, Any]) -> None:
    content = {"about": dict(about), "rows": [asdict(row) for row in rows]}
    RESULTS.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_document()


def write_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{render(load_rows())}\n\n{END}{after}", encoding="utf-8")


def render(rows: Iterable[Row]) -> str:
    lines = ["| engine | fault | where | exit code | ended after | work lost | recovered after | final weights |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        ended = "went on by itself" if row.ended_s is None else f"{row.ended_s:.1f} s"
        lost = f"{row.lost_steps} step{'' if row.lost_steps == 1 else 's'}"
        recovered = "" if row.recovery_s is None else f"{row.recovery_s:.1f} s"
        cells = (row.engine, row.fault, row.where, str(row.exit_code), ended, lost, recovered, "identical" if row.same_weights else "other")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def about_this_machine() -> dict[str, Any]:
    from importlib import metadata

    return {"cpu_count": os.cpu_count(), "torch": metadata.version("torch"), "lightning": metadata.version("lightning"), "runs": 1}


if __name__ == "__main__":
    write_document()
