"""Single values on their way from a device to the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor


class Arrivals:
    """Hands values on when they have arrived, in the order in which they were sent, so that no step waits for its own loss."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[torch.cuda.Event, Tensor, Callable[[float], None]]] = deque()

    def send(self, value: Tensor, use: Callable[[float], None]) -> None:
        """Call ``use`` with a value of one element: at once on a CPU, by ``collect`` on a GPU."""
        if not value.is_cuda:
            use(float(value))
            return
        copy = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value.detach(), non_blocking=True)
        self._under_way.append((torch.cuda.current_stream(value.device).record_event(), copy, use))

    def collect(self, *, wait: bool = False) -> None:
        """Use what has arrived; with ``wait``, all."""
        while self._under_way and (wait or self._under_way[0][0].query()):
            event, copy, use = self._under_way.popleft()
            event.synchronize()
            use(float(copy))
