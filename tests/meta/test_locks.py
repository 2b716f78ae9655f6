"""The locks: pinned, hashed, without a host, and of one mind."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = sorted((REPOSITORY / "requirements").glob("*.txt"))
IMAGES = ("build", "train", "ray", "jupyter", "mlflow")


def entries(path: Path) -> list[tuple[Requirement, list[str]]]:
    """Each requirement with its SHA-256 hashes."""
    lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [(Requirement(line.split("--hash")[0].strip()), re.findall(r"--hash=sha256:([0-9a-f]{64})(?:\s|$)", line)) for line in lines if line.strip()]


def pin(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    return Version(specifier.version)


def names(path: Path) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement, _ in entries(path)}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def test_the_locks_that_the_scripts_use_are_there() -> None:
    assert {path.stem for path in LOCKS} == {"base", "dev", "all", "torch-cpu", "torch-cuda", *IMAGES}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_entry_is_pinned_and_hashed(path: Path) -> None:
    assert entries(path)
    for requirement, hashes in entries(path):
        assert [specifier.operator in ("==", "===") for specifier in requirement.specifier] == [True], requirement
        assert "*" not in str(requirement.specifier)
        assert requirement.url is None
        assert hashes, f"{requirement} has no hash"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_no_lock_names_a_host_or_a_path(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"[:]//|file:|\s@\s|index-url|find-links|^\s*#|^-|^\.|(?<![\w.])/", text, flags=re.MULTILINE)
    assert "torchvision" not in text


def test_all_locks_agree_on_every_version() -> None:
    seen: dict[str, set[str]] = {}
    for path in LOCKS:
        for requirement, _ in entries(path):
            seen.setdefault(canonicalize_name(requirement.name), set()).add(pin(requirement).public)
    assert not {name: versions for name, versions in seen.items() if len(versions) > 1}


def test_each_larger_lock_holds_the_smaller_one() -> None:
    base, everything, dev = (names(REPOSITORY / "requirements" / f"{name}.txt") for name in ("base", "all", "dev"))
    assert base < everything < dev
    assert "torch" not in dev
    assert not {name for name in dev if name.startswith(("nvidia-cu", "cuda-"))}
    assert "triton" in dev - everything


def test_each_image_is_built_on_the_one_before() -> None:
    build, train, ray, jupyter, mlflow = (names(REPOSITORY / "requirements" / f"{name}.txt") for name in IMAGES)
    assert train < ray < jupyter < names(REPOSITORY / "requirements" / "all.txt")
    assert {"mlflow", "boto3", "psycopg", "flask-wtf"} <= mlflow
    assert not {"torch", "lightning", "ray"} & mlflow
    assert "hatchling" in build
    assert "ray" not in train


def _outside(requirements: Iterable[str], lock: Path) -> list[str]:
    pins = {canonicalize_name(requirement.name): pin(requirement) for requirement, _ in entries(lock)}
    pins |= {"torch": pin(entries(REPOSITORY / "requirements" / "torch-cuda.txt")[-2][0])} if "torch" not in pins else {}
    wanted = [Requirement(text) for text in requirements]
    return [str(r) for r in wanted if canonicalize_name(r.name) not in pins or not r.specifier.contains(pins[canonicalize_name(r.name)])]


def test_the_locks_satisfy_the_declared_dependencies(project: dict[str, Any]) -> None:
    dev = project["optional-dependencies"].pop("dev")
    extras = [r for group in project["optional-dependencies"].values() for r in group]
    assert not _outside(project["dependencies"], REPOSITORY / "requirements" / "base.txt")
    assert not _outside([*project["dependencies"], *extras], REPOSITORY / "requirements" / "all.txt")
    assert not _outside([*project["dependencies"], *extras, *dev], REPOSITORY / "requirements" / "dev.txt")
    parts = project["optional-dependencies"]
    train = [*project["dependencies"], *parts["dicom"], *parts["onnx"], *parts["gpu"]]
    assert not _outside(train, REPOSITORY / "requirements" / "train.txt")
    assert not _outside([*train, *parts["ray"]], REPOSITORY / "requirements" / "ray.txt")
    assert not _outside([*train, *parts["ray"], *parts["jupyter"]], REPOSITORY / "requirements" / "jupyter.txt")
    assert not _outside(parts["server"], REPOSITORY / "requirements" / "mlflow.txt")


def test_what_advisories_and_licences_forbid_is_not_locked() -> None:
    for path in LOCKS:
        for requirement, _ in entries(path):
            name, version = canonicalize_name(requirement.name), pin(requirement)
            assert name != "pylibjpeg-libjpeg", "GPL-3.0"
            assert not (name in ("lightning", "pytorch-lightning") and version in (Version("2.6.2"), Version("2.6.3"))), "malicious uploads"
            assert not (name == "torch" and version < Version("2.10"))
            assert not (name == "pillow" and version < Version("12.3"))
