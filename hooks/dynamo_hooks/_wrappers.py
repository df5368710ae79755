"""Modules around modules: seen through, or refused where hooks inside would not run."""

from __future__ import annotations

import torch
from torch import nn

from dynamo_plugin.errors import UnsupportedModel

__all__ = ["require_hookable", "unwrapped"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile`, `DataParallel` and its distributed kin wrap.

    It has the same weights, and runs in the process and on the devices where it lies.

    >>> network = nn.Linear(2, 3)
    >>> unwrapped(nn.DataParallel(network)) is network
    True
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def require_hookable(model: nn.Module) -> None:
    """Refuse modules in which hooks do not run.

    Raises
    ------
    UnsupportedModel
        A submodule is scripted or compiled, or its weights are sharded; names it.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            fault = "a ScriptModule, which runs without Python hooks"
        elif hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None):
            fault = "compiled, so that hooks inside it may not run"
        elif type(module).__name__ == "FullyShardedDataParallel":
            fault = "sharded, so that this process holds only a part of its weights"
        else:
            continue
        place = f"submodule {name!r}" if name else type(model).__name__
        raise UnsupportedModel(f"{place} is {fault}. Give the plain module with the same weights.")
