"""Nothing imports what it does not use: which large libraries a command may bring in, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LARGE = (
    *("torch", "lightning", "torchmetrics", "mlflow", "ray", "optuna", "sklearn", "scipy", "matplotlib", "pandas", "onnx", "onnxruntime"),
    *("pyarrow", "PIL", "jinja2", "numpy", "pydantic", "transformers", "IPython", "uvicorn", "boto3", "pydicom"),
)
MAY: dict[str, tuple[str, set[str]]] = {
    "--version": ("main(['--version'])", set()),
    "--help": ("main(['--help'])", set()),
    # Its probes are scikit-learn's; pandas is looked for by pyarrow, whatever it converts.
    "data audit": ("main(['data', 'audit', PACK])", {"numpy", "pyarrow", "PIL", "jinja2", "pydantic", "sklearn", "scipy", "pandas"}),
    "train, up to its first step": (
        (
            "from scanvit.cli import train; from scanvit.data.pack import Pack; Pack.open(PACK); from scanvit.training.launch import quick_imports\n"
            "with quick_imports():\n    import scanvit.training.fit"
        ),
        {"numpy", "pyarrow", "pydantic", "PIL", "torch", "lightning", "torchmetrics"},
    ),
}


@pytest.mark.parametrize("command", MAY)
def test_a_command_imports_what_it_uses(command: str, small_pack: Path) -> None:
    code, may = MAY[command]
    script = f"import sys; from scanvit.cli import main; PACK = {str(small_pack)!r}\n{code}\nprint('imported', *(set({LARGE!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = set(done.stdout.splitlines()[-1].split()[1:])
    assert imported <= may, f"{command} also imports {sorted(imported - may)}"
