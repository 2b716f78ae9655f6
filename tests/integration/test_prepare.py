"""Sources to packs, with real files, real processes and real kills."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from scanvit.core.contract import PixelContract
from scanvit.core.errors import ArchiveError, ConfigError, EmptyClassError, NoSpaceError, PackError, QuarantineError, SourcesError
from scanvit.data import batches
from scanvit.data.decode import decode_image
from scanvit.data.output import output_lock
from scanvit.data.pack import Pack
from scanvit.data.prepare import PrepareSummary, prepare
from scanvit.data.sources import SPLITS
from scanvit.storage.scratch import Spool, scratch_in, scratch_zeros

SOURCE = Path(__file__).resolve().parents[2] / "src"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.integration


def image_bytes(seed: int, kind: str = "PNG", side: int = 40) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side + 8), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def scans(patients: int = 20, images: int = 2) -> dict[str, bytes]:
    """Two classes, patients named in the file, PNG and JPEG."""
    files = {}
    for label, name in enumerate(("healthy", "ill")):
        for patient in range(patients):
            for number in range(images):
                seed = (label * patients + patient) * images + number
                kind = "PNG" if seed % 2 else "JPEG"
                files[f"{name}/p{label}{patient:03d}_{number}.{'png' if seed % 2 else 'jpeg'}"] = image_bytes(seed, kind)
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_sources(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "sources.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder / "sources.yaml"


def with_patients(folder: Path, path: str = "scans", **settings: Any) -> Path:
    return write_sources(folder, {"sources": [{"name": "s", "path": path, "patient": "(?P<patient>p[0-9]+)_"}], **settings})


def check_account(summary: PrepareSummary) -> Pack:
    """Every image is in the pack or in the quarantine; no patient in two splits; the arrays hold what the one pixel path gives."""
    pack = Pack.open(summary.pack)
    pack.verify()
    lines = [json.loads(line) for line in (pack.path / "quarantine.jsonl").read_text(encoding="ascii").splitlines()]
    assert len(pack.manifest) + len(lines) == summary.images_in
    assert Counter(line["reason"] for line in lines) == Counter({reason: len(entries) for reason, entries in summary.quarantined.items()})
    splits = defaultdict(set)
    for row in pack.manifest.to_pylist():
        splits[row["patient_id"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert (pack.path / "audit.json").is_file()
    return pack


def test_a_folder_becomes_a_pack(tmp_path: Path) -> None:
    files = scans()
    write_folder(tmp_path / "scans", files)
    seen: list[tuple[str, int, int]] = []
    summary = prepare(with_patients(tmp_path), tmp_path / "pack", workers=1, progress=lambda *step: seen.append(step))
    pack = check_account(summary)
    assert summary.images_in == len(files) == len(pack.manifest)
    assert sum(pack.patients.values()) == 40
    for split in SPLITS:
        for row, pixels in zip(pack.rows(split).to_pylist(), pack.images(split), strict=True):
            decoded = decode_image(files[row["path"]], pack.contract)
            np.testing.assert_array_equal(pixels, decoded.pixels)
            assert (row["width_px"], row["height_px"], row["format"]) == (40, 48, decoded.format)
            assert row["class_name"] == row["path"].split("/")[0]
    assert {stage for stage, _, _ in seen} == {"Listing", "Decoding", "Writing", "Auditing"}
    assert ("Decoding", 80, 80) in seen
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pack", "scans", "sources.yaml"]


def test_a_root_is_for_the_paths_of_a_sources_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "sub" / "scans", scans())
    write_folder(tmp_path / "scans", {"healthy/x.png": image_bytes(0)})
    with pytest.raises(SourcesError, match="itself the source"):
        prepare(tmp_path / "sub" / "scans", tmp_path / "pack", root=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans", "sub"]


def test_archive_kind_and_number_of_workers_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = scans()
    write_folder(tmp_path / "scans", files)
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        for name in sorted(files, reverse=True):
            archive.writestr(name, files[name])
    with tarfile.open(tmp_path / "scans.tgz", "w:gz") as archive:
        archive.add(tmp_path / "scans", arcname=".")
    prints = set()
    for number, (path, workers, batch) in enumerate([("scans", 1, 256), ("scans", 2, 7), ("scans.zip", 2, 16), ("scans.tgz", 1, 9)]):
        monkeypatch.setattr(batches, "BATCH_IMAGES", batch)
        summary = prepare(with_patients(tmp_path, path), tmp_path / f"pack{number}", workers=workers)
        prints.add(summary.fingerprint)
        assert {(p.name, p.read_bytes()) for p in summary.pack.iterdir() if p.name != "dataset.json"} == {
            (p.name, p.read_bytes()) for p in (tmp_path / "pack0").iterdir() if p.name != "dataset.json"
        }
    assert len(prints) == 1


def test_flaws_are_quarantined_with_their_reasons(tmp_path: Path) -> None:
    files = scans()
    files |= {"healthy/p0900_0.png": b"not an image", "healthy/p0901_0.jpeg": files["healthy/p0000_0.jpeg"][:300]}
    files |= {"healthy/p0902_0.jpeg": files["healthy/p0000_0.jpeg"], "healthy/p0903_0.png": files["ill/p1000_1.png"]}
    files |= {"healthy/nobody.png": image_bytes(901), "stray.png": image_bytes(902), "healthy/notes.txt": b"text"}
    write_folder(tmp_path / "scans", files)
    summary = prepare(with_patients(tmp_path), tmp_path / "pack")
    check_account(summary)
    found = {reason: sorted(entry.path for entry in entries) for reason, entries in summary.quarantined.items()}
    assert found == {
        "unreadable": ["healthy/p0900_0.png", "healthy/p0901_0.jpeg"],
        "duplicate": ["healthy/p0902_0.jpeg"],
        "conflicting-labels": ["healthy/p0903_0.png", "ill/p1000_1.png"],
        "no-patient": ["healthy/nobody.png"],
        "no-class": ["stray.png"],
    }
    assert "healthy/p0000_0.jpeg" in summary.quarantined["duplicate"][0].detail
    assert summary.ignored == 1


def test_too_many_unreadable_images_write_nothing(tmp_path: Path) -> None:
    files = scans()
    for name in sorted(files)[:5]:
        files[name] = b"damaged"
    write_folder(tmp_path / "scans", files)
    with pytest.raises(QuarantineError, match=r"5 of 80 images cannot be read \(6\.2%; 5\.0% are allowed\)"):
        prepare(with_patients(tmp_path), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()
    summary = prepare(with_patients(tmp_path), tmp_path / "pack", settings={"max_quarantine_share": 0.1})
    assert summary.reused == 80
    check_account(summary)


def test_a_tree_that_is_split_keeps_its_splits(tmp_path: Path) -> None:
    files = {f"{split}/{name}": data for index, split in enumerate(SPLITS) for name, data in list(scans(40).items())[index::4]}
    summary = prepare(write_folder(tmp_path / "set", files), tmp_path / "pack")
    pack = check_account(summary)
    assert any("are kept" in warning for warning in summary.warnings)
    for split in SPLITS:
        assert all(path.startswith(f"{split}/") for path in pack.rows(split)["path"].to_pylist())
        assert pack.size(split) == 40


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train", "val")])
def test_a_medmnist_file_keeps_its_splits_where_all_are_there(tmp_path: Path, splits: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split in splits:
        arrays[f"{split}_images"] = rng.integers(0, 256, (40, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(40) % 2)[:, None]
    np.savez(tmp_path / "set.npz", **arrays)
    summary = prepare(tmp_path / "set.npz", tmp_path / "pack", settings={"image_size_px": 28})
    pack = check_account(summary)
    assert pack.class_names == ("0", "1")
    assert set(pack.rows("train")["format"].to_pylist()) == {"NPZ"}
    assert any("own patient" in warning for warning in summary.warnings)
    if "test" in splits:
        assert [pack.size(split) for split in SPLITS] == [40, 40, 40, 0]
        np.testing.assert_array_equal(pack.targets("val"), [0] * 20 + [1] * 20)
        by_path = {row["path"]: row["row"] for row in pack.rows("val").to_pylist()}
        np.testing.assert_array_equal(pack.images("val")[by_path["val/1/0000007.npy"], 0], arrays["val_images"][7])
    else:
        assert [pack.size(split) for split in SPLITS] == [50, 14, 8, 8]
        assert any("split anew" in warning for warning in summary.warnings)


def test_settings_take_the_place_of_the_file_s(tmp_path: Path) -> None:
    write_folder(tmp_path / "scans", scans())
    before = prepare(with_patients(tmp_path), tmp_path / "one")
    after = prepare(with_patients(tmp_path), tmp_path / "two", settings={"seed": 7, "image_size_px": 32, "channels": 3})
    pack = Pack.open(after.pack)
    assert pack.contract == PixelContract(image_size_px=32, channels=3)
    assert pack.settings["split"]["seed"] == 7
    assert pack.manifest["path"].to_pylist() != Pack.open(before.pack).manifest["path"].to_pylist()


@pytest.mark.parametrize(
    ("files", "values", "error", "sentence"),
    [
        ({"a/x.png": image_bytes(0)}, {}, SourcesError, "only one class, 'a'"),
        ({"notes.txt": b""}, {}, SourcesError, "No image was found in set, among 1 other files"),
        ({"x.png": image_bytes(0), "y.png": image_bytes(1)}, {}, SourcesError, "None of the 2 images in set can be used. x.png: it lies in no class folder"),
        ({"a/x.png": image_bytes(0), "b/x.png": b"broken"}, {"max_quarantine_share": 1}, EmptyClassError, "'b' has no image left"),
    ],
)
def test_what_cannot_become_a_pack_is_told(tmp_path: Path, files: dict[str, bytes], values: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        prepare(write_folder(tmp_path / "set", files), tmp_path / "pack", settings=values)
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize(("patient", "needed"), [(None, True), ("dicom", False)])
def test_the_rule_for_dicom_is_asked_for_where_it_is_missing_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient: str | None, needed: bool) -> None:
    monkeypatch.setenv("SCANVIT_SALT", "a salt for tests alone")
    write_folder(tmp_path / "set", {"a/notes.txt": b""})
    with pytest.raises(SourcesError, match="No image was found") as caught:
        prepare(write_sources(tmp_path, {"sources": [{"name": "s", "path": "set", "patient": patient}]}), tmp_path / "pack")
    assert ("patient: dicom" in str(caught.value.hint)) == needed


def test_a_hostile_archive_writes_nothing(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a/x.png", image_bytes(0))
        archive.writestr("../../b/x.png", image_bytes(1))
    with pytest.raises(ArchiveError, match=r"\.\./\.\./b"):
        prepare(tmp_path / "set.zip", tmp_path / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_a_pack_that_stands_is_replaced_only_where_asked(tmp_path: Path) -> None:
    files = scans()
    write_folder(tmp_path / "scans", files)
    first = prepare(with_patients(tmp_path), tmp_path / "pack")
    with pytest.raises(PackError, match="exists"):
        prepare(with_patients(tmp_path), tmp_path / "pack")
    with pytest.raises(ConfigError):
        prepare(with_patients(tmp_path), tmp_path / "pack", overwrite=True, settings={"image_size_pix": 3})
    (tmp_path / "scans" / "healthy" / "p0000_0.jpeg").unlink()
    second = prepare(with_patients(tmp_path), tmp_path / "pack", overwrite=True)
    assert second.images_in == len(files) - 1
    assert first.fingerprint != Pack.open(tmp_path / "pack").fingerprint == second.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pack", "scans", "sources.yaml"]


def test_two_at_once_on_one_output(tmp_path: Path) -> None:
    write_folder(tmp_path / "scans", scans())
    with output_lock(tmp_path / "pack"), pytest.raises(PackError, match="Another process"):
        prepare(with_patients(tmp_path), tmp_path / "pack")
    prepare(with_patients(tmp_path), tmp_path / "pack")


_KILLED = """
import os, signal, sys
import psutil
from scanvit.data import batches, prepare
batches.BATCH_IMAGES = 8
def progress(stage, done, total):
    if stage == sys.argv[3] and done >= int(sys.argv[4]):
        print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    prepare.prepare(sys.argv[1], sys.argv[2], workers=2, progress=progress, overwrite=sys.argv[5] == "overwrite")
"""


@pytest.mark.parametrize(("stage", "done"), [("Listing", 1), ("Decoding", 24), ("Writing", 4), ("Auditing", 1)])
@pytest.mark.parametrize("mode", ["new", "overwrite"])
def test_killed_at_any_stage_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, done: int, mode: str) -> None:
    monkeypatch.setattr(batches, "BATCH_IMAGES", 8)
    write_folder(tmp_path / "scans", scans())
    sources = with_patients(tmp_path)
    undisturbed = prepare(sources, tmp_path / "undisturbed", workers=1)
    if mode == "overwrite":
        prepare(sources, tmp_path / "pack", workers=1, settings={"seed": 1})
    script = tmp_path / "killed.py"
    script.write_text(_KILLED, encoding="utf-8")
    command = [sys.executable, str(script), str(sources), str(tmp_path / "pack"), stage, str(done), mode]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(SOURCE)}, stdout=subprocess.PIPE, timeout=120, check=False)
    assert result.returncode == -signal.SIGKILL
    _wait_until_gone([int(pid) for pid in result.stdout.split()])
    if mode == "overwrite":
        Pack.open(tmp_path / "pack").verify()
    else:
        assert not (tmp_path / "pack").exists()
    again = prepare(sources, tmp_path / "pack", workers=1, overwrite=mode == "overwrite")
    check_account(again)
    assert again.fingerprint == undisturbed.fingerprint
    assert again.reused >= {"Listing": 0, "Decoding": 24}.get(stage, 80)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.py", "pack", "scans", "sources.yaml", "undisturbed"]


def _wait_until_gone(pids: list[int]) -> None:
    """Workers end with their parent, killed or not."""
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline, "a decoding process outlived its killed parent"
        time.sleep(0.05)


def test_changed_images_are_decoded_again(tmp_path: Path) -> None:
    files = scans()
    write_folder(tmp_path / "scans", files)
    broken = dict.fromkeys(sorted(files)[:10], b"damaged")
    write_folder(tmp_path / "scans", broken)
    with pytest.raises(QuarantineError):
        prepare(with_patients(tmp_path), tmp_path / "pack")
    write_folder(tmp_path / "scans", files)
    summary = prepare(with_patients(tmp_path), tmp_path / "pack")
    assert summary.reused == 0
    assert not summary.quarantined


def test_the_real_archives(shared_data: Path, tmp_path: Path) -> None:
    summary = prepare(EXAMPLES / "real" / "sources.yaml", tmp_path / "pack", root=shared_data)
    pack = check_account(summary)
    assert summary.images_in == 5467
    totals = {name: sum(pack.counts[split][name] for split in SPLITS) for name in pack.class_names}
    assert (totals["lung-normal"], totals["lung-opacity"], totals["lung-viral-pneumonia"], totals["lung-covid"]) == (1348, 2520, 1338, 190)
    for name in ("lung-normal", "lung-opacity", "lung-viral-pneumonia"):
        for split, share in {"train": 0.63, "val": 0.18, "test": 0.09, "final_eval": 0.1}.items():
            assert abs(pack.counts[split][name] / totals[name] - share) < 0.01
    verdicts = {gate.gate: gate.verdict for gate in summary.gates}
    assert verdicts == {"G1": "pass", "G2": "pass", "G3": "pass", "G4": "fail", "G5": "fail", "G6": "fail"}
    assert "lung-covid (100% from hannover-covid)" in next(gate.detail for gate in summary.gates if gate.gate == "G4")


def test_the_real_medmnist_file(shared_data: Path, tmp_path: Path) -> None:
    summary = prepare(shared_data / "pneumoniamnist_trainval.npz", tmp_path / "pack", settings={"image_size_px": 28})
    check_account(summary)
    assert summary.images_in == 5232


def test_scratch_files_on_a_full_disk(small_disk: Path) -> None:
    with scratch_in(small_disk):
        with pytest.raises(NoSpaceError):
            Spool().write(bytes(3 << 20))
        with pytest.raises(NoSpaceError):
            scratch_zeros(3 << 20, np.uint8)
