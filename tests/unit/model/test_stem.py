from __future__ import annotations

import pytest
import torch

from scanvit.core.errors import ConfigError
from scanvit.model.stem import ConvStem


@pytest.mark.parametrize("widths", [(4, 5), (3, 4, 5, 6), (3, 3, 3, 4, 5)])
def test_only_the_last_two_blocks_halve_the_image(widths: tuple[int, ...]) -> None:
    stem = ConvStem(widths, channels=3)
    x = torch.randn(2, 3, 16, 24)
    sizes = []
    for block in stem:
        x = block(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes[-3:] == [*([(widths[-3], 16, 24)] if len(widths) > 2 else []), (widths[-2], 8, 12), (widths[-1], 4, 6)]
    assert all(size[1:] == (16, 24) for size in sizes[:-2])


def test_channels_last_is_kept_and_changes_no_value() -> None:
    torch.manual_seed(0)
    stem = ConvStem((8, 8, 16), channels=3).eval()
    images = torch.randn(2, 3, 16, 16)
    plain = stem(images)
    last = stem.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widths", [(), (64,), (64, 0, 64)])
def test_widths_that_make_no_stem_are_named(widths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="stem_widths is"):
        ConvStem(widths, channels=1)
