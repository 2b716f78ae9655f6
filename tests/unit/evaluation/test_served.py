from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scanvit.core.errors import ImageError
from scanvit.evaluation.predict import predict_files
from scanvit.evaluation.served import ServedModel
from scanvit.model.checkpoint import load_model


def png(seed: int) -> bytes:
    stream = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_bytes_give_what_the_file_gives(make_run: Callable[..., Any], tmp_path: Any) -> None:
    run = make_run()
    served = ServedModel(load_model(run.run_dir)).predict({"image": [png(0), png(1)]})
    for seed, row in enumerate(served):
        (tmp_path / "image.png").write_bytes(png(seed))
        (result,) = predict_files(run.run_dir, [tmp_path / "image.png"])
        assert row == pytest.approx(result.probabilities, abs=1e-6)
        assert sum(row.values()) == pytest.approx(1, abs=1e-6)
    assert ServedModel(load_model(run.run_dir)).predict({"image": []}) == []


def test_a_bad_row_is_named(make_run: Callable[..., Any], make_dicom: Callable[..., bytes]) -> None:
    model = ServedModel(load_model(make_run().run_dir))
    with pytest.raises(ImageError, match="Row 1: "):
        model.predict({"image": [png(0), b"no image"]})
    with pytest.raises(ImageError, match="Row 0 is a volume of 3 frames"):
        model.predict({"image": [make_dicom(np.zeros((3, 16, 16), np.uint8))]})
