"""How fast images are decoded, and batches read from a pack, against named baselines in the same run.

    python -m benchmarks --only data

Decoding: ``data.decode.decode_image`` against Pillow's full decoding and antialiased bilinear resizing, to 64 px, in one thread, on JPEG files
like Kermany's. Reading: ``TrainLoader`` over a pack against files in folders read by a PyTorch DataLoader with two workers (Pillow: decode,
resize), and against a plain copy of the same bytes in memory. Contestants take turns, medians count. Five times Pillow is
aimed at over all sets together; each set's ratio stands beside. "reduced" is the way of earlier packs: libjpeg's own reduction.
"""

from __future__ import annotations

import io
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from rich.console import Console
from rich.table import Table

from scanvit.core.contract import PixelContract
from scanvit.data.decode import decode_image
from scanvit.data.loader import Position, TrainLoader, as_tensor
from scanvit.data.pack import Pack
from scanvit.data.phantoms.chest import FINDINGS as CHEST_FINDINGS
from scanvit.data.phantoms.chest import draw_chest
from scanvit.data.phantoms.oct import FINDINGS as OCT_FINDINGS
from scanvit.data.phantoms.oct import draw_oct
from scanvit.data.prepare import prepare

from .harness import Figure, Options, Ratio, in_turns

CONTRACT = PixelContract()
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHEST_PX = ((600, 500), (1000, 800), (1500, 1000))
OCT_PX = ((512, 496), (768, 496), (1536, 496))
QUALITIES = (75, 80, 85, 90, 95)


def pillow(data: bytes) -> np.ndarray:
    """The baseline: everything decoded, then resized."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L").resize((CONTRACT.image_size_px, CONTRACT.image_size_px), Image.Resampling.BILINEAR))


def ours(data: bytes) -> np.ndarray:
    return decode_image(data, CONTRACT).pixels[0]


def reduced(data: bytes) -> np.ndarray:
    return decode_image(data, replace(CONTRACT, jpeg="reduced")).pixels[0]


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


def medians_in_turns(contestants: dict[str, Callable[[], Any]], rounds: int, *, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    return {name: statistics.median(times_s) for name, times_s in in_turns(contestants, rounds, clock=clock).items()}


def measure_decoding(files: Sequence[bytes], rounds: int) -> dict[str, float]:
    def over(decode: Callable[[bytes], Any]) -> Callable[[], None]:
        return lambda: [decode(data) for data in files] and None

    ours(files[0])  # may compile
    # Time of this process alone: other work on the machine does not count.
    contestants = {"pillow": over(pillow), "ours": over(ours), "reduced": over(reduced), "entropy": over(entropy)}
    times_s = medians_in_turns(contestants, rounds, clock=time.process_time)
    differences = [np.abs(ours(data).astype(int) - pillow(data).astype(int)).mean() for data in files]
    pixels = [np.prod(Image.open(io.BytesIO(data)).size) for data in files]
    return {
        "bits_per_pixel": 8 * sum(map(len, files)) / float(sum(pixels)),
        "pillow_images_per_s": len(files) / times_s["pillow"],
        "ours_images_per_s": len(files) / times_s["ours"],
        "ratio": times_s["pillow"] / times_s["ours"],
        "reduced": times_s["pillow"] / times_s["reduced"],
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
    wall_s = medians_in_turns({"files": lambda: [None for _ in baseline], "pack": read}, rounds)
    times_s = medians_in_turns({"pack": read, "copy": copy}, 2 * rounds, clock=time.process_time)
    files_per_s, pack_per_s = len(paths) / wall_s["files"], len(array) / wall_s["pack"]
    return {
        "files_images_per_s": files_per_s,
        "pack_images_per_s": pack_per_s,
        "copy_images_per_s": len(array) / times_s["copy"],
        "ratio": pack_per_s / files_per_s,
        "times_a_copy": times_s["pack"] / times_s["copy"],
    }


def over_all(decoding: dict[str, dict[str, float]], contestant: str) -> float:
    """Images/s where every set has as many images."""
    return len(decoding) / sum(1 / row[f"{contestant}_images_per_s"] for row in decoding.values())


def figures(decoding: dict[str, dict[str, float]], reading: dict[str, float], rounds: int) -> list[Figure]:
    worst = min(decoding, key=lambda name: decoding[name]["ratio"])
    furthest = max(decoding, key=lambda name: decoding[name]["difference"])
    row = decoding[worst]
    slowest = f"JPEG to 64 px against Pillow, slowest set ({worst})"
    allowed = f"allowed mean difference of 255 against the worst set's ({furthest})"
    mix = over_all(decoding, "ours"), over_all(decoding, "pillow")
    decoded, read = (row["ours_images_per_s"], row["pillow_images_per_s"]), (reading["pack_images_per_s"], reading["files_images_per_s"])
    return [
        Ratio(name="decode/mix", what="JPEG to 64 px against Pillow, all sets together", ours=mix[0], baseline=mix[1], unit="images/s", n=rounds),
        Ratio(name="decode", what=slowest, ours=decoded[0], baseline=decoded[1], unit="images/s", n=rounds),
        Ratio(name="decode/difference", what=allowed, ours=decoding[furthest]["difference"], baseline=2.0, unit="of 255", n=1),
        Ratio(name="read/files", what="reading a pack against a DataLoader over files", ours=read[0], baseline=read[1], unit="images/s", n=rounds),
        Ratio(name="read/copy", what="reading a pack against a copy in memory", ours=reading["times_a_copy"], baseline=1.0, unit="times", n=2 * rounds),
    ]


def show(result: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=f"JPEG to 64 px, images/s of one thread, {result['origin']}", title_justify="left")
    for column in ("files", "bits/px", "Pillow", "scanvit", "ratio", "reduced", "bits alone", "difference"):
        table.add_column(column, justify="left" if column == "files" else "right")
    for name, row in result["decoding"].items():
        speeds = (
            f"{row['pillow_images_per_s']:,.0f}",
            f"{row['ours_images_per_s']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['reduced']:.2f}",
            f"{row['ceiling']:.2f}",
        )
        table.add_row(name, f"{row['bits_per_pixel']:.2f}", *speeds, f"{row['difference']:.2f}")
    console.print(table)
    rates = over_all(result["decoding"], "ours"), over_all(result["decoding"], "pillow")
    console.print(f"All sets together: {rates[0]:,.0f} images/s, {rates[0] / rates[1]:.2f} times Pillow's {rates[1]:,.0f}.")
    reading = result["reading"]
    console.print(f"'bits alone': libjpeg that reads the file's bits and does nothing else (libjpeg-turbo {features.version('libjpeg_turbo')}).")
    speeds = ", ".join(f"{name} {reading[f'{name}_images_per_s']:,.0f}" for name in ("files", "pack", "copy"))
    console.print(f"Batches of 32, images/s: {speeds}")


def run(options: Options) -> list[Figure]:
    torch.set_num_threads(1)
    count, rounds = (5, 3) if options.quick else (15, 9)
    origin, sets = jpeg_sets(SHARED, count)
    decoding = {name: measure_decoding(files, rounds) for name, files in sets.items()}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        reading = measure_reading(sets["OCT 512x496"], min(rounds, 5), Path(folder))
    show({"origin": origin, "decoding": decoding, "reading": reading})
    return figures(decoding, reading, rounds)
