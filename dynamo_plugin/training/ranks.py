"""The processes that share one fit: a single one, unless torchrun started several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks", "process_group"]

TIMEOUT = timedelta(minutes=30)
"""How long one process waits for the others, of which one may be reading all states to align
them."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of several processes this one is, and how it talks to the others.

    Every model belongs to one process, which keeps its theta and state maps and computes its loss;
    the meta-model is on all of them. With a single process nothing here does anything.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Return the processes of the default process group; a single one if there is no group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def own(self, models: int) -> range:
        """Return the models of this process: a block of consecutive ones."""
        bounds = [rank * models // self.size for rank in (self.rank, self.rank + 1)]
        return range(*bounds)

    def most(self, models: Tensor, count: int) -> int:
        """Return how many of some models, of so many in all, one process has at most."""
        owns = [Ranks(rank, self.size).own(count) for rank in range(self.size)]
        return max(int(((models >= own.start) & (models < own.stop)).sum()) for own in owns)

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of tensors over processes, in one message for each dtype."""
        if self.size == 1:
            return list(tensors)
        summed: list[Tensor] = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[place].reshape(-1) for place in places])
            dist.all_reduce(flat)
            parts = flat.split([tensors[place].numel() for place in places])
            for place, part in zip(places, parts, strict=True):
                summed[place] = part.view(tensors[place].shape)
        return summed

    def gather(self, own: Tensor, models: int) -> Tensor:
        """Join what every process has of its own models, along the first axis.

        Parameters
        ----------
        own
            (own model, ...).
        models
            How many there are in all.
        """
        if self.size == 1:
            return own
        whole = own.new_zeros(models, *own.shape[1:])
        mine = self.own(models)
        whole[mine.start : mine.stop] = own
        flags = whole.to(torch.uint8) if whole.dtype == torch.bool else whole
        dist.all_reduce(flags)  # a sum with zeros is exact
        return flags.to(own.dtype)

    def from_first(self, tensor: Tensor) -> Tensor:
        """Return the first process's tensor; the others give one of the same shape and dtype."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, for as long as the context lasts.

    Does nothing where there is a process group already, or this is the only process.

    Parameters
    ----------
    device
        Where this process computes; of several accelerators, it takes the one of its local rank.

    Yields
    ------
    torch.device
        Where this process computes.
    """
    if device.type != "cpu" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device(device.type, int(os.environ["LOCAL_RANK"]))
        torch.accelerator.set_device_index(device.index)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    # What is found before the fit lies on the CPU, which NCCL does not reach.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()
