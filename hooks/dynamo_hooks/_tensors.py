"""Tensors in dtypes that a store can hold, and what counts as the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from dynamo_plugin.errors import CaptureError

__all__ = ["close", "dtype_name", "padded", "storable", "stored_state"]

_STORED = {torch.float16: "float16", torch.float32: "float32", torch.float64: "float64"}
# What NumPy has no dtype for, or what no meta-model is trained on, to one that holds every value.
_WIDENED = {
    torch.bfloat16: torch.float32,
    torch.float8_e4m3fn: torch.float32,
    torch.float8_e5m2: torch.float32,
    torch.bool: torch.float32,
    torch.uint8: torch.float32,
    torch.int8: torch.float32,
    torch.int16: torch.float32,
    torch.int32: torch.float64,
    torch.int64: torch.float64,
}
_EXACT_INTEGERS = 2**53
# Relative to the largest entry. The same kernels on other batch shapes; and other kernels, also
# with TF32 on accelerators.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_HALF_TOLERANCE = 1e-2
_LOOSE_TOLERANCE = {torch.float64: 1e-7, torch.float32: 5e-3}
_LOOSE_HALF_TOLERANCE = 5e-2


def storable(tensor: Tensor, name: str) -> Tensor:
    """Return the tensor in a dtype that NumPy knows, without changing a value.

    float16, float32 and float64 are kept; bfloat16 is widened to float32, which is exact.

    Raises
    ------
    CaptureError
        For any other dtype: expected floating numbers.
    """
    if tensor.dtype in _STORED:
        return tensor
    if tensor.dtype == torch.bfloat16:
        return tensor.float()
    raise CaptureError(
        f"{name} has dtype {str(tensor.dtype).removeprefix('torch.')}; expected float16, "
        "float32, float64 or bfloat16. Predicted labels cannot be compared smoothly: return the "
        "logits instead, or choose another part of the result with output= or forward=."
    )


def stored_state(tensor: Tensor, name: str) -> tuple[Tensor, str | None]:
    """Return a state in a dtype that NumPy knows, and the name of its own dtype if that differs.

    Every value is kept: bfloat16, float8, integers and truth values are widened; quantised
    tensors become the numbers that they stand for.

    Raises
    ------
    CaptureError
        The tensor is complex or of an unknown dtype, or holds integers beyond 2**53.

    Examples
    --------
    >>> stored_state(torch.tensor([1, 2], dtype=torch.int8), "site 'codes'")
    (tensor([1., 2.]), 'int8')
    """
    own = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype in _STORED:
        return tensor, None
    if tensor.is_quantized:
        return tensor.dequantize(), own
    if tensor.dtype not in _WIDENED:
        raise CaptureError(
            f"{name} has dtype {own}; expected floating numbers, integers or a quantised tensor. "
            "Choose other modules with layers=."
        )
    if tensor.dtype == torch.int64 and tensor.numel():
        low, high = (int(bound) for bound in torch.aminmax(tensor))
        if max(-low, high) > _EXACT_INTEGERS:
            raise CaptureError(
                f"{name} holds integers from {low} to {high}, which float64 cannot keep apart; "
                "expected none beyond 2**53. Choose other modules with layers=."
            )
    return tensor.to(_WIDENED[tensor.dtype]), own


def dtype_name(tensor: Tensor) -> str:
    """Return the NumPy name of a storable tensor's dtype.

    >>> dtype_name(torch.zeros(1))
    'float32'
    """
    return _STORED[tensor.dtype]


def close(first: Tensor, second: Tensor, *, loose: bool = False) -> bool:
    """Return whether two results agree up to rounding, relative to the largest entry.

    `loose` allows for other kernels, and tells only the same computation from another one.
    """
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.numel() == 0:
        return True
    scale = float(torch.nan_to_num(first.abs(), nan=0.0, posinf=0.0).max())
    if loose:
        relative = _LOOSE_TOLERANCE.get(first.dtype, _LOOSE_HALF_TOLERANCE)
    else:
        relative = _TOLERANCE.get(first.dtype, _HALF_TOLERANCE)
    tolerance = relative * max(scale, 1e-6)
    return torch.allclose(first, second, rtol=0.0, atol=tolerance, equal_nan=True)


def padded(sequence: PackedSequence) -> tuple[Tensor, Tensor]:
    """Return a packed sequence as (sample, time, ...) in the caller's sample order, and lengths."""
    values, lengths = pad_packed_sequence(sequence, batch_first=True)
    return values, lengths
