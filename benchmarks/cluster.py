"""What Ray costs: a run on a cluster of its own on this machine against plain DDP, two processes each, and what its start-up is made of."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .harness import Figure, Options
from .scaling import compare, start_up, take_turns


def run(options: Options) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="scanvit-cluster-", dir=options.work) as folder:
        runs = take_turns("tiny", ("ddp", "ray"), Path(folder), 1 if options.quick else 3)
    ratio = compare("cluster/ray", "tiny: Ray against plain DDP, two processes each", runs["ray"], runs["ddp"])
    return [ratio, *(start_up(f"tiny, {contestant}", found) for contestant, found in runs.items())]
