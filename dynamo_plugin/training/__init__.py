"""Fitting a meta-model to a population: objective, batches, optimiser, evaluation."""

from __future__ import annotations

from dynamo_plugin.training.config import FitConfig
from dynamo_plugin.training.evaluation import Evaluation, compares_decisions, evaluate
from dynamo_plugin.training.targets import Targets
from dynamo_plugin.training.trainer import FittedModels, train

__all__ = [
    "Evaluation",
    "FitConfig",
    "FittedModels",
    "Targets",
    "compares_decisions",
    "evaluate",
    "train",
]
