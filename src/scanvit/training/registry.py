"""From a run to a version in MLflow's model registry, with the gates that stand before an alias such as "champion"."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import AuditError, PackCorruptError, PackMismatchError, PackMissingError, PackVersionError, RegistryError, RunError, TrackingError
from ..core.events import read_events
from ..data.pack import Pack
from ..evaluation.champion import Judgement, judge
from ..evaluation.scores import Scores, scores_path
from ..evaluation.served import save_served
from ..model.checkpoint import Classifier, load_model
from ..model.registered import FILE_NAME as CHECKPOINT
from ..storage.checksum import sha256_file
from ..storage.mlflow_client import connect, describe_place, error_code, explain, patience
from .description import audit_verdict
from .run_folder import load_tracking
from .shipper import Shipper
from .tracking import sync

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_SPLIT = "test"
_JUDGED = (f"scores-{_SPLIT}.json", f"predictions-{_SPLIT}.parquet")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Registered:
    name: str
    version: int
    alias: str
    run_id: str
    place: str
    judgement: str
    """How it compared with the version that had the alias before."""
    created: bool
    """False where this very checkpoint was registered already."""


def register(run_dir: Path, *, alias: str = "champion", name: str | None = None, force: str | None = None, uri: str | None = None) -> Registered:
    """Put the run's checkpoint.pth into the registry and give it the alias. Safe to repeat.

    ``name``: of the registered model; left out, the tracking's experiment name. ``force``: a reason to do it in spite of the gates, kept as a
    tag. The run itself is sent to the tracking server first.

    Raises AuditError for a run on data whose audit failed unacknowledged or was never made, RegistryError for one that is worse than the
    alias's present version beyond the interval, RunMissingError for one without scores, RunError for scores of other weights, TrackingError.
    """
    name = name or load_tracking(run_dir).experiment_name
    for kind, value in (("model name", name), ("alias", alias)):
        if not _NAME.fullmatch(value) or (kind == "alias" and re.fullmatch(r"v\d+|latest", value)):
            raise RegistryError(f"{value!r} cannot be a {kind}.", hint="Use letters, digits, spaces, dots, dashes and underscores.")
    model, scores = load_model(run_dir), Scores.load(run_dir, _SPLIT)
    if scores.checkpoint != model.metrics:
        raise RunError(f"{scores_path(run_dir, _SPLIT)} is of other weights than {CHECKPOINT}.", hint=f"Score it again: scanvit evaluate {run_dir}")
    verdict = _check_audit(run_dir, model, force)
    shipper = sync(run_dir, uri=uri)
    try:
        entry = _Entry(run_dir, shipper, name=name, alias=alias)
        judgement = entry.judge(force)
        tags = {"scanvit.audit": verdict, "scanvit.compared": judgement} | ({"scanvit.forced": force} if force else {})
        version, created = entry.version(model, scores, tags)
        entry.client.set_registered_model_alias(name, alias, version.version)
    except (RegistryError, RunError):
        raise
    except Exception as error:
        raise TrackingError(
            f"The registry at {shipper.uri} cannot be used: {explain(error)}.",
            hint="Nothing is lost. Once it is back, give the same command again.",
        ) from error
    place = describe_place(shipper.uri)
    return Registered(name=name, version=int(version.version), alias=alias, run_id=shipper.run_id, place=place, judgement=judgement, created=created)


class _Entry:
    """One run's entry in the registry."""

    def __init__(self, run_dir: Path, shipper: Shipper, *, name: str, alias: str) -> None:
        self.run_dir, self.run_id, self.name, self.alias = run_dir, shipper.run_id, name, alias
        self.client: MlflowClient = connect(shipper.target)
        self.sha256 = sha256_file(run_dir / CHECKPOINT)

    def judge(self, force: str | None) -> str:
        """How the run compares with the alias's present version. Raises RegistryError for a worse one, unless forced."""
        champion = self._holder()
        if champion is None:
            return f"Nothing had the alias {self.alias!r} before."
        sha256 = champion.tags.get("scanvit.checkpoint_sha256", "")
        if sha256 == self.sha256:
            return f"Version {champion.version}, which has the alias {self.alias!r}, is this very checkpoint."
        if not sha256:
            judgement = Judgement(worse=True, sentence="It was not registered by scanvit, and has no scores to compare with.")
        else:
            with tempfile.TemporaryDirectory() as folder:
                judged = self.client.download_artifacts(str(champion.run_id), f"{_place(sha256)}/judged", folder)
                judgement = judge(self.run_dir, Path(judged), split=_SPLIT)
        sentence = f"Against version {champion.version}, which has the alias {self.alias!r}: {judgement.sentence}"
        if judgement.worse and not force:
            raise RegistryError(f"{self.run_dir} is worse than the {self.alias}. {sentence}", hint='To do it all the same, say why: --force "REASON"')
        return sentence

    def version(self, model: Classifier, scores: Scores, tags: dict[str, str]) -> tuple[ModelVersion, bool]:
        """The version of this very checkpoint, made where it is missing. The files are there before the version is."""
        self._ensure_model()
        for found in self.client.search_model_versions(f"name = '{self.name}' and run_id = '{self.run_id}'"):
            if found.tags.get("scanvit.checkpoint_sha256") == self.sha256:
                for key, value in tags.items():
                    self.client.set_model_version_tag(self.name, found.version, key, value)
                return found, False
        path = _place(self.sha256)
        with tempfile.TemporaryDirectory() as folder:
            save_served(model, self.run_dir / CHECKPOINT, Path(folder) / "model")
            (judged := Path(folder) / "model" / "judged").mkdir()  # what the next one is compared with, whatever becomes of the run
            for file in _JUDGED:
                shutil.copy(self.run_dir / file, judged)
            with patience((self.run_dir / CHECKPOINT).stat().st_size):
                self.client.log_artifacts(self.run_id, str(Path(folder) / "model"), path)
        tags = tags | {"scanvit.checkpoint_sha256": self.sha256, "scanvit.fingerprint": model.fingerprint}
        # As MLflow's own register_model gives it. Of runs:/ its server cannot read the files, and the version's page shows no signature.
        source = f"{self.client.get_run(self.run_id).info.artifact_uri}/{path}"
        made = self.client.create_model_version(self.name, source, self.run_id, tags=tags, description=_describe(scores), await_creation_for=0)
        return made, True

    def _holder(self) -> ModelVersion | None:
        try:
            return self.client.get_model_version_by_alias(self.name, self.alias)
        except Exception as error:
            # MLflow says INVALID_PARAMETER_VALUE of an alias that a model does not have.
            if error_code(error) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _ensure_model(self) -> None:
        try:
            self.client.create_registered_model(self.name)
        except Exception as error:
            if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                raise


def _place(sha256: str) -> str:
    """Where a version's files are among the artifacts of its run."""
    return f"model/{sha256[:12]}"


def _check_audit(run_dir: Path, model: Classifier, force: str | None) -> str:
    """The verdict on the data: of the pack as it is now, since a gate may have been acknowledged later; else of when the run was started."""
    verdict, failed = _audit(run_dir, model)
    if force or verdict in ("pass", "acknowledged"):
        return verdict
    if verdict == "fail":
        raise AuditError(
            f"The audit of the data of {run_dir} failed at {', '.join(failed)}, unacknowledged.",
            hint='Look at the audit.html of its pack, then mend the data or acknowledge the gate with a reason; or say why here: --force "REASON"',
        )
    raise AuditError(f"The data of {run_dir} was never audited.", hint="Audit its pack (scanvit data audit PACK), then register again.")


def _audit(run_dir: Path, model: Classifier) -> tuple[str, list[str]]:
    try:
        pack = Pack.open(str(model.experiment.get("data", {}).get("pack") or ""))
        if pack.fingerprint == model.fingerprint and (gates := pack.audit()):
            return audit_verdict(gates), [str(gate["gate"]) for gate in gates if gate.get("verdict") == "fail"]
    except (PackMissingError, PackCorruptError, PackVersionError, PackMismatchError):
        pass
    for event in read_events(run_dir):
        if event["kind"] == "dataset":
            gates = [{"gate": gate, "verdict": verdict} for gate, verdict in event["values"]["audit"].items()]
            return audit_verdict(gates), [gate["gate"] for gate in gates if gate["verdict"] == "fail"]
    return audit_verdict(model.audit), [str(gate.get("gate")) for gate in model.audit if gate.get("verdict") == "fail"]


def _describe(scores: Scores) -> str:
    accuracy = scores.overall["accuracy"]
    interval = "" if accuracy.low is None or accuracy.high is None else f" (95 % interval {accuracy.low:.4f} to {accuracy.high:.4f})"
    findings = ", ".join(str(gate.get("title") or gate.get("gate")) for gate in scores.audit)
    audit = f" Open findings of the data's audit: {findings}." if findings else ""
    return f"{scores.experiment}: accuracy {accuracy.value:.4f}{interval} on {scores.images:,} test images of {scores.patients:,} patients.{audit}"
