"""A trained network as MLflow's registry keeps and loads it: ``checkpoint.pth`` and the name of this module. No code, nothing pickled.

model = mlflow.pyfunc.load_model("models:/scanvit@champion")
model.predict([{"image": open("film.png", "rb").read()}])  # [{"lung-covid": 0.03, "lung-normal": 0.91, ...}]
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..core.errors import ImageError
from .inference import infer
from .predictions import softmax

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from ..model.checkpoint import Classifier

COLUMN = "image"


class ServedModel:
    """Bytes of image files in, the same pixel path as in training, a probability a class out."""

    def __init__(self, model: Classifier) -> None:
        self.model = model

    def predict(self, model_input: Any) -> list[dict[str, float]]:
        """{class: probability} of each image. ``model_input``: a table with a column of file contents, as MLflow makes it. One row an image.

        Raises ImageError, with the row's number, for bytes that are no usable image, and for a volume: its frames are images of their own.
        """
        from ..data.decode import decode_frames

        pixels = []
        for row, data in enumerate(model_input[COLUMN]):
            try:
                frames = decode_frames(bytes(data), self.model.contract)
            except ImageError as error:
                raise ImageError(f"Row {row}: {error.message}", hint=error.hint) from None
            if len(frames) != 1:
                raise ImageError(f"Row {row} is a volume of {len(frames)} frames.", hint="Give its frames one by one.")
            pixels.append(frames[0].pixels)
        if not pixels:
            return []
        logits, _ = infer(self.model, np.stack(pixels))
        return [dict(zip(self.model.class_names, map(float, probs), strict=True)) for probs in softmax(logits, self.model.temperature)]


def _load_pyfunc(data_path: str) -> ServedModel:
    """What MLflow calls, with the path of the checkpoint beside the model's description."""
    from ..model.checkpoint import load_model

    return ServedModel(load_model(data_path))


def save_served(model: Classifier, checkpoint: Path, folder: Path) -> None:
    """Write MLflow's description of the model, and a copy of its checkpoint, into a new folder."""
    import torch

    metadata = {"class_names": model.class_names, "contract": model.contract.to_dict(), "fingerprint": model.fingerprint, "metrics": model.metrics}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns of its own type hints
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=__name__,
            data_path=str(checkpoint),
            signature=signature(model.class_names),
            # Named, because finding them out would import all of it once more; everything else comes with scanvit.
            pip_requirements=[f"scanvit=={__version__}", f"torch=={torch.__version__.split('+')[0]}"],
            metadata=metadata,
        )


def signature(class_names: list[str]) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    return ModelSignature(inputs=Schema([ColSpec("binary", COLUMN)]), outputs=Schema([ColSpec("double", name) for name in class_names]))
