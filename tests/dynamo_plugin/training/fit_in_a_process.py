"""Fits a stored population, for tests that kill this process or start several.

python fit_in_a_process.py POPULATION CHECKPOINTS EMBEDDING VARIANT [STOP]
"""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from typing import Any

from dynamo_plugin.embedding import fit
from dynamo_plugin.store import open_population
from dynamo_plugin.training import Callback, Trainer


class Stop(Callback):
    """Ends the fit at a step as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, fit: Trainer) -> None:
        """Stop."""
        if fit.step == self.at:
            fit.stop("interrupted")


def main() -> None:
    """Fit, and let the first process save."""
    population, checkpoints, target, variant, *stop = sys.argv[1:]
    spec = util.spec_from_file_location("settings", Path(__file__).with_name("test_resuming.py"))
    assert spec is not None
    assert spec.loader is not None
    settings: Any = util.module_from_spec(spec)
    spec.loader.exec_module(settings)
    ranks: list[int] = []

    class Note(Callback):
        def begin(self, fit: Trainer) -> None:
            ranks.append(fit.ranks.rank)

        def step(self, fit: Trainer) -> None:
            assert len(fit.thetas) == len(fit.ids)  # asks no other process

    embedding = fit(
        open_population(population),
        device="cpu",
        progress=False,
        checkpoints=checkpoints,
        resume=True,
        callbacks=[Note(), *([Stop(int(stop[0]))] if stop and int(stop[0]) else [])],
        **{**settings.BASE, **settings.VARIANTS[variant]},
    )
    if ranks:  # callbacks are those of the first process
        embedding.save(target)


if __name__ == "__main__":
    main()
