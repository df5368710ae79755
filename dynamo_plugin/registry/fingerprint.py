"""A fingerprint of a model, so that a resumed capture notices that it changed."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from dynamo_plugin.errors import UnsupportedModel

__all__ = ["class_name", "model_hash"]


def class_name(model: object) -> str:
    """Return the qualified name of an object's class, the same in every process of a program.

    In processes that `multiprocessing` starts, the main module is called `__mp_main__`.

    >>> class_name(torch.nn.Linear(1, 1))
    'torch.nn.modules.linear.Linear'
    """
    kind = type(model)
    module = "__main__" if kind.__module__ == "__mp_main__" else kind.__module__
    return f"{module}.{kind.__qualname__}"


def model_hash(model: object) -> str:
    """Return the SHA-256 of a model's class and state dict.

    Covers the qualified class name and, for every entry of the state dict in its order, name,
    shape, dtype and bytes; entries that are no tensors count by their repr. Two models of the
    same hash may still differ in what they do not keep in their state dict.

    Raises
    ------
    UnsupportedModel
        The object has no `state_dict()`.

    Examples
    --------
    >>> network = torch.nn.Linear(2, 3)
    >>> model_hash(network) == model_hash(network)
    True
    """
    state_dict = getattr(model, "state_dict", None)
    if not callable(state_dict):
        raise UnsupportedModel(
            f"expected a model with state_dict(), from which its fingerprint is taken; got "
            f"{type(model).__name__}."
        )
    digest = hashlib.sha256(b"dynamo-model/1\n")
    digest.update(f"{class_name(model)}\n".encode())
    for name, value in state_dict().items():
        if not isinstance(value, Tensor):
            digest.update(json.dumps([name, "other", repr(value)]).encode())
            continue
        plain = value.detach().cpu().contiguous()
        content = plain.reshape(-1).view(torch.uint8)
        header = [name, str(value.dtype), list(value.shape), content.numel()]
        digest.update(json.dumps(header).encode())
        digest.update(content.numpy().data)
    return digest.hexdigest()
