"""Analyses of a model embedding: one module each, all reached by name through `analyse`."""

from __future__ import annotations

from dynamo_plugin.analyses._result import TableResult, plain, plot_text
from dynamo_plugin.analyses.agreement import AgreementResult, agreement
from dynamo_plugin.analyses.attribution import AttributionResult, attribution
from dynamo_plugin.analyses.average import AverageResult, average
from dynamo_plugin.analyses.clusters import ClustersResult, clusters
from dynamo_plugin.analyses.components import ComponentsResult, components
from dynamo_plugin.analyses.fidelity import FidelityResult, fidelity
from dynamo_plugin.analyses.interpolation import InterpolationResult, interpolation
from dynamo_plugin.analyses.labels import Labels, read_labels
from dynamo_plugin.analyses.landscape import LandscapeResult, landscape
from dynamo_plugin.analyses.novelty import NoveltyResult, novelty
from dynamo_plugin.analyses.null import NullResult, null
from dynamo_plugin.analyses.output_weight_sweep import (
    OutputWeightSweepResult,
    output_weight_sweep,
)
from dynamo_plugin.analyses.run import analyse
from dynamo_plugin.analyses.semi_supervised import SemiSupervisedResult, semi_supervised
from dynamo_plugin.analyses.training_trajectory import (
    TrainingTrajectoryResult,
    training_trajectory,
)
from dynamo_plugin.analyses.uncertainty import UncertaintyResult, uncertainty

__all__ = [
    "AgreementResult",
    "AttributionResult",
    "AverageResult",
    "ClustersResult",
    "ComponentsResult",
    "FidelityResult",
    "InterpolationResult",
    "Labels",
    "LandscapeResult",
    "NoveltyResult",
    "NullResult",
    "OutputWeightSweepResult",
    "SemiSupervisedResult",
    "TableResult",
    "TrainingTrajectoryResult",
    "UncertaintyResult",
    "agreement",
    "analyse",
    "attribution",
    "average",
    "clusters",
    "components",
    "fidelity",
    "interpolation",
    "landscape",
    "novelty",
    "null",
    "output_weight_sweep",
    "plain",
    "plot_text",
    "read_labels",
    "semi_supervised",
    "training_trajectory",
    "uncertainty",
]
