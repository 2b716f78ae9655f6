from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from scanvit.core.contract import PixelContract
from scanvit.core.errors import DataError
from scanvit.data import batches
from scanvit.data.archives.open import open_archive
from scanvit.data.batches import BATCH_BYTES, plan_batches, read_pixels, read_rows
from scanvit.data.decode import decode_image
from scanvit.data.decoding import decode_batches, open_work_folder
from scanvit.data.hashing import perceptual_hash, sha256_bytes
from scanvit.data.selection import Candidate, Candidates, Selection, select
from scanvit.data.sources import Source

CONTRACT = PixelContract(image_size_px=8)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(value).integers(0, 256, (12, 10), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def selection(tmp_path: Path) -> Selection:
    (tmp_path / "in" / "a").mkdir(parents=True)
    for number in range(7):
        (tmp_path / "in" / "a" / f"{number}.png").write_bytes(png(number) if number != 3 else b"broken")
    return select(Source(name="s", path="in"), open_archive(tmp_path / "in"))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_IMAGES", 3)


def sized(*sizes: int) -> Selection:
    archive = open_archive(Path(__file__).parent)
    return Selection(Source(name="s", path="."), archive, Candidates(Candidate(str(i), "a", str(i), None, size) for i, size in enumerate(sizes)))


def test_batches_are_bounded_in_images_and_in_bytes(tmp_path: Path) -> None:
    large = BATCH_BYTES
    batches = plan_batches([sized(1, 1, 1, 1), sized(large, 1, large + 1, 1)], tmp_path, CONTRACT)
    assert [(batch.source, batch.paths) for batch in batches] == [(0, ("0", "1", "2")), (0, ("3",)), (1, ("0",)), (1, ("1",)), (1, ("2",)), (1, ("3",))]
    assert len({batch.file for batch in batches}) == len(batches)


@pytest.mark.parametrize(("side_px", "channels", "expected"), [(64, 1, 256), (512, 1, 256), (1024, 3, 21), (4096, 3, 1)])
def test_batches_are_bounded_in_what_they_decode_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side_px: int, channels: Literal[1, 3], expected: int
) -> None:
    monkeypatch.setattr(batches, "BATCH_IMAGES", 256)
    planned = plan_batches([sized(*[1] * 300)], tmp_path, PixelContract(image_size_px=side_px, channels=channels))
    assert max(map(len, planned)) == expected
    assert sum(map(len, planned)) == 300


def run(selection: Selection, work: Path) -> tuple[int, list[int]]:
    open_work_folder(work, [selection], CONTRACT)
    finished: list[int] = []
    reused = decode_batches([selection], plan_batches([selection], work, CONTRACT), CONTRACT, workers=1, on_images=finished.append)
    return reused, finished


def test_a_batch_holds_pixels_and_rows_in_order(selection: Selection, tmp_path: Path) -> None:
    reused, finished = run(selection, tmp_path / "work")
    assert (reused, sum(finished)) == (0, 7)
    second = plan_batches([selection], tmp_path / "work", CONTRACT)[1]
    rows = read_rows(second)
    assert [row["path"] for row in rows] == ["a/3.png", "a/4.png", "a/5.png"]
    assert "no readable JPEG or PNG" in rows[0]["error"]
    image = decode_image(png(4), CONTRACT)
    row = rows[1]
    np.testing.assert_array_equal(read_pixels(second)[row["index"]], image.pixels)
    assert row["sha256"] == sha256_bytes(png(4))
    assert row["perceptual_hash"] == perceptual_hash(image.pixels)
    assert (row["width_px"], row["height_px"], row["format"]) == (10, 12, "PNG")


def test_finished_batches_are_not_decoded_again(selection: Selection, tmp_path: Path) -> None:
    run(selection, tmp_path / "work")
    plan_batches([selection], tmp_path / "work", CONTRACT)[2].file.unlink()
    assert run(selection, tmp_path / "work") == (6, [6, 1])


def test_other_images_or_another_contract_start_afresh(selection: Selection, tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(selection, work)
    open_work_folder(work, [selection], PixelContract(image_size_px=16))
    assert [path.name for path in work.iterdir()] == ["key.json"]
    run(selection, work)
    (tmp_path / "in" / "a" / "0.png").write_bytes(png(99) + b"\0")
    assert run(selection, work)[0] == 0


def test_a_damaged_batch_is_told_and_decoded_again(selection: Selection, tmp_path: Path) -> None:
    run(selection, tmp_path / "work")
    batch = plan_batches([selection], tmp_path / "work", CONTRACT)[0]
    batch.file.write_bytes(batch.file.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged"):
        read_rows(batch)
    assert run(selection, tmp_path / "work")[0] == 4


def test_a_file_that_goes_while_it_is_read_is_told(selection: Selection, tmp_path: Path) -> None:
    (tmp_path / "in" / "a" / "5.png").unlink()
    with pytest.raises(DataError, match="changed while it was read"):
        run(selection, tmp_path / "work")
