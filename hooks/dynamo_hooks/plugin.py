"""The plugin that registers the adapters."""

from __future__ import annotations

from dynamo_plugin.registry import Register, hookimpl

__all__ = ["dynamo_register_adapters"]


@hookimpl
def dynamo_register_adapters(register: Register) -> None:
    """Register the adapters; of several that take a model, the one registered last reads it."""
    register(
        "torch_recurrent",
        "dynamo_hooks.torch_recurrent:TorchRecurrentAdapter",
        summary="torch.nn.RNN, GRU and LSTM, and cells stepped by hand, inside any module",
    )
    register(
        "torch_layers",
        "dynamo_hooks.torch_layers:TorchLayersAdapter",
        summary="chosen modules of any feed-forward network, stages of residual networks",
    )
    register(
        "huggingface",
        "dynamo_hooks.huggingface:HuggingFaceAdapter",
        summary="embeddings, blocks and final norm of any model of transformers",
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
