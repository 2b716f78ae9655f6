"""The notebooks of examples/, run from their first cell to their last."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **environment: str) -> str:
    """All that the notebook printed. A cell that fails, fails the test."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq|jupyter_client|nbclient")
def test_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = run("first_run.ipynb", monkeypatch, tmp_path, SCANVIT_EXAMPLE="here", SCANVIT_EXAMPLE_PATIENTS="6")
    assert "error" not in printed
    assert "accuracy " in printed
    assert "interval" in printed
    assert (tmp_path / "here" / "run" / "report.html").is_file()
    assert (tmp_path / "here" / "model_ckpt" / "checkpoint.pth").is_file()
    assert "lung-normal" in printed


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_output(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
