"""What a user can get wrong: one clear sentence, a hint, an exit code of its own, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.integration.conftest import Scanvit


@pytest.fixture
def folder(scanvit: Scanvit, small_pack: Path) -> Path:
    """A working folder with a good pack, a pack of another version, images, and things that are none."""
    here = scanvit.folder
    shutil.copytree(small_pack, here / "pack")
    shutil.copytree(small_pack, here / "newer")
    dataset = json.loads((here / "newer" / "dataset.json").read_text())
    (here / "newer" / "dataset.json").write_text(json.dumps(dataset | {"format": 99}))
    shutil.copytree(small_pack, here / "damaged")
    with open(here / "damaged" / "train.npy", "r+b") as file:
        file.truncate(1000)
    for name, count in (("healthy", 12), ("ill", 12), ("empty", 0)):
        (here / "images" / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng(index + len(name) * 100).integers(0, 256, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "images" / name / f"p{index}.png")
    patient = "(?P<patient>p[0-9]+)"
    classes = {"healthy": "healthy/*", "ill": "ill/*", "rare": "rare/*"}
    (here / "rare.yaml").write_text(json.dumps({"sources": [{"name": "mine", "path": "images", "classes": classes, "patient": patient}]}))
    (here / "typo.yaml").write_text(json.dumps({"sources": [{"name": "mine", "path": "images", "clases": classes}]}))
    (here / "notes.txt").write_text("no image")
    (here / "photo.gif").write_bytes(b"GIF89a" + bytes(100))
    (here / "weights.pth").write_bytes(b"no weights")
    return here


MISTAKES = [
    ("train tinny --pack pack", 11, "no experiment 'tinny'. Did you mean 'tiny'?"),
    ("train tiny --pack pack --set trainer.max_epoch=2", 12, "Did you mean 'trainer.max_epochs'?"),
    ("train tiny --pack pack --set optimizer.lr=fast", 10, "optimizer.lr is 'fast'"),
    ("train tiny --pack pack --set optimizer.lr", 10, "section.key=value"),
    ("train tiny", 31, "No pack is given"),
    ("train tiny --pack nowhere", 31, "There is no pack at nowhere"),
    ("train tiny --pack images", 31, "images is no pack"),
    ("train tiny --pack newer", 32, "a pack of format 99"),
    ("train tiny --pack damaged", 33, "train.npy"),
    ("train --resume images", 41, "images is no run"),
    ("train", 2, "Name an experiment"),
    ("train tiny --resume x", 2, "--resume continues"),
    ("trian tiny", 2, "No such command 'trian'"),
    ("data prepare nowhere -o new", 21, "nowhere"),
    ("data prepare typo.yaml -o new", 12, "Did you mean 'classes'?"),
    ("data prepare rare.yaml -o new", 25, "rare"),
    ("data prepare notes.txt -o new", 22, "notes.txt"),
    ("data prepare images -o pack", 30, "pack exists"),
    ("data prepare images -o images/packs/new", 30, "lies inside the source"),
    ("data prepare images -o notes.txt/new", 60, "notes.txt"),
    ("data audit nowhere", 31, "There is no pack at nowhere"),
    ("data phantom -o images", 60, "images"),
    ("evaluate images", 41, "images"),
    ("compare images", 40, "nothing to compare"),
    ("predict weights.pth images/ill/p0.png", 50, "weights.pth"),
    ("predict nowhere.pth images/ill/p0.png", 50, "nowhere.pth"),
    ("track sync images", 41, "images is no run"),
    ("ui images", 41, "images holds no mlflow.db"),
]


@pytest.mark.parametrize(("command", "code", "sentence"), MISTAKES, ids=[command for command, _, _ in MISTAKES])
def test_a_mistake_ends_in_a_sentence(scanvit: Scanvit, folder: Path, command: str, code: int, sentence: str) -> None:
    before = sorted(folder.rglob("*"))
    out = scanvit(*command.split(), code=code)
    assert sentence in " ".join(out.split())
    if code != 2:
        assert "error: " in out
        assert "hint: " in out
    left = [path for path in folder.rglob("*") if path not in before and path.name not in (".lock", "runs")]
    assert left == [], "nothing half-written stays"


def test_an_image_of_a_wrong_kind_is_told_beside_the_good_ones(scanvit: Scanvit, folder: Path) -> None:
    scanvit("train", "tiny", "--pack", "pack", "--run-dir", "run", "--set", "trainer.max_epochs=1", "--set", "tracking.mlflow=false")
    process = scanvit.start("predict", "run", "images/ill/p0.png", "photo.gif", "notes.txt", "images/ill/p1.png")
    out, err = process.communicate(timeout=120)
    lines = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 4
    assert [line["image"] for line in lines] == ["images/ill/p0.png", "photo.gif", "notes.txt", "images/ill/p1.png"]
    assert ["error" in line for line in lines] == [False, True, True, False]
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    assert "photo.gif" in err
    assert "photo.gif" in scanvit("predict", "run", "photo.gif", code=23)


@pytest.mark.parametrize("command", ["data phantom --patients-per-class 1 -o disk/new", "data prepare phantoms -o disk/new --image-size 256"])
def test_a_full_disk_ends_in_a_sentence_and_leaves_nothing(scanvit: Scanvit, small_disk: Path, command: str) -> None:
    scanvit("data", "phantom", "--patients-per-class", "2", "--no-flaws", "-o", "phantoms")
    assert "No space is left" in scanvit(*command.split(), code=61)
    assert [path for path in small_disk.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json") and ".work" not in path.as_posix()] == []
    assert not (small_disk / "new").exists()
