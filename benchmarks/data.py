"""How fast images are decoded, and batches read from a pack, against named baselines in the same run.

    python -m benchmarks.data [--quick] [--out benchmarks/results/data.json]

Decoding: ``data.decode.decode_image`` against Pillow's full decoding and antialiased bilinear resizing, to 64 px, in one thread, on JPEG files
like Kermany's. Reading: ``TrainLoader`` over a pack against files in folders read by a PyTorch DataLoader with two workers (Pillow: decode,
resize), and against a plain copy of the same bytes in memory. Contestants take turns, medians count. Exit code 1 below a floor.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from rich.console import Console
from rich.table import Table

from scanvit import __version__
from scanvit.core.contract import PixelContract
from scanvit.data.decode import decode_image
from scanvit.data.loader import Position, TrainLoader, as_tensor
from scanvit.data.pack import Pack
from scanvit.data.phantoms.chest import FINDINGS as CHEST_FINDINGS
from scanvit.data.phantoms.chest import draw_chest
from scanvit.data.phantoms.oct import FINDINGS as OCT_FINDINGS
from scanvit.data.phantoms.oct import draw_oct
from scanvit.data.prepare import prepare

CONTRACT = PixelContract()
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TARGETS = {"decoding": 5.0, "difference": 2.0, "reading": 100.0, "copy": 2.0}
"""What is aimed at: times the baseline, at most this mean difference of 255, times the baseline, at most this many times a copy's time."""
FLOORS = {"decoding": 1.2, "difference": 2.0, "reading": 100.0, "copy": 2.0}
"""What a change may not fall below. Decoding stays under its target: entropy decoding, which no reduced scale saves, takes half of the baseline."""
CHEST_PX = ((600, 500), (1000, 800), (1500, 1000))
OCT_PX = ((512, 496), (768, 496), (1536, 496))
QUALITIES = (75, 80, 85, 90, 95)


def pillow(data: bytes) -> np.ndarray:
    """The baseline: everything decoded, then resized."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L").resize((CONTRACT.image_size_px, CONTRACT.image_size_px), Image.Resampling.BILINEAR))


def ours(data: bytes) -> np.ndarray:
    return decode_image(data, CONTRACT).pixels[0]


def entropy(data: bytes) -> None:
    """libjpeg at its smallest scale and nothing else: what reading the file's bits costs at the least."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("L", (1, 1))
        image.load()


def jpeg(image: Image.Image, size_px: tuple[int, int], quality: int, mode: str = "L") -> bytes:
    stream = io.BytesIO()
    image.resize(size_px, Image.Resampling.BICUBIC).convert(mode).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def scans(folder: Path, count: int) -> tuple[str, list[Image.Image], list[Image.Image]]:
    """(where from, chest X-rays, B-scans): real ones from ``folder`` where it is there, else phantoms."""
    if not folder.is_dir():
        chest = [draw_chest(finding, patient_seed=seed, image_seed=seed) for seed, finding in enumerate(CHEST_FINDINGS)]
        oct_ = [draw_oct(finding, patient_seed=seed, image_seed=seed) for seed, finding in enumerate(OCT_FINDINGS)]
        return "phantoms", [Image.fromarray(a) for a in chest][:count], [Image.fromarray(a) for a in oct_][:count]
    with zipfile.ZipFile(folder / "chest_xray_224.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpeg")]
        chest_files = [archive.read(name) for name in names[:: len(names) // count][:count]]
    with tarfile.open(folder / "oct2017_sample.tar.gz") as tar:
        members = [member for member in tar if member.isfile() and member.name.endswith((".png", ".jpeg"))][:count]
        oct_files = [stream.read() for member in members if (stream := tar.extractfile(member))]
    return "real images", *([Image.open(io.BytesIO(data)).convert("L") for data in files] for files in (chest_files, oct_files))


def jpeg_sets(folder: Path, count: int) -> tuple[str, dict[str, list[bytes]]]:
    origin, chest, oct_ = scans(folder, count)
    sets = {}
    for name, images, sizes in (("chest", chest, CHEST_PX), ("OCT", oct_, OCT_PX)):
        for width, height in sizes:
            sets[f"{name} {width}x{height}"] = [jpeg(image, (width, height), QUALITIES[i % len(QUALITIES)]) for i, image in enumerate(images)]
    sets["chest 1000x800, colour"] = [jpeg(image, (1000, 800), QUALITIES[i % len(QUALITIES)], "RGB") for i, image in enumerate(chest)]
    return origin, sets


def in_turns(contestants: dict[str, Callable[[], Any]], rounds: int, *, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Median seconds a call of each, after one call to warm up."""
    for call in contestants.values():
        call()
    times_s: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            start_s = clock()
            call()
            times_s[name].append(clock() - start_s)
    return {name: statistics.median(values) for name, values in times_s.items()}


def measure_decoding(files: Sequence[bytes], rounds: int) -> dict[str, float]:
    def over(decode: Callable[[bytes], Any]) -> Callable[[], None]:
        return lambda: [decode(data) for data in files] and None

    # Time of this process alone: other work on the machine does not count.
    times_s = in_turns({"pillow": over(pillow), "ours": over(ours), "entropy": over(entropy)}, rounds, clock=time.process_time)
    differences = [np.abs(ours(data).astype(int) - pillow(data).astype(int)).mean() for data in files]
    pixels = [np.prod(Image.open(io.BytesIO(data)).size) for data in files]
    return {
        "bits_per_pixel": 8 * sum(map(len, files)) / float(sum(pixels)),
        "pillow_images_per_s": len(files) / times_s["pillow"],
        "ours_images_per_s": len(files) / times_s["ours"],
        "ratio": times_s["pillow"] / times_s["ours"],
        "ceiling": times_s["pillow"] / times_s["entropy"],
        "difference": float(np.mean(differences)),
    }


class JpegFolder(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """The road of most trainings: files in class folders, decoded and resized at every visit."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(pillow(self.paths[index].read_bytes()).copy())[None], index % 2


def measure_reading(files: Sequence[bytes], rounds: int, folder: Path) -> dict[str, float]:
    """One epoch of batches of 32, shuffled: the same pictures as files and as a pack, which is read over and over to the length of 20,000."""
    paths = []
    for index in range(400):
        paths.append(folder / "files" / ("a" if index % 2 else "b") / f"{index:05d}.jpeg")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        # A comment tells copies apart, without a change of the pixels.
        data = files[index % len(files)]
        paths[-1].write_bytes(data[:2] + b"\xff\xfe\x00\x06" + index.to_bytes(4, "big") + data[2:])
    generator = np.random.default_rng(0)
    np.savez(folder / "large.npz", train_images=generator.integers(0, 256, (20_000, 64, 64), np.uint8), train_labels=np.arange(20_000)[:, None] % 2)
    prepare(folder / "large.npz", folder / "pack", workers=1)
    pack = Pack.open(folder / "pack")
    array, targets = pack.images("train"), torch.from_numpy(pack.targets("train"))
    loader = TrainLoader(as_tensor(array), targets, position=Position, seed=0, per_device_batch_size=32, rank=0, world_size=1)
    baseline = torch.utils.data.DataLoader(JpegFolder(paths), batch_size=32, shuffle=True, num_workers=2, persistent_workers=True)
    in_memory, order = np.array(array), np.random.default_rng(1).permutation(len(array))

    def copy() -> None:
        for start in range(0, len(order), 32):
            np.take(in_memory, order[start : start + 32], axis=0)

    def read() -> None:
        for _ in loader:
            pass

    # The workers' time counts too, so that is by the clock on the wall; a copy is compared by the time of this process.
    wall_s = in_turns({"files": lambda: [None for _ in baseline], "pack": read}, rounds)
    times_s = in_turns({"pack": read, "copy": copy}, 2 * rounds, clock=time.process_time)
    files_per_s, pack_per_s = len(paths) / wall_s["files"], len(array) / wall_s["pack"]
    return {
        "files_images_per_s": files_per_s,
        "pack_images_per_s": pack_per_s,
        "copy_images_per_s": len(array) / times_s["copy"],
        "ratio": pack_per_s / files_per_s,
        "times_a_copy": times_s["pack"] / times_s["copy"],
    }


def verdicts(decoding: dict[str, dict[str, float]], reading: dict[str, float]) -> list[dict[str, Any]]:
    """Each measured figure beside its target and its floor."""
    worst = min(decoding, key=lambda name: decoding[name]["ratio"])
    furthest = max(decoding, key=lambda name: decoding[name]["difference"])
    figures = [
        ("decoding", f"decoding, slowest set ({worst})", decoding[worst]["ratio"], True),
        ("difference", f"mean difference of 255, worst set ({furthest})", decoding[furthest]["difference"], False),
        ("reading", "reading a pack, times the DataLoader over files", reading["ratio"], True),
        ("copy", "reading a pack, times the time of a copy", reading["times_a_copy"], False),
    ]
    return [
        {
            "figure": text,
            "value": value,
            "target": TARGETS[key],
            "floor": FLOORS[key],
            "reached": value >= TARGETS[key] if more_is_better else value <= TARGETS[key],
            "holds": value >= FLOORS[key] if more_is_better else value <= FLOORS[key],
        }
        for key, text, value, more_is_better in figures
    ]


def machine() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    versions = {"scanvit": __version__, "python": platform.python_version(), "pillow": Image.__version__, "libjpeg-turbo": features.version("libjpeg_turbo")}
    versions |= {"numpy": np.__version__, "torch": torch.__version__}
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "versions": versions}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def show(result: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=f"JPEG to 64 px, images/s of one thread, {result['origin']}", title_justify="left")
    for column in ("files", "bits/px", "Pillow", "scanvit", "ratio", "bits alone", "difference"):
        table.add_column(column, justify="left" if column == "files" else "right")
    for name, row in result["decoding"].items():
        speeds = (f"{row['pillow_images_per_s']:,.0f}", f"{row['ours_images_per_s']:,.0f}", f"{row['ratio']:.2f}", f"{row['ceiling']:.2f}")
        table.add_row(name, f"{row['bits_per_pixel']:.2f}", *speeds, f"{row['difference']:.2f}")
    console.print(table)
    reading = result["reading"]
    console.print(f"'bits alone': the ratio of a decoder that reads the file's bits and does nothing else (libjpeg-turbo {features.version('libjpeg_turbo')}).")
    speeds = ", ".join(f"{name} {reading[f'{name}_images_per_s']:,.0f}" for name in ("files", "pack", "copy"))
    console.print(f"Batches of 32, images/s: {speeds}")
    for verdict in result["verdicts"]:
        word = "reached" if verdict["reached"] else "missed" if verdict["holds"] else "BELOW THE FLOOR"
        console.print(f"{verdict['figure']}: {verdict['value']:.2f} (target {verdict['target']:g}, floor {verdict['floor']:g}): {word}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer files and rounds")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of the real images; phantoms where it is not there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "data.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count, rounds = (5, 3) if arguments.quick else (15, 9)
    origin, sets = jpeg_sets(arguments.shared, count)
    decoding = {name: measure_decoding(files, rounds) for name, files in sets.items()}
    with tempfile.TemporaryDirectory() as folder:
        reading = measure_reading(sets["OCT 512x496"], min(rounds, 5), Path(folder))
    result = {"machine": machine(), "origin": origin, "decoding": decoding, "reading": reading, "verdicts": verdicts(decoding, reading)}
    show(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(verdict["holds"] for verdict in result["verdicts"]) else 1


if __name__ == "__main__":
    sys.exit(main())
