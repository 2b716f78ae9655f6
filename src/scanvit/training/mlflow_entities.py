"""Events as MLflow's entities, within its limits on names and lengths. Nothing is left out: what is too long is cut, and says so."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.loading import flatten

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric, Param, RunTag

_MAX_KEY, _MAX_VALUE, _MAX_TAG, _MAX_DIGEST = 250, 6000, 8000, 36


def metric_key(name: str) -> str:
    """MLflow allows letters, digits, and ``_-. :/``, and no empty or dotted parts between slashes; a class name may hold anything.

    What has to be changed gets a few digits of its own at its end, so that two classes never become one curve.
    """
    key = "/".join(part if part.strip(". ") else "_" * max(len(part), 1) for part in re.sub(r"[^\w\-. :/]", "_", name).split("/"))
    if key == name and len(key) <= _MAX_KEY:
        return key
    digest = hashlib.blake2s(name.encode("utf-8", "surrogatepass"), digest_size=3).hexdigest()
    return f"{key[: _MAX_KEY - 7]}_{digest}"


def metrics(event: Mapping[str, Any]) -> list[Metric]:
    """The numbers of one event. null was a number that JSON does not know, and is sent as NaN."""
    from mlflow.entities import Metric

    timestamp_ms, values = int(event["time"] * 1000), dict(event["values"])
    if "val_loss" in values:  # once an epoch
        values["epoch"] = event["epoch"]
    return [Metric(metric_key(name), math.nan if value is None else float(value), timestamp_ms, int(event["step"])) for name, value in values.items()]


def params(experiment: Mapping[str, Any]) -> list[Param]:
    from mlflow.entities import Param

    return [Param(key, _cut(str(value), _MAX_VALUE)) for key, value in flatten(experiment).items()]


def tags(values: Mapping[str, Any]) -> list[RunTag]:
    from mlflow.entities import RunTag

    return [RunTag(key, _cut(str(value), _MAX_TAG)) for key, value in values.items()]


def dataset_input(values: Mapping[str, Any]) -> DatasetInput:
    """The pack as MLflow's data set: the digest is the head of the fingerprint, the profile holds all of it, the counts and the audit.

    The profile is what the run's page shows of the data set, a line each, of which it cuts off what is longer than 80 characters.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    images = {split: sum(counts.values()) for split, counts in values["counts"].items()}
    gates = {verdict: [gate for gate, found in values["audit"].items() if found == verdict] for verdict in dict.fromkeys(values["audit"].values())}
    profile = {
        "fingerprint": values["fingerprint"],
        "audit": values["audit_verdict"],
        "audit_gates": "; ".join(f"{verdict}: {' '.join(names)}" for verdict, names in gates.items()) or "none",
        "num_rows": sum(images.values()),
        "classes": len({name for counts in values["counts"].values() for name in counts}),
    } | {split: f"{count:,} images of {values['patients'].get(split, 0):,} patients" for split, count in images.items()}
    feature = {"name": "pixels", "type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *values["shape"]]}}
    target = {"name": "target", "type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}
    schema = {"mlflow_tensorspec": {"features": json.dumps([feature]), "targets": json.dumps([target])}}
    dataset = Dataset(
        name=_cut(str(values["name"]), 500),
        digest=str(values["fingerprint"])[:_MAX_DIGEST],
        source_type="local",
        source=json.dumps({"uri": values["path"]}),
        schema=json.dumps(schema),
        profile=json.dumps(profile, ensure_ascii=False),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training"), InputTag("scanvit.audit", values["audit_verdict"])])


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
