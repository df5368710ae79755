"""The plugin that registers the adapters."""

from __future__ import annotations

from dynamo_plugin.registry import Register, hookimpl

__all__ = ["dynamo_register_adapters"]


@hookimpl
def dynamo_register_adapters(register: Register) -> None:
    """Register the adapters; of several that take a model, the last one reads it."""
    register(
        "torch_recurrent",
        "dynamo_hooks.torch_recurrent:TorchRecurrentAdapter",
        summary="torch.nn.RNN, GRU and LSTM inside any module",
    )
    register(
        "transformer_lens",
        "dynamo_hooks.transformer_lens:TransformerLensAdapter",
        summary="hook points of TransformerLens: TransformerBridge and HookedRootModule",
    )
    register(
        "flax_nnx",
        "dynamo_hooks.flax_nnx:FlaxNNXAdapter",
        summary="flax.nnx modules (JAX)",
    )
