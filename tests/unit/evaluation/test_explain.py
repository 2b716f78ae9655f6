"""Maps of a network that was trained on images where only a small mark tells the classes apart."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from scanvit.core.config import Experiment, ModelConfig
from scanvit.core.contract import PixelContract
from scanvit.core.loading import experiment_to_dict
from scanvit.evaluation.explain import METHODS, Method, explain
from scanvit.model.checkpoint import Classifier
from scanvit.model.vit import VisionTransformer

SIDE = 32
CONFIGS = {
    pool: ModelConfig(stem_widths=(8, 8), dim=16, depth=2, heads=2, dim_head=8, mlp_dim=32, pool=pool, pos_embed_std=0.02)  # type: ignore[arg-type]
    for pool in ("cls", "mean")
}


def marked(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise with a cross of 8 pixels, bright (class 1) or dark (class 0). Pixels, classes and the mark's corner."""
    random = np.random.default_rng(seed)
    pixels = random.normal(128, 15, size=(n, 1, SIDE, SIDE))
    classes, corners = random.integers(0, 2, size=n), random.integers(0, SIDE - 8, size=(n, 2))
    for image, k, (y, x) in zip(pixels, classes, corners, strict=True):
        image[0, y + 2 : y + 6, x : x + 8] = image[0, y : y + 8, x + 2 : x + 6] = 250 if k else 5
    return pixels.clip(0, 255).astype(np.uint8), classes, corners


@pytest.fixture(scope="module", params=["cls", "mean"])
def trained(request: pytest.FixtureRequest) -> Classifier:
    torch.manual_seed(0)
    contract = PixelContract(image_size_px=SIDE)
    network = VisionTransformer(CONFIGS[request.param], num_classes=2, image_size_px=SIDE, channels=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    pixels, classes, _ = marked(600, 1)
    images, targets = contract.normalize(torch.from_numpy(pixels)), torch.from_numpy(classes)
    for step in range(60):
        chosen = slice((step * 50) % 600, (step * 50) % 600 + 50)
        loss = torch.nn.functional.cross_entropy(network(images[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2, "the small network did not learn what the test builds on"
    record = {"experiment": experiment_to_dict(Experiment(model=CONFIGS[request.param])), "fingerprint": "", "audit": [], "metrics": {}}
    return Classifier(network, class_names=["dark", "bright"], contract=contract, record=record)


def on_the_mark(maps: np.ndarray, corners: np.ndarray) -> float:
    """The map's mean on the mark, as a multiple of its mean elsewhere."""
    scale = SIDE / maps.shape[1]
    inside, outside = [], []
    for values, corner in zip(maps, corners, strict=True):
        centers = (np.arange(len(values)) + 0.5) * scale
        rows, columns = ((centers > c - scale / 2) & (centers < c + 8 + scale / 2) for c in corner)
        mask = rows[:, None] & columns
        inside.append(values[mask].mean())
        outside.append(values[~mask].mean())
    return float(np.mean(inside) / np.mean(outside))


@pytest.mark.parametrize("method", METHODS)
def test_the_maps_find_what_tells_the_classes_apart(trained: Classifier, method: Method) -> None:
    pixels, classes, corners = marked(24, 2)
    maps = explain(trained, pixels, classes.tolist(), method=method)
    assert maps.shape == (24, 8, 8)
    assert maps.dtype == np.float32
    assert (maps.min(), maps.max()) == (0.0, 1.0)
    assert on_the_mark(maps, corners) > {"rollout": 1.2, "relevance": 1.5, "occlusion": 2.0}[method]


@pytest.mark.parametrize("method", METHODS)
def test_other_weights_give_another_map(trained: Classifier, method: Method) -> None:
    """Adebayo et al. 2018, "Sanity checks for saliency maps": a map that survives random weights shows the image, not the network."""
    pixels, classes, corners = marked(24, 3)
    torch.manual_seed(1)
    random = copy.copy(trained)
    random._modules = dict(trained._modules)
    random.network = VisionTransformer(trained.network.config, num_classes=2, image_size_px=SIDE, channels=1).eval()
    ours, theirs = (explain(model, pixels, classes.tolist(), method=method) for model in (trained, random))
    rank_correlation = np.mean([spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(ours, theirs, strict=True)])
    assert rank_correlation < 0.5
    assert on_the_mark(theirs, corners) < on_the_mark(ours, corners)


def test_each_image_has_its_own_map_however_many_there_are(trained: Classifier) -> None:
    pixels, classes, _ = marked(11, 4)
    together = explain(trained, pixels, classes.tolist())
    alone = [explain(trained, pixels[[i]], [int(classes[i])])[0] for i in range(11)]
    assert together == pytest.approx(np.stack(alone), rel=1e-3, abs=1e-4)  # batches of another size round otherwise on some processors


def test_explaining_leaves_the_network_as_it_was(trained: Classifier) -> None:
    pixels, classes, _ = marked(4, 5)
    before = trained.logits(torch.from_numpy(pixels)).detach()
    for method in METHODS:
        explain(trained, pixels, classes.tolist(), method=method)
    assert torch.equal(trained.logits(torch.from_numpy(pixels)).detach(), before)
    assert all(parameter.grad is None for parameter in trained.parameters()) or all(p.requires_grad for p in trained.parameters())
