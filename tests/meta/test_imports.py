"""The direction of the imports (docs/architecture.md), read from the syntax: imports inside functions count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

LAYERS = {"core": 0, "storage": 1, "pages": 2, "data": 3, "model": 3, "evaluation": 4, "training": 5, "serving": 5, "cluster": 6, "platform": 6, "cli": 7}
HEAVY = {"torch", "lightning", "mlflow", "sklearn", "scipy", "pyarrow", "ray", "torchmetrics", "optuna"}


def imported_modules(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Absolute dotted names, as tuples, of everything that ``tree`` imports; ``package`` is the importing module's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield (*module, alias.name)


def room(path: Path, source: Path) -> str:
    parts = path.relative_to(source).parts
    return parts[0] if len(parts) > 1 else ""


def rooms_imported(path: Path, source: Path) -> set[str]:
    package = ("scanvit", *path.relative_to(source).parts[:-1])
    names = imported_modules(ast.parse(path.read_text(encoding="utf-8")), package)
    return {name[1] for name in names if name[0] == "scanvit" and len(name) > 1 and name[1] in LAYERS}


def test_every_room_has_its_layer(source: Path) -> None:
    rooms = {path.parent.name for path in source.glob("*/__init__.py")}
    assert {"core", "storage", "pages", "data", "model", "evaluation", "training", "cli"} <= rooms <= set(LAYERS)


def test_imports_go_down_only(source: Path) -> None:
    wrong = [
        f"{path.relative_to(source)} imports {target}"
        for path in sorted(source.glob("*/**/*.py"))
        for target in sorted(rooms_imported(path, source))
        if target != room(path, source) and LAYERS[target] >= LAYERS[room(path, source)]
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle(source: Path) -> None:
    """Also inside a room, in functions and for types alone."""
    modules = {("scanvit", *path.relative_to(source).with_suffix("").parts): path for path in source.rglob("*.py") if path.name != "__init__.py"}
    below = {
        name: {target for imported in imported_modules(ast.parse(path.read_text(encoding="utf-8")), name[:-1]) for target in (imported, imported[:-1])}
        & (modules.keys() - {name})
        for name, path in modules.items()
    }
    try:
        tuple(TopologicalSorter(below).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(".".join(name) for name in reversed(error.args[1])))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from ..data import pack", {"data"}),
        ("from ..data.pack import Pack", {"data"}),
        ("def f():\n    import scanvit.training.fit", {"training"}),
        ("from .. import evaluation", {"evaluation"}),
        ("from .config import Experiment", {"core"}),
        ("from scanvit.cli import main", {"cli"}),
        ("import torch", set()),
    ],
)
def test_the_walker_sees_every_form_of_import(tmp_path: Path, code: str, expected: set[str]) -> None:
    path = tmp_path / "core" / "module.py"
    path.parent.mkdir()
    path.write_text(code)
    assert rooms_imported(path, tmp_path) == expected


def test_core_and_storage_import_nothing_heavy_at_their_top(source: Path) -> None:
    wrong = []
    for path in sorted([*source.glob("core/*.py"), *source.glob("storage/*.py"), source / "__init__.py"]):
        top = ast.Module(
            [node for node in ast.parse(path.read_text(encoding="utf-8")).body if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If)], []
        )
        wrong += [f"{path.relative_to(source)} imports {name[0]}" for name in imported_modules(top, ()) if name[:1] and name[0] in HEAVY]
    assert not wrong


def test_torchvision_pandas_and_matplotlib_are_not_used(source: Path) -> None:
    wrong = [
        f"{path.relative_to(source)} imports {name[0]}"
        for path in sorted(source.rglob("*.py"))
        for name in imported_modules(ast.parse(path.read_text(encoding="utf-8")), ())
        if name and name[0] in {"torchvision", "pandas", "matplotlib", "plotly"}
    ]
    assert not wrong


def test_no_checkpoint_is_unpickled(source: Path) -> None:
    wrong = [str(path.relative_to(source)) for path in source.rglob("*.py") if "weights_only=False" in path.read_text(encoding="utf-8")]
    assert not wrong
