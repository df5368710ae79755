"""Fitting a meta-model to a population: objective, batches, optimiser, evaluation."""

from __future__ import annotations

from dynamo_plugin.training.building import make_state_maps
from dynamo_plugin.training.callbacks import (
    Callback,
    MLflowLogger,
    ProgressBar,
    TensorBoardLogger,
    WandbLogger,
)
from dynamo_plugin.training.checkpoints import CheckpointFolder
from dynamo_plugin.training.config import PRESETS, FitConfig
from dynamo_plugin.training.evaluation import Evaluation, compares_decisions, evaluate
from dynamo_plugin.training.own_readouts import OwnReadouts
from dynamo_plugin.training.ranks import process_group
from dynamo_plugin.training.targets import Targets
from dynamo_plugin.training.trainer import FittedModels, Trainer, run_together

__all__ = [
    "PRESETS",
    "Callback",
    "CheckpointFolder",
    "Evaluation",
    "FitConfig",
    "FittedModels",
    "MLflowLogger",
    "OwnReadouts",
    "ProgressBar",
    "Targets",
    "TensorBoardLogger",
    "Trainer",
    "WandbLogger",
    "compares_decisions",
    "evaluate",
    "make_state_maps",
    "process_group",
    "run_together",
]
