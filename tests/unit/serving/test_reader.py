from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scanvit.core.contract import PixelContract
from scanvit.core.errors import RequestError
from scanvit.data.dicom import frames
from scanvit.evaluation.engine import Answers
from scanvit.serving import reader
from scanvit.serving.reader import MOST_FRAMES, read_image


class OneAnswer:
    """An engine that says the same of every image."""

    name, explained_by, class_names, calibration = "none", "relevance", ["a", "b"], None
    contract = PixelContract(image_size_px=16)

    def __call__(self, pixels: np.ndarray) -> Answers:
        logits = np.tile(np.array([[2.0, 0.0]], np.float32), (len(pixels), 1))
        return Answers(logits, np.tile(np.array([[0.88, 0.12]], np.float32), (len(pixels), 1)), None)

    def explain(self, pixels: np.ndarray, classes: list[int]) -> np.ndarray:
        return np.ones((len(pixels), 4, 4), np.float32)


def read(data: bytes, **options: Any) -> Any:
    return read_image(OneAnswer(), data, **({"first_reading": None, "frame": 1, "pictures": True} | options))  # type: ignore[arg-type]


def test_too_many_frames_are_refused_before_one_is_decoded(make_dicom: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "decode_frames", lambda *args, **options: pytest.fail("pixels were decoded"))
    for data, said in (
        (make_dicom(np.zeros((MOST_FRAMES + 1, 8, 8), np.uint8)), f"{MOST_FRAMES + 1} frames"),
        (make_dicom(np.zeros((1, 8, 8), np.uint8), Rows=20_000, Columns=20_000), "400,000,000 pixels"),
    ):
        with pytest.raises(RequestError, match=said) as error:
            read(data)
        assert error.value.status == 413


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"])
def test_of_a_volume_the_picture_is_one_frame_and_the_only_one_decoded_for_it(
    make_dicom: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    decoded: list[int] = []
    gray: Callable[..., np.ndarray] = frames._gray
    monkeypatch.setattr(frames, "_gray", lambda header, layout, pixels, index: [decoded.append(index), gray(header, layout, pixels, index)][1])
    volume = np.stack([np.full((8, 8), 40 * number, np.uint8) for number in range(5)])
    found = read(make_dicom(volume, syntax=syntax), frame=4)
    assert decoded == [0, 1, 2, 3, 4, 3]
    assert [image.frame for image in found.images] == [1, 2, 3, 4, 5]
    with Image.open(io.BytesIO(base64.b64decode(found.pictures.image.partition(",")[2]))) as picture:
        assert np.unique(np.asarray(picture)).tolist() == [120]


def test_a_frame_that_is_not_there_is_named(make_dicom: Callable[..., bytes]) -> None:
    with pytest.raises(RequestError, match="no frame 3: the file holds 2"):
        read(make_dicom(np.zeros((2, 8, 8), np.uint8)), frame=3)
