"""Several meta-models of one shape that run in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynamo_plugin.registry.interfaces import MetaModel
from dynamo_plugin.types import Trajectory

__all__ = ["can_be_stacked", "run_stacked"]


def can_be_stacked(meta_models: Sequence[MetaModel]) -> bool:
    """Return whether these differ in nothing but the values of their parameters.

    Families whose depth takes the place of time are left out: they make few calls per step, and
    some keep statistics of the batches that they see.
    """
    first = meta_models[0]
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in meta_models]
    return not first.layered and all(
        type(model) is type(first) and model.options() == first.options() and own == shapes[0]
        for model, own in zip(meta_models, shapes, strict=True)
    )


def run_stacked(
    meta_models: Sequence[MetaModel],
    inputs: Sequence[Tensor],
    thetas: Sequence[Tensor],
    lengths: Sequence[Tensor],
) -> list[Trajectory]:
    """Run every meta-model on its own inputs and thetas.

    Gradients reach the parameters of each. Where a call costs more than what it computes, as on an
    accelerator, several meta-models take little more time than one.

    Parameters
    ----------
    meta_models
        For which `can_be_stacked` holds.
    inputs
        (sample, time) ids or (sample, time, feature) of each; as many samples, of any lengths.
    thetas
        (model, embedding_dim) of each; as many models.
    lengths
        (sample,) real steps of each.

    Returns
    -------
    list of Trajectory
        Of each, (model, sample, time, ...), time being that of its own inputs.
    """
    first = meta_models[0]
    own = [dict(model.named_parameters()) for model in meta_models]
    parameters = {name: torch.stack([part[name] for part in own]) for name in own[0]}
    longest = max(part.shape[1] for part in inputs)
    padded = torch.stack([_padded(part, longest) for part in inputs])

    def run(
        values: dict[str, Tensor], inputs: Tensor, thetas: Tensor, lengths: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        arguments = (inputs[None], thetas[:, None], lengths[None])
        found: Trajectory = torch.func.functional_call(first, values, arguments)
        return dict(found.states), dict(found.outputs)

    states, outputs = torch.vmap(run)(
        parameters, padded, torch.stack(list(thetas)), torch.stack(list(lengths))
    )
    by_step = {output.group for output in first.spec.outputs if output.axis == "time"}
    return [
        Trajectory(
            {name: values[index, :, :, : part.shape[1]] for name, values in states.items()},
            {
                group: values[index, :, :, : part.shape[1]] if group in by_step else values[index]
                for group, values in outputs.items()
            },
            lengths[index].expand(len(thetas[index]), -1),
        )
        for index, part in enumerate(inputs)
    ]


def _padded(inputs: Tensor, time: int) -> Tensor:
    """Return (sample, time, ...), zeros behind what there is."""
    extra = time - inputs.shape[1]
    return nn.functional.pad(inputs, (0, 0) * (inputs.ndim - 2) + (0, extra))
