"""What a module says it offers is there."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "scanvit"
MODULES = sorted(".".join(("scanvit", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__") for path in SOURCE.rglob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_its_all_is_honest(name: str) -> None:
    if name == "scanvit.model.attention_kernels":
        pytest.importorskip("triton", reason="Triton is not installed: it is made for Linux alone")
    module = importlib.import_module(name)
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    missing = [n for n in names if not hasattr(module, n)]
    assert not missing
    assert module.__doc__ or not Path(module.__file__ or "").read_text(encoding="utf-8").strip(), "a module says at its head what it is for"


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import scanvit

    with pytest.raises(AttributeError, match="no attribute 'unheard_of'"):
        _ = scanvit.unheard_of
