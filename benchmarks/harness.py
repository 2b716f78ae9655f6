"""What all benchmarks share: contestants in processes of their own that take turns, figures with floors, and the record of a run."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

FLOORS = Path(__file__).parent / "floors.json"
RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("scanvit", "torch", "lightning", "onnxruntime", "numpy", "pillow", "ray")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was asked for."""

    quick: bool = False
    """Fewer rounds and smaller sets: to see that all runs, not to quote."""
    work: Path = Path("/tmp")
    """Scratch folder, emptied afterwards."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times better than a baseline that took turns with us."""

    name: str
    """Key in floors.json."""
    what: str
    ours: float
    baseline: float
    unit: str
    """Of both; a unit that ends in "/s" is better when it is larger, any other (s, ms, of 255) when it is smaller."""
    n: int
    ratios: tuple[float, ...] = ()
    """Of each round; the ratio is their median where they are given."""

    @property
    def ratio(self) -> float:
        if self.ratios:
            return statistics.median(self.ratios)
        return self.ours / self.baseline if self.unit.endswith("/s") else self.baseline / self.ours


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage takes, and how that grows."""

    name: str
    what: str
    value: float
    unit: str
    n: int = 1
    at_10k: str = ""
    at_1m: str = ""
    how: str = ""
    """How the growth is known: measured, simulated, or the reason that there is none."""


Figure = Ratio | Cost


class Skipped(Exception):  # noqa: N818 - nothing went wrong
    """A suite that this machine cannot run, and why."""


class Contestant:
    """A process that runs ``target(report, *arguments)``. Each report of a value ends a turn; the next begins when it is asked for."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._mine, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, target, arguments), daemon=False)
        self._process.start()
        theirs.close()

    def turn(self) -> tuple[float, float]:
        """(seconds, value) of one turn. The first one contains whatever the contestant has to build."""
        start = time.perf_counter()
        self._mine.send("go")
        value = self._mine.recv()
        return time.perf_counter() - start, value

    def close(self) -> None:
        self._mine.close()
        self._process.join(20)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


class _Over(BaseException):
    """The benchmark has seen enough. No Exception, so that no contestant's own handling takes it for a fault."""


def _run(pipe: Any, target: Callable[..., None], arguments: Sequence[Any]) -> None:
    def report(value: float) -> None:
        pipe.send(value)
        wait()

    def wait() -> None:
        try:
            pipe.recv()
        except EOFError:
            raise _Over from None

    try:
        wait()
        target(report, *arguments)
    except _Over:
        os._exit(0)


def in_turns(contestants: Mapping[str, Callable[[], Any]], rounds: int, *, clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of every call, after one call of each to warm up."""
    for call in contestants.values():
        call()
    times_s: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            start_s = clock()
            call()
            times_s[name].append(clock() - start_s)
    return times_s


def floors() -> dict[str, float]:
    values: dict[str, float] = json.loads(FLOORS.read_text(encoding="utf-8"))
    return values


def below(figures: Sequence[Figure], least: Mapping[str, float]) -> list[Ratio]:
    """The ratios under their floors. A ratio without a floor is an error: nobody would notice it falling."""
    ratios = [figure for figure in figures if isinstance(figure, Ratio)]
    if missing := [ratio.name for ratio in ratios if ratio.name not in least]:
        raise SystemExit(f"No floor for {', '.join(missing)} in {FLOORS.name}.")
    return [ratio for ratio in ratios if ratio.ratio < least[ratio.name]]


def machine() -> dict[str, Any]:
    """Hardware and versions, for the record."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "versions": versions,
    }


def record(suite: str, figures: Sequence[Figure], about: Mapping[str, Any], *, quick: bool, folder: Path = RESULTS) -> Path:
    """Write the suite's figures to ``folder``; a quick run does not replace the record of a whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{suite}{'.quick' if quick else ''}.json"
    rows = [asdict(figure) | ({"ratio": figure.ratio} if isinstance(figure, Ratio) else {}) for figure in figures]
    path.write_text(json.dumps({"about": dict(about), "figures": rows}, indent=2) + "\n", encoding="utf-8")
    return path
