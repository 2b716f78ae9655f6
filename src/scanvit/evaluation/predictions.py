"""One row an image: what the network said about a whole split, and the parquet file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.errors import CheckpointError, DataError, RunError
from ..storage.atomic import atomic_file
from .inference import Progress, infer
from .outliers import OutlierDetector

if TYPE_CHECKING:
    import pyarrow as pa

    from ..data.pack import Pack
    from ..model.checkpoint import Classifier

_METADATA_KEY = b"scanvit"


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """N images by K classes. ``targets`` and ``predicted`` are indices into ``class_names``."""

    image_ids: list[str]
    patient_ids: list[str]
    sources: list[str]
    targets: npt.NDArray[np.int64]
    """(N,)"""
    logits: npt.NDArray[np.floating]
    """(N, K), as the network gives them, in float32; of a table from elsewhere, the logarithms of its probabilities, in float64."""
    class_names: list[str]
    fingerprint: str
    """Of the pack."""
    outlier_scores: npt.NDArray[np.float64] | None = None
    """(N,), above 1 is an outlier (``outliers``); None where the checkpoint cannot tell."""
    temperature: float = 1.0
    """What logits are divided by before they become probabilities."""
    checkpoint: dict[str, Any] = field(default_factory=dict)
    """The checkpoint's metrics: epoch, step, val_loss, val_accuracy."""

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def probs(self) -> npt.NDArray[np.float32]:
        """(N, K), calibrated; rows sum to 1."""
        return softmax(self.logits, self.temperature)

    @cached_property
    def log_odds(self) -> npt.NDArray[np.float64]:
        """(N, K), calibrated: of each class against all others. Ordered as the probabilities are, but never all the same near 0 or 1.

        To nine decimals: images whose probabilities are the same in all but the order of a sum are to be equal.
        """
        shifted = (self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True)) / self.temperature
        rows, top = np.arange(len(self)), self.predicted
        others = np.exp(shifted).sum(axis=1, keepdims=True) - np.exp(shifted)
        others[rows, top] = 1.0  # what a difference has lost; from the others themselves, below
        odds: npt.NDArray[np.float64] = shifted - np.log(others)
        shifted[rows, top] = -np.inf
        odds[rows, top] = -np.logaddexp.reduce(shifted, axis=1)
        return odds.round(9)

    @cached_property
    def predicted(self) -> npt.NDArray[np.int64]:
        """(N,), the class with the highest logit; of equals, the first."""
        return self.logits.argmax(axis=1)

    @cached_property
    def losses(self) -> npt.NDArray[np.float64]:
        """(N,), the negative log-likelihood of each target in nats, from the logits: no clipping of probabilities."""
        shifted = (self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True)) / self.temperature
        losses: npt.NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(self)), self.targets]
        return losses

    def take(self, rows: Sequence[int]) -> Predictions:
        """The given rows, in that order."""
        return replace(
            self,
            image_ids=[self.image_ids[row] for row in rows],
            patient_ids=[self.patient_ids[row] for row in rows],
            sources=[self.sources[row] for row in rows],
            targets=self.targets[rows],
            logits=np.ascontiguousarray(self.logits[rows]),
            outlier_scores=None if self.outlier_scores is None else self.outlier_scores[rows],
        )

    def save(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {"image_id": self.image_ids, "patient_id": self.patient_ids, "source": self.sources}
        columns |= {"target": self.targets.astype(np.int32), "prediction": self.predicted.astype(np.int32)}
        columns |= {f"prob_{k}": self.probs[:, k] for k in range(len(self.class_names))}
        columns |= {f"logit_{k}": self.logits[:, k] for k in range(len(self.class_names))}
        if self.outlier_scores is not None:
            columns["outlier_score"] = self.outlier_scores.astype(np.float32)
        about = {"format": 1, "class_names": self.class_names, "fingerprint": self.fingerprint}
        about |= {"temperature": self.temperature, "checkpoint": self.checkpoint}
        table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(about).encode()})
        with atomic_file(path) as file:
            pq.write_table(table, file)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Raises RunError for a file that this class did not write."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[_METADATA_KEY])
            names = about["class_names"]
            return cls(
                image_ids=table["image_id"].to_pylist(),
                patient_ids=table["patient_id"].to_pylist(),
                sources=table["source"].to_pylist(),
                targets=table["target"].to_numpy().astype(np.int64),
                logits=np.stack([table[f"logit_{k}"].to_numpy() for k in range(len(names))], axis=1),
                class_names=names,
                fingerprint=about["fingerprint"],
                outlier_scores=table["outlier_score"].to_numpy().astype(np.float64) if "outlier_score" in table.column_names else None,
                temperature=about.get("temperature", 1.0),
                checkpoint=about["checkpoint"],
            )
        except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
            raise RunError(f"{path} is no table of predictions: {error!r}.", hint="Write it again with `scanvit evaluate RUN`.") from error


def written_classes(table: pa.Table) -> list[str] | None:
    """Of a table that ``Predictions.save`` wrote; None of any other."""
    try:
        return [str(name) for name in json.loads((table.schema.metadata or {})[_METADATA_KEY])["class_names"]]
    except (KeyError, ValueError, TypeError):
        return None


def concatenate(tables: Sequence[Predictions]) -> Predictions:
    """One after the other. All are one network's, of one pack."""
    outliers = [table.outlier_scores for table in tables if table.outlier_scores is not None]
    return replace(
        tables[0],
        image_ids=[image for table in tables for image in table.image_ids],
        patient_ids=[patient for table in tables for patient in table.patient_ids],
        sources=[source for table in tables for source in table.sources],
        targets=np.concatenate([table.targets for table in tables]),
        logits=np.concatenate([table.logits for table in tables]),
        outlier_scores=np.concatenate(outliers) if len(outliers) == len(tables) else None,
    )


def softmax(logits: npt.NDArray[np.floating], temperature: float = 1.0) -> npt.NDArray[np.float32]:
    """(N, K) logits to probabilities, computed in float64."""
    powers = np.exp((logits.astype(np.float64) - logits.max(axis=1, keepdims=True)) / temperature)
    probs: npt.NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probs


def predict_split(model: Classifier, pack: Pack, split: str, *, processes: int = 1, progress: Progress | None = None) -> Predictions:
    """Every image of the split once, in the pack's order, whatever the number of processes: nothing is padded, dropped or repeated.

    Raises DataError for an empty split, CheckpointError where the network gives no numbers.
    """
    targets = np.asarray(pack.targets(split), dtype=np.int64)
    if not len(targets):
        filled = [name for name in ("train", "val", "test", "final_eval") if len(pack.targets(name))]
        raise DataError(f"The split {split!r} of the pack has no images.", hint=f"Choose another with --split: {', '.join(filled) or 'all are empty'}.")
    logits, traits = infer(model, pack.images(split), processes=processes, progress=progress)
    if broken := int((~np.isfinite(logits).all(axis=1)).sum()):
        raise CheckpointError(
            f"The network gives no finite numbers for {broken:,} of {len(logits):,} images.",
            hint="Its weights are damaged, or the training diverged: look at train_loss, and train again with a lower optimizer.lr.",
        )
    rows = pack.rows(split, "image_id", "patient_id", "source")
    return Predictions(
        image_ids=rows["image_id"].to_pylist(),
        patient_ids=rows["patient_id"].to_pylist(),
        sources=rows["source"].to_pylist(),
        targets=targets,
        logits=logits,
        class_names=list(model.class_names),
        fingerprint=pack.fingerprint,
        outlier_scores=outlier_scores(model, traits),
        temperature=model.temperature,
        checkpoint=dict(model.metrics),
    )


def outlier_scores(model: Classifier, traits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
    """(N, 2 S) -> (N,); None where the checkpoint holds no detector."""
    detector = model.calibration.get("outlier_detector")
    return OutlierDetector.from_dict(detector).score(traits) if detector else None
