"""Resumable checkpoints on disk: written whole, the one before kept, read back only if every byte checks.

RUN/checkpoints/last.ckpt       newest         RUN/checkpoints/best.ckpt   lowest val_loss
RUN/checkpoints/previous.ckpt   the one before, for when the newest is damaged
RUN/checkpoints/next.ckpt       what a kill left that came before it was called last.ckpt
"""

from __future__ import annotations

import copy
import io
import logging
import os
import uuid
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..core.config import Precision
from ..core.errors import CheckpointError
from ..model.registered import FILE_NAME
from ..storage.atomic import remove_leftovers, storage_errors, sync_folder, write_bytes

log = logging.getLogger(__name__)


class Writer:
    """Does what it is given in a thread of its own, one thing after the other and beside the training.

    What one of them raises is raised by the next call of ``do``, ``check`` or ``wait``, and what was to follow it is left undone.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._newest: Future[None] | None = None
        self._error: Exception | None = None

    def do(self, action: Callable[..., None], *arguments: Any, **more: Any) -> None:
        self.check()
        self._newest = self._thread.submit(self._run, partial(action, *arguments, **more))

    def _run(self, action: Callable[[], None]) -> None:
        if self._error is None:
            try:
                action()
            except Exception as error:
                self._error = error

    def check(self) -> None:
        """Raises what has been raised so far. Waits for nothing."""
        if self._error is not None:
            self._finish()
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until all is done."""
        self._finish()
        self.check()

    def close(self) -> None:
        """Finish what was begun, whatever comes of it: another error is on its way already."""
        self._finish()
        self._thread.shutdown()

    def _finish(self) -> None:
        if self._newest is not None:
            self._newest.result()


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to disk: whole or not at all, and beside the training, which waits for the copy in memory alone."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.writer = writer

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises NoSpaceError or StorageError, of the one before; the checkpoint that was there stays."""
        self.writer.wait()  # one copy at a time
        values, arrived = on_host(checkpoint)
        self.writer.do(write_checkpoint, values, Path(path), arrived=arrived)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Raises CheckpointError for a damaged file. Never runs code from the file, whatever ``weights_only`` says."""
        check_intact(Path(path))
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def write_checkpoint(checkpoint: Any, path: Path, *, arrived: Callable[[], None] = lambda: None) -> None:
    """Raises NoSpaceError or StorageError. ``arrived``: waits until the values are what they will be."""
    arrived()
    buffer = io.BytesIO()  # first to memory: torch hides the reason when a file refuses to be written
    torch.save(checkpoint, buffer)
    write_bytes(path, buffer.getbuffer())


def saved_precision(path: Path) -> Precision | None:
    """The precision in which the run of a checkpoint is trained; None in one from before 0.2."""
    precision: Precision | None = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("precision")
    return precision


def on_host(values: Any) -> tuple[Any, Callable[[], None]]:
    """A copy of nested ``values`` with their tensors in the host's memory, as of now; and what waits until a device has delivered them.

    The device copies in the order of its work, so the training may go on changing the originals at once.
    """
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    copied = copy.deepcopy(values, {id(tensor): _to_host(tensor.detach()) for tensor in tensors})
    events = [torch.cuda.current_stream(device).record_event() for device in {tensor.device for tensor in tensors if tensor.is_cuda}]

    def arrived() -> None:
        for event in events:
            event.synchronize()

    return copied, arrived


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True)
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def promote(folder: Path) -> None:
    """``next.ckpt``, whole by now, becomes the newest, and the newest the one before. Until then both generations stay as they are: a write that
    was broken off leaves two files, so that the loss of one is not that of both."""
    newest = folder / "last.ckpt"
    with storage_errors(newest):
        if newest.exists():
            replace_by_link(newest, folder / "previous.ckpt")
        os.replace(folder / "next.ckpt", newest)
        sync_folder(folder)


def replace_by_link(source: Path, target: Path) -> None:
    """Make ``target`` another name of ``source``'s bytes, at once; a reader meets its old or its new content."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")  # as ``remove_leftovers`` knows them
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        write_bytes(temporary, source.read_bytes())
    os.replace(temporary, target)


def remove_broken_writes(run_dir: Path) -> None:
    """Delete the halves of checkpoints that killed processes left, each as large as a whole one. Only for who alone writes the run."""
    for name in ("next.ckpt", "last.ckpt", "previous.ckpt", "best.ckpt"):
        remove_leftovers(run_dir / "checkpoints" / name)
    remove_leftovers(run_dir / FILE_NAME)


def check_intact(path: Path) -> None:
    """Read every record of a checkpoint against its checksum. Raises CheckpointError for a truncated or altered file."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.", hint="The checkpoint before it is used where there is one.") from None
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} fails its checksum.", hint="The checkpoint before it is used where there is one.")


def newest_intact(folder: Path) -> Path | None:
    """The checkpoint to resume from: the last one, or the one before where the last is damaged. None where there is none.

    Raises CheckpointError where every one is damaged: starting over, and over the best epoch's weights, must be somebody's decision.
    """
    damaged = False
    for name in ("last.ckpt", "previous.ckpt"):
        path = folder / name
        if path.is_file():
            try:
                check_intact(path)
                return path
            except CheckpointError as error:
                log.warning("%s", error.message)
                damaged = True
    if damaged:
        raise CheckpointError(
            f"Every checkpoint of the run in {folder} is damaged.",
            hint="Bring a copy of last.ckpt back, or go on from the best epoch: copy best.ckpt, if it is whole, to last.ckpt. Else choose another --run-dir.",
        )
    return None
