from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanvit.cli import main
from scanvit.data.pack import Pack


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("healthy", "ill"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number in range(30):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(buffer, "PNG")
            (tmp_path / "scans" / name / f"{number}.png").write_bytes(buffer.getvalue())
    (tmp_path / "scans" / "ill" / "[bold]\x1b[31mbroken.png").write_bytes(b"")
    return tmp_path / "scans"


def test_prepare_prints_the_account_and_the_next_command(scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pack = tmp_path / "pack"
    options = ["--image-size", "16", "--channels", "3", "--seed", "1", "--workers", "1", "--max-quarantine-share", "0.1"]
    assert main(["data", "prepare", str(scans), "-o", str(pack), *options]) == 0
    out, err = capfd.readouterr()
    opened = Pack.open(pack)
    assert opened.contract.shape == (3, 16, 16)
    assert opened.settings["split"]["seed"] == 1
    assert "61 images in, 1 in the quarantine" in out
    assert "unreadable: 1" in out
    assert "[bold]\\x1b[31mbroken.png" in out
    assert "\x1b" not in out
    assert "each image counts as its own patient" in out
    assert opened.fingerprint in out
    assert f"scanvit train modern --pack {pack}" in out
    assert "decoding: 61 of 61" in err


def test_prepare_ends_with_the_code_of_the_error(scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", str(tmp_path / "nothing"), "-o", str(tmp_path / "pack")]) == 21
    assert main(["data", "prepare", str(scans), "-o", str(tmp_path / "pack"), "--max-quarantine-share", "0.001"]) == 24
    assert main(["data", "prepare", str(scans), "-o", str(scans)]) == 30
    assert "broken.png" in capfd.readouterr().err
    assert not (tmp_path / "pack").exists()


def test_audit_fails_until_it_is_acknowledged(scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pack = str(tmp_path / "pack")
    main(["data", "prepare", str(scans), "-o", pack])
    assert main(["data", "audit", pack]) == 3
    assert '--acknowledge G1="REASON"' in capfd.readouterr().err
    assert main(["data", "audit", pack, "--acknowledge", "G1=drawn at random", "--acknowledge", "G6=a test"]) == 0
    assert "Acknowledged: drawn at random" in " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert main(["data", "audit", pack, "--acknowledge", "G2=in case"]) == 0
    assert "G2 did not fail" in capfd.readouterr().out
    assert [gate["reason"] for gate in Pack.open(pack).findings()] == ["drawn at random", "a test"]


@pytest.mark.parametrize("entry", ["G1", "G1=", "=why", "G77=why"])
def test_a_wrong_acknowledgement_is_an_error(scans: Path, tmp_path: Path, entry: str) -> None:
    pack = str(tmp_path / "pack")
    main(["data", "prepare", str(scans), "-o", pack])
    assert main(["data", "audit", pack, "--acknowledge", entry]) == 10


def test_audit_of_no_pack(tmp_path: Path) -> None:
    assert main(["data", "audit", str(tmp_path / "nothing")]) == 31


def test_phantoms_are_drawn_and_can_be_prepared(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "phantom", "-o", str(tmp_path / "phantoms"), "--patients-per-class", "1", "--no-flaws"]) == 0
    assert "9 phantom patients" in capfd.readouterr().out
    assert (tmp_path / "phantoms" / "sources.yaml").is_file()


def test_importing_the_commands_imports_nothing_heavy() -> None:
    code = "import sys, scanvit.cli.data; print([m for m in ('numpy', 'torch', 'rich', 'pydantic', 'pyarrow', 'yaml') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert result.stdout.strip() == "[]"
