"""Makes everything that is trained, with the initial values that the seed decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynamo_plugin.errors import InvalidConfig, suggest
from dynamo_plugin.metamodels import AmortisedStateMaps, StageMaps, aligned_units
from dynamo_plugin.registry import get_registry
from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.store import Population
from dynamo_plugin.training.alignment import Alignment, align_states
from dynamo_plugin.training.config import FitConfig
from dynamo_plugin.training.dimension import dominant_components
from dynamo_plugin.training.evaluation import compares_decisions
from dynamo_plugin.training.objective import Objective, OutputTerm
from dynamo_plugin.training.ranks import Ranks
from dynamo_plugin.training.stages import HIDDEN
from dynamo_plugin.training.targets import Targets
from dynamo_plugin.training.token_responses import embed_token_responses
from dynamo_plugin.types import OutputSpec, PopulationSpec

__all__ = ["build", "choose_output_losses", "make_state_maps", "output_terms"]

ROUNDING = 1e-6
"""Share of the variance of aligned states below which deviations are none."""

SPREAD = 0.2
"""Root mean square of thetas that start along principal components."""


def build(
    population: Population,
    training: Tensor,
    config: FitConfig,
    *,
    device: torch.device,
    ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
    start: bool = True,
    targets: Targets | None = None,
) -> tuple[Objective, Targets, FitConfig]:
    """Make meta-model, thetas and state maps, and what they learn from.

    Parameters
    ----------
    population
        What is embedded.
    training
        (sample,) indices of the training samples.
    config
        The settings.
    device
        Where batches go.
    ranks
        The processes that share the models.
    start
        Whether to look for rotations and a token embedding to start from; not needed where all
        values are replaced by those of a checkpoint.
    targets
        Those of another fit, see `Trainer`.

    Returns
    -------
    tuple
        The objective of all models, on the CPU; the targets of this process's models; the settings
        with every default spelled out.
    """
    registry = get_registry()
    family = registry.load("meta_model", config.family)
    hidden_loss = registry.load("loss", config.hidden_loss)
    _require_role(config.hidden_loss, "hidden")
    losses = choose_output_losses(population.population_spec.outputs, config.output_loss)
    for name in losses.values():
        _require_role(name, "output")
    if targets is None:
        targets = Targets(
            population, sites=config.sites, device=device, layered=family.layered, ranks=ranks
        )
    spec = population.population_spec
    if family.layered:
        spec = replace(spec, stages=tuple(stage.spec for stage in targets.stages))
    shares = config.state_map == "amortised" or config.alignment_weight > 0
    components = config.theta_init == "components"
    counts = "auto" in (config.embedding_dim, config.leading_dim)
    align = counts or (start and (shares or components))
    found = _statistics(targets, training, config, align=align)
    leading, dim = _dimensions(found, config, ranks)
    config = replace(config, embedding_dim=dim, leading_dim=leading)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            meta_model: MetaModel = family(spec, embedding_dim=dim, **config.family_options)
        except TypeError as error:
            raise InvalidConfig(
                f"The family {config.family!r} does not take these options "
                f"({dict(config.family_options)}): {error}."
            ) from error
        thetas = config.theta_std * torch.randn(len(population.ids), dim)
        if leading < dim:
            _require_rescaling(meta_model, config)
            thetas[:, leading:] = 0
        if start and components:
            thetas[:, :leading] = _components(found, leading, ranks)
        units = {stage.name: stage.units for stage in targets.stages}
        state_maps, common_maps = make_state_maps(config, meta_model.stage_units, units)
    for maps_of in (state_maps, common_maps):
        if maps_of is not None:
            _set_statistics(maps_of, found, config)
    table = meta_model.token_embedding
    if start and table is not None and config.token_init == "responses":
        own = ranks.own(len(population.ids))
        responses = embed_token_responses(
            targets,
            training,
            found[targets.stages[0].name].scale[own.start : own.stop],
            vocabulary=table.num_embeddings,
            token_dim=table.embedding_dim,
            generator=torch.Generator().manual_seed(config.seed + 2),
        )
        table.weight.data.copy_(ranks.from_first(responses))
    outputs = output_terms(spec, losses, targets, training)
    objective = Objective(
        meta_model,
        state_maps,
        thetas,
        hidden_loss=hidden_loss,
        outputs=outputs,
        common_maps=common_maps,
    )
    options = {k: v for k, v in meta_model.options().items() if k != "embedding_dim"}
    complete = replace(
        config,
        family_options=options,
        output_loss=losses,
        state_map_solver=state_maps.solver,
        theta_learning_rate=config.theta_learning_rate or config.learning_rate,
        token_learning_rate=config.token_learning_rate or _token_learning_rate(config),
    )
    return objective, targets, complete


def make_state_maps(
    config: FitConfig,
    source_units: Mapping[str, int],
    units: Mapping[str, Sequence[int]],
) -> tuple[StageMaps, StageMaps | None]:
    """Return the state maps that settings ask for, and the maps that all models share, if any.

    Parameters
    ----------
    config
        The settings, with the dimensions of theta in numbers.
    source_units
        Stage to the width of the meta-model's states.
    units
        Stage to the number of units of every base model.
    """

    def make(kind: str, dim: int) -> StageMaps:
        solver = config.state_map_solver
        return StageMaps(kind, source_units, units, embedding_dim=dim, solver=solver)

    assert isinstance(config.embedding_dim, int)
    assert isinstance(config.leading_dim, int)
    state_maps = make(config.state_map, config.embedding_dim)
    return state_maps, make("amortised", config.leading_dim) if config.alignment_weight else None


def _require_rescaling(meta_model: MetaModel, config: FitConfig) -> None:
    try:
        meta_model.theta_weights()
    except NotImplementedError as error:
        raise InvalidConfig(
            f"The units of theta of the family {config.family!r} cannot be changed, since it has "
            "no method theta_weights, so that all dimensions are learned together: "
            "leading_dim=None."
        ) from error


def _token_learning_rate(config: FitConfig) -> float:
    return config.learning_rate * (0.1 if config.token_init == "responses" else 1.0)


@dataclass(frozen=True, slots=True)
class _Statistics:
    """Of the states of all models at one stage."""

    mean: Tensor
    """(model, max units)."""
    scale: Tensor
    """(model,)."""
    common_scale: Tensor
    """(model,): the scale that makes aligned states of one size."""
    rotations: Tensor
    """(model, aligned units, max units); empty where nothing was aligned."""
    deviations: Tensor
    """See `Alignment`; empty likewise, and on all processes but the first."""


def _statistics(
    targets: Targets, training: Tensor, config: FitConfig, *, align: bool
) -> dict[str, _Statistics]:
    """Return the statistics of every stage, on all processes."""
    found = {}
    for stage in targets.stages:
        models = len(stage.units)
        mean, scale = (
            targets.ranks.gather(own, models)
            for own in targets.state_statistics(training, stage.name)
        )
        widest, width = mean.shape[1], aligned_units(stage.units)
        common = scale * (torch.tensor(stage.units) / width).sqrt()
        rotations, deviations = torch.empty(0), torch.empty(0)
        if align:
            rotations = torch.empty(models, width, widest)
            if targets.ranks.rank == 0:
                alignment = _align(targets, training, mean, common, stage.name, config)
                rotations, deviations = alignment.rotations, alignment.deviations
            targets.ranks.from_first(rotations)
        found[stage.name] = _Statistics(mean, scale, common, rotations, deviations)
    return found


def _dimensions(
    found: Mapping[str, _Statistics], config: FitConfig, ranks: Ranks
) -> tuple[int, int]:
    """Return the number of leading dimensions of theta, and of all."""
    leading, dim = config.leading_dim, config.embedding_dim
    if "auto" in (leading, dim):
        dominant = torch.zeros(1, dtype=torch.int64)
        if ranks.rank == 0:
            dominant[0] = dominant_components(_mean_deviations(found))
        count = int(ranks.from_first(dominant))
        if not isinstance(dim, int):
            dim = max(count, leading) if isinstance(leading, int) else count
        if leading == "auto":
            leading = min(count, dim)
    assert isinstance(dim, int)
    return dim if leading is None else int(leading), dim


def _mean_deviations(found: Mapping[str, _Statistics]) -> Tensor:
    """Return the inner products of the models' deviations, of trace 1, all stages counting alike.

    A stage at which all models do the same, but for rounding, adds next to nothing.
    """
    shares = []
    for statistics in found.values():
        gram = statistics.deviations
        models, width = statistics.rotations.shape[:2]  # states have a second moment of 1 per axis
        shares.append(gram / gram.trace().clamp(min=ROUNDING * models * width))
    return torch.stack(shares).mean(0)


def _components(found: Mapping[str, _Statistics], dims: int, ranks: Ranks) -> Tensor:
    """Return (model, dims): models along the principal components of their deviations.

    All at zero where they differ by nothing but rounding.
    """
    models = len(next(iter(found.values())).mean)
    placed = torch.zeros(models, dims)
    if ranks.rank == 0:
        deviations = _mean_deviations(found)
        values, vectors = torch.linalg.eigh(deviations)
        along = (vectors * values.clamp(min=0).sqrt()).flip(1)[:, :dims]
        if deviations.trace() * len(found) > 0.5:
            placed[:, : along.shape[1]] = SPREAD * along / along.square().sum(1).mean().sqrt()
    ranks.from_first(placed)
    return placed


def _set_statistics(
    maps_of: StageMaps, found: Mapping[str, _Statistics], config: FitConfig
) -> None:
    for stage, maps in maps_of.items():
        statistics = found[stage]
        aligned = isinstance(maps, AmortisedStateMaps)
        maps.mean.copy_(statistics.mean)
        if config.hidden_scale == "variance":
            maps.scale.copy_(statistics.common_scale if aligned else statistics.scale)
        if isinstance(maps, AmortisedStateMaps) and statistics.rotations.numel():
            maps.rotation.copy_(statistics.rotations)


def _align(
    targets: Targets, training: Tensor, mean: Tensor, scales: Tensor, stage: str, config: FitConfig
) -> Alignment:
    if targets.ranks.size > 1:  # the others' models too
        targets = Targets(
            targets.population,
            sites=config.sites,
            device=torch.device("cpu"),
            layered=stage != HIDDEN,
            in_memory=False,
        )
    generator = torch.Generator().manual_seed(config.seed + 3)
    return align_states(targets, training, mean, scales, stage=stage, generator=generator)


def output_terms(
    spec: PopulationSpec, losses: Mapping[str, str], targets: Targets, training: Tensor
) -> dict[str, OutputTerm]:
    """Return how outputs are compared, by output group, for the groups of the population.

    Parameters
    ----------
    spec
        Its output groups are those of the meta-model.
    losses
        Output group to the registered name of d_y.
    targets, training
        Whose outputs, on which samples, decide the scale of real outputs.
    """
    terms = {}
    known = {output.group for output in targets.population.population_spec.outputs}
    for output in spec.outputs:
        if output.group not in known:
            continue
        loss = losses[output.group]
        logits = compares_decisions(loss)
        variance = 1.0 if logits else targets.output_variance(output.group, training)
        scale = math.sqrt(variance) if variance > 0 else 1.0
        terms[output.group] = OutputTerm(output, get_registry().load("loss", loss), logits, scale)
    return terms


def choose_output_losses(outputs: tuple[OutputSpec, ...], chosen: object) -> dict[str, str]:
    """Return the name of the output loss of every output group.

    Parameters
    ----------
    outputs
        The output groups.
    chosen
        One registered name for all, a mapping from group to name, or None for the default: `kl`
        where a sequence has one output of at least two entries, `mse` elsewhere.
    """
    groups = [output.group for output in outputs]
    if isinstance(chosen, str):
        return dict.fromkeys(groups, chosen)
    losses = {
        output.group: "kl" if output.axis == "sample" and math.prod(output.shape) > 1 else "mse"
        for output in outputs
    }
    if isinstance(chosen, dict):
        for group in chosen:
            if group not in losses:
                raise InvalidConfig(
                    f"output_loss names the output group {group!r}. {suggest(str(group), groups)}"
                )
        losses.update(chosen)
    return losses


def _require_role(loss: str, role: str) -> None:
    registration = get_registry().registration("loss", loss)
    found = registration.attributes.get("role")
    if found != role:
        fitting = [
            name
            for name in get_registry().names("loss")
            if get_registry().registration("loss", name).attributes.get("role") == role
        ]
        raise InvalidConfig(
            f"{loss!r} is registered as a loss on {found}s and cannot be the {role} loss. "
            f"{role.capitalize()} losses: {', '.join(fitting)}."
        )
