"""The scripts beside the package, as far as they run without a machine of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scanvit.core.errors import ConfigError
from scanvit.platform.compose import deploy_folder
from scanvit.platform.settings import init

SETUP = deploy_folder() / "remote" / "setup"


@pytest.mark.parametrize(
    ("word", "read"),
    [("bin/scanvit", '"bin/scanvit"'), ("/srv/my copy", '"/srv/my copy"'), ("s3:a%b", '"s3:a%%b"'), ('a$b\\c"d', '"a$$b\\\\c\\"d"')],
)
def test_a_path_in_the_unit_is_one_word_for_systemd(word: str, read: str) -> None:
    (function,) = re.findall(r"^unit_word\(\) \{.*?^\}", SETUP.read_text(encoding="utf-8"), flags=re.M | re.S)
    done = subprocess.run(["bash", "-c", f'{function}; unit_word "$1"', "bash", word], capture_output=True, text=True, check=True)
    assert done.stdout == read


@pytest.mark.parametrize("name", ["install", "test", "lint", "bench", "demo"])
def test_a_link_to_the_checkout_is_the_checkout(name: str, tmp_path: Path) -> None:
    script = SETUP.parents[2] / "scripts" / name
    (line,) = re.findall(r'^.*\bcd .*"\$\{BASH_SOURCE\[0\]\}".*$', script.read_text(encoding="utf-8"), flags=re.M)
    (tmp_path / "checkout" / "scripts").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "checkout")
    (tmp_path / "checkout" / "scripts" / name).write_text(f'{line}\necho "${{root:-$PWD}}"\n')
    done = subprocess.run(["bash", tmp_path / "link" / "scripts" / name], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str((tmp_path / "checkout").resolve())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """On a machine whose programs write down in ``log`` how they were called."""
    copy, bin_folder, log = tmp_path / "checkout", tmp_path / "bin", tmp_path / "log"
    (copy / "deploy" / "remote").mkdir(parents=True)
    shutil.copy(SETUP, copy / "deploy" / "remote" / "setup")
    for path in (copy / "scripts" / "install", copy / ".venv" / "bin" / "scanvit"):
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/bin/sh\necho "${{0##*/}} $* $DATA_PATH" >>{log}\n')
        path.chmod(0o755)
    bin_folder.mkdir()
    (bin_folder / "sudo").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (bin_folder / "sudo").chmod(0o755)
    return copy


def set_up(checkout: Path, *, images: str) -> subprocess.CompletedProcess[str]:
    path = f"{checkout.parent / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "GPU": "nvidia", "DATA_PATH": images, "PROFILES": "mlflow ray"}
    words = ["bash", checkout / "deploy" / "remote" / "setup", "install", "platform"]
    return subprocess.run(words, env=environment, check=False, capture_output=True, text=True)


def test_the_platform_gets_its_packages_its_folder_of_images_and_the_accelerator_of_now(checkout: Path, tmp_path: Path) -> None:
    images, folder = tmp_path / "images" / "deep", checkout / ".scanvit-platform"
    assert set_up(checkout, images=str(images)).returncode == 0
    assert images.is_dir()
    called = [line.strip() for line in (tmp_path / "log").read_text().splitlines()]
    assert called[0].startswith("install all")
    assert f"scanvit platform init {folder} {images}" in called
    assert called[-1].startswith(f"scanvit platform up mlflow ray --dir {folder} --accelerator cuda")


@pytest.mark.parametrize("images", ["/srv/my images", "/srv/$HOME", "/srv/größe", "/srv/a#b", "images"])
def test_what_init_will_refuse_is_refused_before_anything_is_installed_in_the_same_words(checkout: Path, tmp_path: Path, images: str) -> None:
    with pytest.raises(ConfigError) as caught:
        init(checkout / ".scanvit-platform", {"DATA_PATH": images})
    done = set_up(checkout, images=images)
    assert (done.returncode, done.stderr) == (2, f"error: {caught.value.message}\nhint: {caught.value.hint}\n")
    assert not (tmp_path / "log").exists()


def test_every_character_that_init_takes_is_taken(checkout: Path, tmp_path: Path) -> None:
    images = f"{tmp_path}/aZ0_.:@%+,*=-[]"
    assert init(tmp_path / "platform", {"DATA_PATH": images})[0]["DATA_PATH"] == images
    assert set_up(checkout, images=images).returncode == 0
