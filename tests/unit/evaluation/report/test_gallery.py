from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from scanvit.evaluation.predictions import Predictions
from scanvit.evaluation.report import gallery
from scanvit.evaluation.report.gallery import album, overlay_uri
from scanvit.evaluation.saliency import Case


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_a_map_is_clear_where_nothing_was_looked_at_and_red_where_most() -> None:
    image = opened(overlay_uri(np.array([[0.0, 1.0]], np.float32)))
    assert (image.mode, image.size) == ("RGBA", (2, 1))
    (*_, clear), (red, green, _, opaque) = (image.getpixel((x, 0)) for x in (0, 1))  # type: ignore[misc]
    assert clear == 0
    assert red > 200 > 50 > green
    assert opaque > 150


def test_pictures_are_the_originals_where_they_were_found_and_stop_at_the_budget(
    make_predictions: Callable[..., Predictions], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions, random = make_predictions([0, 1] * 5, classes=2), np.random.default_rng(0)
    images = random.integers(0, 256, size=(10, 1, 16, 16), dtype=np.uint8)
    original = random.integers(0, 256, size=(1, 160, 160), dtype=np.uint8)
    cases = [Case(row=row, is_right=False, maps={"rollout": random.random((4, 4)).astype(np.float32)}) for row in (3, 7)]
    coarse, sharp = album(cases, predictions, images, {7: original})
    assert (opened(coarse["uri"]).size, coarse["is_original"]) == ((16, 16), False)
    assert np.array_equal(np.asarray(opened(coarse["uri"])), images[3, 0])
    assert (opened(sharp["uri"]).format, opened(sharp["uri"]).size, sharp["is_original"]) == ("JPEG", (160, 160), True)
    assert [drawn["title"] for drawn in sharp["maps"]] == ["attention rollout"]
    assert sharp["called"] == predictions.class_names[predictions.predicted[7]]
    monkeypatch.setattr(gallery, "BUDGET_BYTES", 100)
    assert len(album(cases, predictions, images, {})) == 1
