from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from scanvit.pages.pictures import png_data_uri


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_their_pixels(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(channels, 8, 8), dtype=np.uint8)
    head, data = png_data_uri(pixels).split(",")
    assert head == "data:image/png;base64"
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert (back == (pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))).all()
