"""Nothing imports what it does not use: which large libraries a command may bring in, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scanvit.model.cpu_softmax import softmax_

LARGE = (
    *("torch", "lightning", "torchmetrics", "mlflow", "ray", "optuna", "sklearn", "scipy", "matplotlib", "pandas", "onnx", "onnxruntime"),
    *("pyarrow", "PIL", "jinja2", "numpy", "pydantic", "transformers", "IPython", "uvicorn", "boto3", "pydicom", "numba", "lark"),
)
MAY: dict[str, tuple[str, set[str]]] = {
    "--version": ("main(['--version'])", set()),
    "--help": ("main(['--help'])", set()),
    # Its probes are scikit-learn's; pandas is looked for by pyarrow, whatever it converts.
    "data audit": ("main(['data', 'audit', PACK])", {"numpy", "pyarrow", "PIL", "jinja2", "pydantic", "sklearn", "scipy", "pandas"}),
    "ray train, up to its cluster": ("import scanvit.cluster.train", {"numpy", "pyarrow", "pydantic", "PIL"}),
    # Each of its processes: no grammar of lark's, which jsonschema has read where rfc3987-syntax is installed (scripts/lock).
    "Ray itself": ("import ray", {"ray"}),
    # bf16 takes the softmax of attention, which the machine has compiled before.
    "train, its first step": (
        (
            "from torch.optim.optimizer import register_optimizer_step_post_hook\n"
            "register_optimizer_step_post_hook(lambda *_: (imported(), os._exit(0)))\n"
            "main(['train', 'tiny', '--pack', PACK, '--run-dir', RUN, '--set', 'trainer.precision=bf16-mixed'])"
        ),
        {"numpy", "pyarrow", "pydantic", "PIL", "torch", "lightning", "torchmetrics"},
    ),
}


_SCRIPT = f"""import os, sys
from scanvit.cli import main
_, PACK, RUN = sys.argv
def imported():
    print("imported", *(set({LARGE!r}) & set(sys.modules)), flush=True)
"""


@pytest.mark.parametrize("command", MAY)
def test_a_command_imports_what_it_uses(command: str, small_pack: Path, tmp_path: Path) -> None:
    softmax_(torch.zeros(1, 1, dtype=torch.bfloat16))
    code, may = MAY[command]
    arguments = [sys.executable, "-c", f"{_SCRIPT}{code}\nimported()", str(small_pack), str(tmp_path / "run")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    imported = set(done.stdout.splitlines()[-1].split()[1:])
    assert imported <= may, f"{command} also imports {sorted(imported - may)}"
