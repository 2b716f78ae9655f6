"""The documents' commands, run as a reader would: in one shell folder for a document, in their order."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from tests.guides import DOCUMENTS, REPOSITORY, blocks
from tests.integration.conftest import Scanvit

from scanvit.data.phantoms.chest import draw_chest
from scanvit.data.phantoms.folder import draw_phantoms

RUN = [document for document in DOCUMENTS if any(block.mark == "run" for block in blocks(document))]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documents take for granted: images of the reader's own, also as an archive, and the examples."""
    tmp_path = tmp_path_factory.mktemp("reader")
    draw_phantoms(tmp_path / "images", patients_per_class=4)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted((tmp_path / "images").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "images"))
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    scanvit = Scanvit(tmp_path)
    scanvit("data", "prepare", "images", "-o", "packs/mine", "--image-size", "16")
    gates = [word for gate in ("G1", "G2", "G3", "G4", "G5", "G6") for word in ("--acknowledge", f"{gate}=drawn images, for the documents")]
    scanvit("data", "audit", "packs/mine", *gates)
    scanvit("train", "tiny", "--pack", "packs/mine", "--run-dir", "runs/mine", "--set", "trainer.max_epochs=1")
    draw_elsewhere(tmp_path / "other")
    return tmp_path


def draw_elsewhere(folder: Path) -> None:
    """Images of another hospital, which has names of its own for the classes."""
    for class_name, finding in {"lung-normal": "normal", "PNEUMONIA": "opacity", "rare": "tuberculosis"}.items():
        (folder / class_name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(draw_chest(finding, patient_seed=1000 + number, image_seed=number)).save(folder / class_name / f"{number}.png")


@pytest.mark.parametrize("document", RUN, ids=lambda path: path.name)
def test_the_commands_do_what_the_document_says(document: Path, reader: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SCANVIT_", "AWS_", "RAY_"))}
    environment = clean | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    for block in blocks(document):
        if block.mark == "run":
            done = subprocess.run(["bash", "-euc", block.commands], cwd=reader, env=environment, capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode == block.exit_code, f"{block}\n{block.commands}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            assert "Traceback" not in done.stderr
