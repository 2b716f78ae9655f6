"""A compiled step computes what it computes one operation at a time."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from tests.unit.training.test_step import SETTINGS

from scanvit.core.contract import PixelContract
from scanvit.core.loading import load_experiment
from scanvit.model.vit import VisionTransformer
from scanvit.training.step import compiled, training_losses


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile wants a C++ compiler (c++)")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, about itself
def test_a_compiled_step_is_the_step() -> None:
    """Losses and gradients with the same random numbers. A smaller last batch goes through uncompiled, and brings no second graph."""
    experiment, contract = load_experiment("tiny", list(SETTINGS)), PixelContract(image_size_px=16)
    torch.manual_seed(0)
    network = VisionTransformer(experiment.model, num_classes=3, image_size_px=16, channels=1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=generator)
    targets = torch.arange(8) % 3
    settings = {"class_weights": torch.tensor([0.5, 1.0, 1.5]), "contract": contract, "experiment": experiment}

    def run(step: Any, count: int) -> list[torch.Tensor]:
        network.zero_grad()
        torch.manual_seed(7)
        losses, logits = step(network, pixels[:count], targets[:count], **settings)
        losses.mean().backward()
        return [losses.detach(), logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    torch._dynamo.utils.counters.clear()
    whole = compiled(training_losses, batch_size=8, cuda_graphs=False)
    for count in (8, 8, 5):
        for ours, theirs in zip(run(whole, count), run(training_losses, count), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
