"""The plugin that registers what this package brings, through the hooks that all plugins use."""

from __future__ import annotations

from dynamo_plugin.registry import Register, hookimpl

__all__ = [
    "dynamo_register_analyses",
    "dynamo_register_losses",
    "dynamo_register_meta_models",
]


@hookimpl
def dynamo_register_meta_models(register: Register) -> None:
    """Register the meta-model families."""
    register(
        "gru",
        "dynamo_plugin.metamodels:GRUMetaModel",
        summary="GRU that reads [input ; theta] at every step",
    )
    register(
        "lstm",
        "dynamo_plugin.metamodels:LSTMMetaModel",
        summary="LSTM that reads [input ; theta] at every step; its state is [h | c]",
    )
    register(
        "rnn",
        "dynamo_plugin.metamodels:RNNMetaModel",
        summary="tanh RNN that reads [input ; theta] at every step",
    )
    register(
        "resnet",
        "dynamo_plugin.metamodels:ResNetMetaModel",
        summary="Residual network on images, with theta added to the channels of every block",
    )
    register(
        "transformer",
        "dynamo_plugin.metamodels:TransformerMetaModel",
        summary="Transformer whose residual stream is compared after every block",
    )
    register(
        "residual",
        "dynamo_plugin.metamodels:ResidualMetaModel",
        summary="Residual blocks on vectors, one per recorded layer",
    )


@hookimpl
def dynamo_register_losses(register: Register) -> None:
    """Register the losses on hidden states and on outputs."""
    register(
        "l2",
        "dynamo_plugin.losses:l2",
        role="hidden",
        summary="Squared distance of hidden states, averaged over units",
    )
    register(
        "l1",
        "dynamo_plugin.losses:l1",
        role="hidden",
        summary="Absolute distance of hidden states, averaged over units",
    )
    register(
        "kl",
        "dynamo_plugin.losses:kl",
        role="output",
        domain="logits",
        summary="Kullback-Leibler divergence of class probabilities, from logits",
    )
    register(
        "mse",
        "dynamo_plugin.losses:mse",
        role="output",
        domain="real",
        summary="Squared distance of real outputs",
    )


@hookimpl
def dynamo_register_analyses(register: Register) -> None:
    """Register the analyses of a model embedding."""
    register(
        "fidelity",
        "dynamo_plugin.analyses:fidelity",
        summary="Hidden R2 and output agreement per model, on held-out inputs",
    )
    register(
        "components",
        "dynamo_plugin.analyses:components",
        summary="Principal components of the thetas, and how many dimensions they fill",
    )
    register(
        "clusters",
        "dynamo_plugin.analyses:clusters",
        summary="Clusters by four methods, and their agreement with labels",
    )
    register(
        "attribution",
        "dynamo_plugin.analyses:attribution",
        summary="Which columns of the metadata explain the thetas, with permutation tests",
    )
    register(
        "null",
        "dynamo_plugin.analyses:null",
        summary="Statistics of an analysis beside those of permuted labels",
    )
    register(
        "average",
        "dynamo_plugin.analyses:average",
        summary="The rendered centroid of each group beside its members",
    )
