"""A network over many images: in large batches, on one device or on several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..core.errors import ProcessLostError
from ..core.runtime import available_devices, usable_cores
from ..data.workers import worker_pool

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.checkpoint import Classifier

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

# Pixels in a batch, whatever the image size: at the reference's stem width of 64, one activation is 67 MB or 1 GB.
_BATCH_PX = {"cpu": 2**18, "cuda": 2**22}


class Inference(NamedTuple):
    """Of N images: what the network says, and what tells outliers."""

    logits: npt.NDArray[np.float32]
    """(N, K)"""
    traits: npt.NDArray[np.float32]
    """(N, 2 S): ``VisionTransformer.features_and_traits``."""


def default_processes() -> int:
    """One for every GPU; one on a CPU, where a single process uses all cores."""
    return available_devices("auto")[1]


def batch_size(shape: tuple[int, ...], device: str | None = None, *, passes: int = 1) -> int:
    """Images (C, H, W), each read ``passes`` times, to take at once on "cpu" or "cuda". ``device``: the GPU where there is one, if none is named."""
    return images_within(_BATCH_PX[device or _device()], shape, passes=passes)


def images_within(pixels: int, shape: tuple[int, ...], *, passes: int) -> int:
    """How many images (C, H, W), each read ``passes`` times, are no more pixels than that; one at least."""
    return max(1, pixels // (shape[-2] * shape[-1] * passes))


def infer(model: Classifier, images: npt.NDArray[np.uint8], *, processes: int = 1, progress: Progress | None = None) -> Inference:
    """(N, C, H, W) uint8 pixels, on the GPU where there is one.

    ``processes``: how many share the work, each on a GPU of its own or on its part of the cores. They need a memory-mapped array, and take
    the batches that one process takes. Raises ProcessLostError where one of them is killed.
    """
    n, network, parts = len(images), model.network, _parts(model, images)
    if processes > 1 and len(parts) > 1 and isinstance(images, np.memmap):
        results = _in_processes(model, images, parts, processes)
    else:
        results = _here(model.to(_device()), images, parts)
    logits, traits = np.empty((n, network.num_classes), np.float32), np.empty((n, network.n_traits), np.float32)
    for (start, stop), result in zip(parts, results, strict=True):
        logits[start:stop], traits[start:stop] = result
        if progress:
            progress(stop, n)
    return Inference(logits, traits)


def infer_traits(model: Classifier, images: npt.NDArray[np.uint8], *, progress: Progress | None = None) -> npt.NDArray[np.float32]:
    """The traits of ``infer`` alone, (N, 2 S): the stem's work, a small part of all."""
    model = model.to(_device())
    traits = np.empty((len(images), model.network.n_traits), np.float32)
    for start, stop in _parts(model, images):
        with _exact():
            traits[start:stop] = model.traits(_pixels(model, images[start:stop])).float().cpu().numpy()
        if progress:
            progress(stop, len(images))
    return traits


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _parts(model: Classifier, images: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    step = batch_size(images.shape[1:], passes=model.inference.passes)
    return [(start, min(start + step, len(images))) for start in range(0, len(images), step)]


@contextmanager
def _exact() -> Iterator[None]:
    """A GPU's convolutions would round float32 to ten bits (TF32), and the same image would get another probability than on a CPU."""
    import torch

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _pixels(model: Classifier, images: npt.NDArray[np.uint8]) -> Tensor:
    import torch

    return torch.from_numpy(np.array(images)).to(model.network.head.weight.device)


def _here(model: Classifier, images: npt.NDArray[np.uint8], parts: Iterable[tuple[int, int]]) -> Iterator[Inference]:
    for start, stop in parts:
        yield _infer_batch(model, images[start:stop])


def _infer_batch(model: Classifier, images: npt.NDArray[np.uint8]) -> Inference:
    with _exact():
        features, traits = model.read(_pixels(model, images))
        return Inference(model.network.head(features).float().cpu().numpy(), traits.float().cpu().numpy())


def _in_processes(model: Classifier, images: np.memmap[Any, Any], parts: list[tuple[int, int]], processes: int) -> Iterator[Inference]:
    import multiprocessing

    numbers = multiprocessing.get_context("spawn").Value("i", 0)
    array = {"filename": str(images.filename), "dtype": images.dtype, "mode": "r", "offset": images.offset, "shape": images.shape}
    threads = max(1, usable_cores() // processes)
    with worker_pool(min(processes, len(parts)), _begin, model.cpu(), array, numbers, threads) as pool:
        try:
            yield from pool.map(_infer_part, parts)
        except BrokenProcessPool:
            hint = "Run the command again, with fewer --processes where memory is short."
            raise ProcessLostError("A process that judged images was ended from outside.", hint=hint) from None


_mine: dict[str, Any] = {}
"""Of a process of the pool: its network, on its device, and the images."""


def _begin(model: Classifier, array: dict[str, Any], numbers: Any, threads: int) -> None:
    import torch

    with numbers.get_lock():
        number, numbers.value = numbers.value, numbers.value + 1
    torch.set_num_threads(threads)
    device = f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    _mine.update(model=model.to(device), images=np.memmap(**array))


def _infer_part(part: tuple[int, int]) -> Inference:
    return _infer_batch(_mine["model"], _mine["images"][slice(*part)])
