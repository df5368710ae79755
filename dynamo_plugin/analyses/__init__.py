"""Analyses of a model embedding: one module each, all reached by name through `analyse`."""

from __future__ import annotations

from dynamo_plugin.analyses._result import TableResult, plain, plot_text
from dynamo_plugin.analyses.agreement import AgreementResult, agreement
from dynamo_plugin.analyses.attribution import AttributionResult, attribution
from dynamo_plugin.analyses.average import AverageResult, average
from dynamo_plugin.analyses.clusters import ClustersResult, clusters
from dynamo_plugin.analyses.components import ComponentsResult, components
from dynamo_plugin.analyses.fidelity import FidelityResult, fidelity
from dynamo_plugin.analyses.labels import Labels, read_labels
from dynamo_plugin.analyses.novelty import NoveltyResult, novelty
from dynamo_plugin.analyses.null import NullResult, null
from dynamo_plugin.analyses.run import analyse

__all__ = [
    "AgreementResult",
    "AttributionResult",
    "AverageResult",
    "ClustersResult",
    "ComponentsResult",
    "FidelityResult",
    "Labels",
    "NoveltyResult",
    "NullResult",
    "TableResult",
    "agreement",
    "analyse",
    "attribution",
    "average",
    "clusters",
    "components",
    "fidelity",
    "novelty",
    "null",
    "plain",
    "plot_text",
    "read_labels",
]
