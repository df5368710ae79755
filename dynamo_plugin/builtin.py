"""The plugin that registers what this package brings, through the hooks that all plugins use."""

from __future__ import annotations

from dynamo_plugin.registry import Register, hookimpl

__all__ = [
    "dynamo_register_analyses",
    "dynamo_register_losses",
    "dynamo_register_meta_models",
    "dynamo_register_metrics",
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
def dynamo_register_metrics(register: Register) -> None:
    """Register the comparisons of hidden states, of outputs and of embedded networks."""
    register(
        "cka",
        "dynamo_plugin.metrics:CKA",
        summary="Centred kernel alignment, linear or RBF; biased, unbiased or debiased",
    )
    register(
        "procrustes",
        "dynamo_plugin.metrics:Procrustes",
        summary="Distance after the best rotation",
    )
    register(
        "shape",
        "dynamo_plugin.metrics:ShapeMetric",
        summary="Generalised shape metric: distance after partial whitening and rotation",
    )
    register(
        "cca",
        "dynamo_plugin.metrics:CCA",
        summary="Mean canonical correlation",
    )
    register(
        "cca_r2",
        "dynamo_plugin.metrics:CCAR2",
        summary="Mean squared canonical correlation",
    )
    register(
        "svcca",
        "dynamo_plugin.metrics:SVCCA",
        summary="Mean canonical correlation of leading directions",
    )
    register(
        "pwcca",
        "dynamo_plugin.metrics:PWCCA",
        summary="Projection-weighted canonical correlation",
    )
    register(
        "rsa",
        "dynamo_plugin.metrics:RSA",
        summary="Agreement of the dissimilarities between samples",
    )
    register(
        "predictivity",
        "dynamo_plugin.metrics:Predictivity",
        summary="Cross-validated R2 of a ridge regression between states",
    )
    register(
        "neighbours",
        "dynamo_plugin.metrics:NeighbourOverlap",
        summary="Jaccard overlap of the nearest neighbours of samples",
    )
    register(
        "dsa",
        "dynamo_plugin.metrics:DSA",
        summary="Dynamical similarity analysis: linear maps from step to step, up to a rotation",
    )
    register(
        "disagreement",
        "dynamo_plugin.metrics:Disagreement",
        summary="Share of samples that get different answers",
    )
    register(
        "jensen_shannon",
        "dynamo_plugin.metrics:JensenShannon",
        summary="Jensen-Shannon distance of class probabilities",
    )
    register(
        "theta",
        "dynamo_plugin.metrics:ThetaDistance",
        summary="Distance of the thetas of an embedding",
    )
    register(
        "pullback",
        "dynamo_plugin.metrics:PullbackDistance",
        summary="Distance of the thetas of an embedding, in the pull-back metric",
    )
    register(
        "functional",
        "dynamo_plugin.metrics:FunctionalDistance",
        summary="Root mean square difference of what rendered networks do",
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
        "agreement",
        "dynamo_plugin.analyses:agreement",
        summary="Whether distances of the embedding agree with each other and with metrics",
    )
    register(
        "null",
        "dynamo_plugin.analyses:null",
        summary="Statistics of an analysis beside those of permuted labels, shuffled time, "
        "untrained networks or twins",
    )
    register(
        "average",
        "dynamo_plugin.analyses:average",
        summary="The rendered centroid of each group beside its members",
    )
    register(
        "uncertainty",
        "dynamo_plugin.analyses:uncertainty",
        summary="Where networks lie over seeds and bootstrap samples, and how surely",
    )
    register(
        "output_weight_sweep",
        "dynamo_plugin.analyses:output_weight_sweep",
        summary="What dynamics separate and what outputs separate: one fit per output weight",
    )
    register(
        "training_trajectory",
        "dynamo_plugin.analyses:training_trajectory",
        summary="Paths of training runs through the embedding of their checkpoints",
    )
    register(
        "landscape",
        "dynamo_plugin.analyses:landscape",
        summary="The task score over a plane of thetas, and whether its best point beats the rest",
    )
    register(
        "interpolation",
        "dynamo_plugin.analyses:interpolation",
        summary="From one network to another: by theta, straight and geodesic, weights and outputs",
    )
    register(
        "semi_supervised",
        "dynamo_plugin.analyses:semi_supervised",
        summary="Theta found from few labels, beside networks, ensemble and linear probes",
    )
    register(
        "novelty",
        "dynamo_plugin.analyses:novelty",
        summary="New networks in the frozen meta-model: place, neighbours, fidelity, and a flag",
    )
