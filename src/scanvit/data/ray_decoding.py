"""Decoding on a Ray cluster, for sources too large for one machine. The pack is the one that a single machine makes, byte for byte.

A task is a few batches of one source: it opens the source by its path, reads its members and sends back what the batches' files hold; the
driver writes them. So every node must see the sources under the same path (a shared file system or the same read-only mount); the work
folder and the pack need to be seen by the driver alone. The tasks name their versions of what decodes, and refuse to work with others.

``RAY_ADDRESS`` is the cluster; without it a local one is started and stopped again. A folder or a zip archive suits best: a compressed tar
has no table of contents, and each task reads it from its beginning.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.contract import PixelContract
from ..core.errors import ConfigError, DataError, ScanvitError, SourcesError
from ..storage.atomic import write_bytes
from .archives.open import open_archive
from .batches import Batch, batch_images, decode_items, read_groups
from .file_rows import Asked, asked_of
from .selection import Selection

_RESULT_BYTES = 32 << 20
"""Pixels that a task sends back at most, unless one batch alone has more."""
_TASKS_PER_CPU = 4
"""Tasks are small enough for the last ones to end at about the same time."""
_RETRY_HINT = "Run the same command again: it goes on where it stopped."


def require_ray() -> Any:
    """The module ray. Raises ConfigError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed.", hint="Install it: pip install 'scanvit[ray]'.") from None
    return ray


def decode_on_ray(selections: Sequence[Selection], todo: Sequence[Batch], contract: PixelContract, *, on_images: Callable[[int], None]) -> None:
    """Decode the batches ``todo`` and write their files; ``on_images`` is told how many images were finished.

    A task whose node dies is run again elsewhere, three times. Raises DataError, SourcesError or what reading and decoding raise.
    """
    ray = require_ray()
    if not todo:
        return
    with _cluster(ray):
        decode = ray.remote(num_cpus=1, max_retries=3, scheduling_strategy="SPREAD")(_decode_span)
        pending: dict[Any, list[Batch]] = {}
        asked = [asked_of(selection.source) for selection in selections]
        for span in _spans(todo, contract, cpus=_cpus(ray)):
            # Asked anew each time: a cluster that grows gets more to do.
            while len(pending) >= 2 * _cpus(ray):
                _finish_one(ray, pending, on_images)
            archive = selections[span[0].source].archive.path.resolve()
            pending[decode.remote(str(archive), _size_bytes(archive), [batch.paths for batch in span], contract, asked[span[0].source], _versions())] = span
        while pending:
            _finish_one(ray, pending, on_images)


def _spans(todo: Sequence[Batch], contract: PixelContract, *, cpus: int) -> Iterator[list[Batch]]:
    """Consecutive batches of one source."""
    fitting = _RESULT_BYTES // (batch_images(contract) * math.prod(contract.shape))
    at_most = max(1, min(fitting, len(todo) // (_TASKS_PER_CPU * cpus)))
    span: list[Batch] = []
    for batch in todo:
        if span and (len(span) >= at_most or batch.source != span[0].source):
            yield span
            span = []
        span.append(batch)
    if span:
        yield span


def _decode_span(
    path: str, size_bytes: int | None, groups: list[tuple[str, ...]], contract: PixelContract, asked: Asked, versions: dict[str, str]
) -> list[bytes]:
    """Runs on a node of the cluster."""
    here = f"on the node {os.uname().nodename}"
    if versions != _versions():
        raise DataError(f"{_differences(versions, _versions())} {here}.", hint="Use one image or environment on all nodes: others may decode other pixels.")
    if not Path(path).exists():
        raise SourcesError(f"{path} is not there {here}.", hint="All nodes must see the sources under the same path: use a shared folder or mount.")
    if size_bytes != _size_bytes(Path(path)):
        raise SourcesError(f"{path} is another file {here}.", hint="All nodes must see the same sources: use a shared folder or mount.")
    wanted = {member for group in groups for member in group}
    return [decode_items(items, contract, asked) for items in read_groups(open_archive(Path(path)), groups, wanted)]


def _finish_one(ray: Any, pending: dict[Any, list[Batch]], on_images: Callable[[int], None]) -> None:
    (done,), _ = ray.wait(list(pending), num_returns=1)
    try:
        results = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ScanvitError):
            raise error.cause from None
        raise DataError(f"A decoding task failed: {error.cause!r}.", hint=_RETRY_HINT) from None
    except ray.exceptions.RayError as error:
        raise DataError(f"Ray lost a decoding task: {str(error).splitlines()[0]}", hint=_RETRY_HINT) from None
    for batch, data in zip(pending.pop(done), results, strict=True):
        write_bytes(batch.file, data)
        on_images(len(batch))


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    if ray.is_initialized():  # within a Ray job or a notebook: it is not ours to stop
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(address="local", include_dashboard=False, **quiet)  # "local": never one that happens to run on this machine
    except Exception as error:  # a plain one where its node is slow to start
        where = f"the Ray cluster at {address}" if address else "a local Ray cluster"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"There is no connection to {where}: {reason}", hint="Check RAY_ADDRESS and RAY_AUTH_MODE, or use --engine local.") from None
    try:
        yield
    finally:
        ray.shutdown()


def _cpus(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _size_bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _versions() -> dict[str, str]:
    """Of what the pixels depend on."""
    return {"scanvit": __version__, "pillow": version("pillow"), "numpy": version("numpy")}


def _differences(wanted: dict[str, str], found: dict[str, str]) -> str:
    return " and ".join(f"{name} is {found.get(name)} instead of {value}" for name, value in wanted.items() if found.get(name) != value)
