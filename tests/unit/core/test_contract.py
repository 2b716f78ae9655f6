"""The pixel contract: one arithmetic, and no silent defaults for keys from elsewhere."""

from __future__ import annotations

import pytest
import torch

from scanvit.core.contract import PixelContract
from scanvit.core.errors import ConfigError


def test_normalising_follows_the_formula() -> None:
    pixels = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    expected = (torch.tensor([[0.0, 0.2, 1.0]]) - 0.4) / 0.25
    torch.testing.assert_close(PixelContract(mean=0.4, std=0.25).normalize(pixels), expected)
    assert pixels.tolist() == [[0, 51, 255]], "the pack's pixels stay as they are"


def test_a_contract_survives_a_dictionary_and_refuses_what_it_does_not_know() -> None:
    contract = PixelContract(image_size_px=128, channels=3)
    assert PixelContract.from_dict(contract.to_dict()) == contract
    with pytest.raises(ConfigError, match="'gamma'"):
        PixelContract.from_dict(contract.to_dict() | {"gamma": 2.2})


def test_a_contract_of_an_earlier_version_stays_what_it_was() -> None:
    earlier = {"image_size_px": 64, "channels": 1, "resample": "bilinear", "mean": 0.5, "std": 0.5}
    contract = PixelContract.from_dict(earlier)
    assert contract.jpeg == "reduced"
    assert contract.to_dict() == earlier, "fingerprints hold"
    assert PixelContract().jpeg == "frequencies"
    assert PixelContract.from_dict(PixelContract().to_dict()) == PixelContract()


@pytest.mark.parametrize("values", [{"image_size_px": 0}, {"channels": 2}, {"std": 0.0}, {"std": float("nan")}, {"resample": "nearest"}, {"jpeg": "full"}])
def test_impossible_values_are_refused(values: dict) -> None:
    with pytest.raises(ConfigError):
        PixelContract(**values)
