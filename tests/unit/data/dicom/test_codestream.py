from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scanvit.core.errors import ImageError
from scanvit.data.dicom.codestream import codestream_shape


def encode(kind: str, mode: str = "L", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(30 * 20, dtype=np.uint32).astype(np.uint8).reshape(20, 30)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "components"),
    [
        (encode("JPEG"), 1),
        (encode("JPEG", "RGB", progressive=True, comment=b"x" * 300), 3),
        (encode("JPEG2000", no_jp2=True), 1),
        (encode("JPEG2000", "RGB"), 3),
        (b"\xff\xd8\xff\xff\xff\xf7\x00\x0b\x08\x00\x14\x00\x1e\x01\x01\x11\x00", 1),
    ],
    ids=["jpeg", "progressive", "j2k", "jp2", "jpeg-ls"],
)
def test_the_shape_is_the_header_s(data: bytes, components: int) -> None:
    assert codestream_shape(data) == (30, 20, components)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\x00\x00", b"hello", b"\xff\x4f\xff\x51\x00\x29", encode("JPEG")[:60]]
)
def test_what_has_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="no readable header"):
        codestream_shape(data)


@given(st.binary(max_size=100), st.sampled_from([b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51"]))
def test_any_bytes_end_in_a_shape_or_an_image_error(tail: bytes, head: bytes) -> None:
    with suppress(ImageError):
        assert len(codestream_shape(head + tail)) == 3
