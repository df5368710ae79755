"""The plugin that registers the adapters."""

from __future__ import annotations

from dynamo_plugin.registry import Register, hookimpl

__all__ = ["dynamo_register_adapters"]


@hookimpl
def dynamo_register_adapters(register: Register) -> None:
    """Register the adapters, the more specific ones first."""
    register(
        "torch_recurrent",
        "dynamo_hooks.torch_recurrent:TorchRecurrentAdapter",
        summary="torch.nn.RNN, GRU and LSTM inside any module",
    )
