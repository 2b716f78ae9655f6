"""What can be tested of the Ray engine without Ray; the rest is in tests/integration/test_ray_decoding.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scanvit.cli import main
from scanvit.core.contract import PixelContract
from scanvit.core.errors import DataError, SourcesError
from scanvit.data import ray_decoding
from scanvit.data.batches import Batch
from scanvit.data.ray_decoding import _decode_span, _spans, _versions
from scanvit.data.selection import Candidates


def batches(*sources: int) -> list[Batch]:
    return [Batch(source, Candidates(), 0, 0, Path(f"{number}.npz")) for number, source in enumerate(sources)]


@pytest.mark.parametrize("side_px", [8, 64, 4096])
@pytest.mark.parametrize("cpus", [1, 4, 64])
def test_spans_hold_every_batch_once_in_order_and_one_source_each(side_px: int, cpus: int) -> None:
    todo = batches(*[0] * 70, *[1] * 3, *[2] * 40)
    spans = list(_spans(todo, PixelContract(image_size_px=side_px), cpus=cpus))
    assert [batch for span in spans for batch in span] == todo
    assert all(len({batch.source for batch in span}) == 1 for span in spans)
    assert len(spans) >= min(len(todo), 4 * cpus) // 2
    if side_px == 4096:
        assert all(len(span) == 1 for span in spans), "results would not fit into memory"


def test_a_source_that_a_node_does_not_see_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourcesError, match=r"nothing\.zip is not there on the node") as caught:
        _decode_span(str(tmp_path / "nothing.zip"), 3, [], PixelContract(image_size_px=8), None, _versions())
    assert "shared folder" in str(caught.value.hint)


def test_another_file_under_the_same_path_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", train_images=np.zeros((1, 8, 8), np.uint8), train_labels=np.zeros((1, 1), np.uint8))
    with pytest.raises(SourcesError, match="another file on the node"):
        _decode_span(str(tmp_path / "set.npz"), 3, [], PixelContract(image_size_px=8), None, _versions())


def test_another_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pillow is .* instead of 1\.0 on the node"):
        _decode_span(str(tmp_path), None, [], PixelContract(image_size_px=8), None, _versions() | {"pillow": "1.0"})


def test_without_ray_the_command_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "in").mkdir()
    assert main(["data", "prepare", str(tmp_path / "in"), "-o", str(tmp_path / "pack"), "--engine", "ray"]) == 10
    assert "scanvit[ray]" in capsys.readouterr().err


def test_a_cluster_that_does_not_start_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nSee the logs.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    with pytest.raises(DataError, match=r"no connection to a local Ray cluster: The current node timed out during startup"), ray_decoding._cluster(ray):
        raise AssertionError


def test_nothing_to_do_starts_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_decoding, "require_ray", object)
    ray_decoding.decode_on_ray([], [], PixelContract(image_size_px=8), on_images=lambda _: pytest.fail("nothing was decoded"))
