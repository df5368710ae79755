"""Between torch tensors and JAX arrays, and the fingerprint of a flax.nnx module.

JAX and flax are imported inside the functions: importing this module must not.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo_plugin.errors import CaptureError, InvalidInput
from dynamo_plugin.registry.fingerprint import class_name

__all__ = ["fingerprint", "is_abstract", "is_array", "to_jax", "to_torch"]

# What NumPy knows only through ml_dtypes, to the torch dtype of the same bits and a carrier.
_BITS: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    "bfloat16": (torch.bfloat16, np.int16),
    "float8_e4m3fn": (torch.float8_e4m3fn, np.uint8),
    "float8_e5m2": (torch.float8_e5m2, np.uint8),
}


def is_array(value: object) -> bool:
    """Return whether a value is a JAX array, with numbers or abstract; keys are none."""
    import jax

    return isinstance(value, jax.Array) and not jax.numpy.issubdtype(
        value.dtype, jax.dtypes.prng_key
    )


def is_abstract(value: object) -> bool:
    """Return whether a value stands for an array inside jit, scan, vmap or grad."""
    import jax

    return isinstance(value, jax.core.Tracer)


def to_torch(array: Any, name: str) -> Tensor:
    """Return a JAX array as a tensor on the CPU that shares no memory with it, bit for bit.

    Raises
    ------
    CaptureError
        torch has no such dtype.
    """
    plain = np.array(array)
    own = plain.dtype.name
    if own in _BITS:
        dtype, carrier = _BITS[own]
        return torch.from_numpy(plain.view(carrier)).view(dtype)
    try:
        return torch.from_numpy(plain)
    except TypeError as error:
        raise CaptureError(
            f"{name} has dtype {own}, which torch does not have; expected floating numbers or "
            "integers. Choose other modules with layers=, or cast in forward=."
        ) from error


def to_jax(values: Tensor, name: str) -> Any:
    """Return inputs as a JAX array on the default device.

    Where JAX is at 32 bits (`jax_enable_x64` off, its default), float64 is rounded to float32
    and int64 becomes int32, which must hold every value. Other dtypes are kept.

    Raises
    ------
    InvalidInput
        An id is beyond 32 bits.
    """
    import jax

    if values.dtype == torch.bfloat16:
        return jax.numpy.asarray(values.float().numpy(), dtype=jax.numpy.bfloat16)
    if not jax.config.read("jax_enable_x64"):
        if values.dtype == torch.float64:
            values = values.float()
        elif values.dtype == torch.int64:
            if values.numel():
                low, high = (int(bound) for bound in torch.aminmax(values))
                bounds = torch.iinfo(torch.int32)
                if low < bounds.min or high > bounds.max:
                    raise InvalidInput(
                        f"{name} holds integers from {low} to {high}; JAX is at 32 bits and takes "
                        f"{bounds.min} to {bounds.max}. Switch on jax_enable_x64."
                    )
            values = values.int()
    return jax.numpy.array(values.numpy())


def fingerprint(model: Any) -> str:
    """Return the SHA-256 of the class and the state of a flax.nnx module.

    Covers the qualified class name and, for every leaf of `nnx.state`, its path, shape, dtype and
    bytes. The state of random number generators is left out: in evaluation mode nothing draws
    from them, and training or initialising something else advances them. Two models of the same
    hash may differ in what is no state, such as an activation function.
    """
    import jax
    from flax import nnx

    digest = hashlib.sha256(b"dynamo-nnx/1\n")
    digest.update(f"{class_name(model)}\n".encode())
    state = nnx.state(model, nnx.Not(nnx.RngState))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if isinstance(leaf, jax.Array) and not is_array(leaf):
            leaf = jax.random.key_data(leaf)
        plain = np.asarray(leaf)
        # Keys and places in containers; attributes (`value`) differ from release to release.
        parts = [getattr(entry, "key", getattr(entry, "idx", None)) for entry in path]
        names = [str(part) for part in parts if part is not None]
        header = [names, plain.dtype.name, list(plain.shape), plain.nbytes]
        digest.update(json.dumps(header).encode())
        digest.update(plain.tobytes())
    return digest.hexdigest()
