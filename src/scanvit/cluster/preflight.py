"""Before anything starts: does every node run the same code, reach the storage, and see the pack?"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from .. import __version__
from ..core.errors import ClusterError, ClusterStorageError, ScanvitError
from ..data.pack import Pack
from .packs import PackSource
from .storage import Storage

_ANSWER_S = 120.0
_PROBE = "probe"


@dataclass(frozen=True)
class NodeReport:
    node: str
    """Its address."""
    storage_fault: str | None
    sees_pack: bool
    versions: dict[str, str]


def check_nodes(ray: Any, storage: Storage, pack: PackSource) -> bool:
    """Whether every node sees the pack under its path. Raises ClusterStorageError that names a node and the setting, or ClusterError for other versions."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = secrets.token_bytes(32)
    place = storage.below(_PROBE)
    if (fault := _probe(place, "driver", mark, None)) is not None:
        raise _refusal(storage, node_address(ray), fault)
    inspect = ray.remote(num_cpus=0, max_retries=0)(_inspect)
    tasks = {}
    for node in (node for node in ray.nodes() if node["Alive"]):
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        tasks[node["NodeManagerAddress"]] = inspect.options(scheduling_strategy=here).remote(place, node["NodeID"], mark, pack)
    reports = [_answer(ray, address, task) for address, task in tasks.items()]
    with contextlib.suppress(OSError):
        place.delete_folder()
    for report in reports:
        if report.storage_fault is not None:
            raise _refusal(storage, report.node, report.storage_fault)
    _refuse_other_versions(reports)
    return all(report.sees_pack for report in reports)


def _inspect(place: Storage, node_id: str, mark: bytes, pack: PackSource) -> NodeReport:
    """Runs on a node."""
    import ray

    return NodeReport(
        node=node_address(ray),
        storage_fault=_probe(place, node_id, mark, "driver"),
        sees_pack=pack.path is not None and _fingerprint(pack.path) == pack.fingerprint,
        versions=_versions(),
    )


def _probe(place: Storage, name: str, mark: bytes, other: str | None) -> str | None:
    """Write, read back, delete; and read what ``other`` wrote. What went wrong, or None."""
    if other is not None:
        try:
            shared = place.read(other) == mark
        except FileNotFoundError:
            shared = False
        except OSError as error:
            return f"cannot be read: {_reason(error)}"
        if not shared:
            return "is another place there than here: what the driver wrote is not seen"
    verb = "be written"
    try:
        place.make()
        place.write(name, mark)
        verb = "be read"
        if place.read(name) != mark:
            return "gives back other bytes than were written"
        verb = "be deleted in"
        if other is not None:
            place.delete(name)
    except OSError as error:
        return f"cannot {verb}: {_reason(error)}"
    return None


def _refusal(storage: Storage, node: str, fault: str) -> ClusterStorageError:
    settings = "--storage, which must be a folder that all nodes share, or s3://BUCKET" if storage.is_local else _S3_SETTINGS
    return ClusterStorageError(f"On the node {node} the storage {storage.address} {fault}.", hint=f"Check {settings}. Nothing was started.")


_S3_SETTINGS = "--storage (does the bucket exist?), AWS_ENDPOINT_URL (is it an address that every node reaches?), AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def _answer(ray: Any, address: str, task: Any) -> NodeReport:
    try:
        report = ray.get(task, timeout=_ANSWER_S)
    except ray.exceptions.GetTimeoutError:
        raise ClusterError(f"The node {address} did not answer within {_ANSWER_S:.0f} s.", hint="Look at it with: ray status. Nothing was started.") from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ScanvitError):
            raise error.cause from None
        hint = "Every node needs scanvit with Ray in the same versions as here: use one image or environment. Nothing was started."
        raise ClusterError(f"The node {address} cannot run scanvit: {_reason(error.cause or error)}.", hint=hint) from None
    except ray.exceptions.RayError as error:
        raise ClusterError(f"The node {address} was lost: {_reason(error)}.", hint="Run the same command again. Nothing was started.") from None
    assert isinstance(report, NodeReport)
    return report


def _versions() -> dict[str, str]:
    """Of what decides about the weights."""
    return {"scanvit": __version__, "torch": version("torch"), "lightning": version("lightning"), "numpy": version("numpy")}


def _refuse_other_versions(reports: Sequence[NodeReport]) -> None:
    ours = _versions()
    for report in reports:
        for name, value in ours.items():
            if report.versions.get(name) != value:
                raise ClusterError(
                    f"The node {report.node} has {name} {report.versions.get(name)}, and this is {value}.",
                    hint="Use one image or environment on all nodes: other versions train other weights. Nothing was started.",
                )


def _fingerprint(path: str) -> str | None:
    try:
        return Pack.open(path).fingerprint
    except (ScanvitError, OSError):
        return None


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno is not None and not str(error).startswith("When"):
        return f"{os.strerror(error.errno)}"
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def node_address(ray: Any) -> str:
    """Of the node that this process runs on, as the cluster knows it."""
    here = ray.get_runtime_context().get_node_id()
    return str(next((node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == here), here))
