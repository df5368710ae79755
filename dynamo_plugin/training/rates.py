"""How the learning rate changes along a fit."""

from __future__ import annotations

import math

from dynamo_plugin.training.config import FitConfig

__all__ = ["learning_rate"]


def learning_rate(step: int, config: FitConfig) -> float:
    """Return the share of its peak that a rate has at a step, counted from 0.

    >>> config = FitConfig(steps=101, warmup=1)
    >>> [round(learning_rate(step, config), 3) for step in (0, 1, 51, 101)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
