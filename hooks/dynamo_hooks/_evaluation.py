"""Run a foreign model for reading only, and leave it as it was found."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

__all__ = ["reading_mode"]


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode, without gradients, and restore each flag.

    The flags are set one by one rather than through `model.eval()`, so that models that do work
    in `train` (merging adapters, for example) are not set in motion.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        _set_training((module, False) for module, _ in flags)
        with torch.no_grad():
            yield
    finally:
        _set_training(flags)


def _set_training(flags: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, training in flags:
        if module.training is not training:  # to set takes much longer than to look
            module.training = training


@contextmanager
def _random_state_kept(model: nn.Module) -> Iterator[None]:
    """Put the random generators of the CPU and of the model's CUDA devices back afterwards.

    Threads share them: in any but the main thread they are left alone, since putting them back
    would take away what others have drawn meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    on_cuda = torch.cuda.is_initialized()  # before that, no tensor is
    held = itertools.chain(model.parameters(), model.buffers()) if on_cuda else ()
    devices = sorted({tensor.device.index for tensor in held if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def reading_mode(model: nn.Module, *inside: nn.Module) -> Iterator[None]:
    """Have a model read without leaving a trace: evaluation mode, random generators kept.

    `inside` are modules that the model runs without owning them.
    """
    with ExitStack() as restored:
        restored.enter_context(_random_state_kept(model))
        for module in (model, *inside):
            restored.enter_context(_evaluation_mode(module))
        yield
