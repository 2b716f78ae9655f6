"""The network as one whole graph: what compiling and exporting need."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scanvit.core.config import ModelConfig
from scanvit.model import VisionTransformer

pytestmark = pytest.mark.slow


@pytest.fixture
def network() -> VisionTransformer:
    torch.manual_seed(0)
    config = ModelConfig(stem_widths=(4, 4, 8), dim=8, depth=2, heads=2, dim_head=4, mlp_dim=16, drop_path=0.2, dropout=0.1)
    return VisionTransformer(config, num_classes=3, image_size_px=16, channels=1)


def test_forward_and_backward_compile_without_a_graph_break(network: VisionTransformer) -> None:
    # The eager backend traces the same graph, and needs no C++ compiler.
    compiled: nn.Module = torch.compile(network, backend="aot_eager", fullgraph=True)
    images = torch.randn(4, 1, 16, 16)
    compiled.train()
    compiled(images).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    compiled.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), network(images), rtol=0, atol=1e-5)


def test_exported_graph_takes_any_batch_size(network: VisionTransformer) -> None:
    network.eval()
    exported = torch.export.export(network, (torch.randn(4, 1, 16, 16),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},)).module()
    for batch in (1, 2, 7):
        images = torch.randn(batch, 1, 16, 16)
        torch.testing.assert_close(exported(images), network(images), rtol=0, atol=1e-5)
