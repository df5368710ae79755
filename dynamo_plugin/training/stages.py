"""Where the states of base models and meta-model are compared: once per step, or once per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_plugin.errors import InvalidInput, UnknownName, suggest
from dynamo_plugin.store import Population
from dynamo_plugin.types import SiteSpec, StageSpec

__all__ = ["HIDDEN", "Stage", "find_stages"]

HIDDEN = "hidden"
"""The one stage of recurrent networks."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A state of the meta-model, and what each base model has in its place."""

    spec: StageSpec
    sites: tuple[tuple[SiteSpec, ...], ...]
    """Per model: sites whose units are joined, side by side."""

    @property
    def name(self) -> str:
        """Name of the state in what the meta-model returns."""
        return self.spec.name

    @property
    def units(self) -> tuple[int, ...]:
        """Per model: units at one step, or channels at one position."""
        positions = math.prod(self.spec.positions)
        return tuple(
            sum(math.prod(site.shape) // positions for site in sites) for sites in self.sites
        )

    def select(self, models: range) -> Stage:
        """Return the stage of some of the models."""
        return Stage(self.spec, self.sites[models.start : models.stop])

    @property
    def every(self) -> tuple[int, ...]:
        """Per model: states of steps 0, every, 2 every, ... of each sample were stored."""
        return tuple(sites[0].every for sites in self.sites)


def find_stages(
    population: Population,
    models: Sequence[str],
    *,
    sites: Sequence[str] | None,
    layered: bool,
) -> tuple[Stage, ...]:
    """Return the stages at which some models can be compared.

    Parameters
    ----------
    population
        Where the models are.
    models
        Their ids.
    sites
        Names of the sites that count; None for all of each model.
    layered
        Whether depth takes the place of time: every site is a stage of its own, site by site in
        the order of computation. Else the units of all sites are joined into one state per step.

    Raises
    ------
    UnknownName
        If a model lacks one of the sites.
    InvalidInput
        If sites do not have one row per step, or were stored at different steps, where they have
        to be joined; if models differ in the number of their sites, or in their positions, where
        they have to be compared one by one.
    """
    chosen = [_chosen(population, model, sites) for model in models]
    if not layered:
        for model, own in zip(models, chosen, strict=True):
            _require_joinable(model, own)
        return (Stage(StageSpec(HIDDEN, "time"), tuple(chosen)),)
    counts = {model: len(own) for model, own in zip(models, chosen, strict=True)}
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise InvalidInput(
            f"Stages are compared one by one, and model {few!r} has {counts[few]} sites where "
            f"{many!r} has {counts[many]}. Choose as many of each with sites=[...], or embed "
            "networks of one depth together."
        )
    stages = []
    for number, column in enumerate(zip(*chosen, strict=True)):
        layouts = {(site.axis, _positions(site)) for site in column}
        if len(layouts) > 1:
            shown = ", ".join(
                f"{site.name!r} of {model!r} {site.shape} per {site.axis}"
                for model, site in list(zip(models, column, strict=True))[:4]
            )
            raise InvalidInput(
                f"Stage {number} has different positions in different models: {shown}. Choose "
                "sites that correspond with sites=[...], or average feature maps to one grid when "
                "they are captured."
            )
        axis, positions = layouts.pop()
        spec = StageSpec(f"stage{number}", axis, positions)
        stages.append(Stage(spec, tuple((site,) for site in column)))
    return tuple(stages)


def _positions(site: SiteSpec) -> tuple[int, ...]:
    """Return (height, width) of feature maps (channel, height, width), () of vectors."""
    if site.axis == "sample" and len(site.shape) >= 2:
        return site.shape[1:]
    return ()


def _chosen(
    population: Population, model: str, sites: Sequence[str] | None
) -> tuple[SiteSpec, ...]:
    specs = {site.name: site for site in population.spec(model).sites}
    for name in sites or ():
        if name not in specs:
            raise UnknownName(f"Model {model!r} has no site {name!r}. {suggest(name, specs)}")
    return tuple(specs.values()) if sites is None else tuple(specs[name] for name in sites)


def _require_joinable(model: str, sites: tuple[SiteSpec, ...]) -> None:
    for site in sites:
        if site.axis != "time":
            raise InvalidInput(
                f"Site {site.name!r} of model {model!r} has one row per sample; a recurrent "
                "meta-model needs one per time step. Choose other sites with sites=[...], or a "
                "family whose depth takes the place of time, such as 'residual' or 'resnet'."
            )
    if len({site.every for site in sites}) > 1:
        found = ", ".join(f"{site.name!r} every {site.every}" for site in sites)
        raise InvalidInput(
            f"Sites of model {model!r} were stored at different steps ({found}), so that they "
            "cannot be joined into one state. Choose some of one kind with sites=[...]."
        )
