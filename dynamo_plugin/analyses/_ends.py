"""What a path leads from and to: a network, a theta, or the centroid of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from dynamo_plugin.analyses._scoring import the_output
from dynamo_plugin.analyses.labels import LabelSource, read_labels
from dynamo_plugin.errors import InvalidInput, UnknownName, suggest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import OutputSpec

__all__ = ["End", "EndSource", "output_of", "read_end"]

EndSource: TypeAlias = "str | Sequence[float] | NDArray[Any] | Tensor"
"""A model id, a theta, or with labels the name of a group."""


@dataclass(frozen=True, slots=True, eq=False)
class End:
    """An end of a path."""

    name: str
    """Of the model or the group; `theta` for a theta."""
    theta: NDArray[np.float64]
    """(embedding_dim,)."""
    members: tuple[int, ...]
    """Positions of the networks that it stands for; none for a theta."""
    model: str | None
    """The model, where it is one."""


def read_end(
    embedding: ModelEmbedding, end: EndSource, labels: LabelSource | None, *, option: str
) -> End:
    """Return the end of a path.

    Parameters
    ----------
    embedding
        Has the thetas.
    end
        A theta (embedding_dim,); or text: without labels a model id, with labels one of them, for
        the mean theta of its models.
    labels
        Groups; see `read_labels`.
    option
        What the end is called where something is wrong with it.

    Raises
    ------
    UnknownName
        If there is no such model, group or metadata column.
    InvalidInput
        If a theta has another shape or is not finite.
    """
    thetas = embedding.thetas.double().numpy()
    if isinstance(end, str) and labels is None:
        return End(end, thetas[embedding.index(end)], (embedding.index(end),), end)
    if isinstance(end, str) and labels is not None:
        found = read_labels(embedding, labels)
        if end not in found.values:
            raise UnknownName(
                f"{option} names the group {end!r}, which {found.name!r} does not have. "
                f"{suggest(end, found.values)}"
            )
        members = np.flatnonzero(found.codes == found.values.index(end))
        return End(end, thetas[members].mean(0), tuple(members.tolist()), None)
    given = end.detach().cpu().numpy() if isinstance(end, torch.Tensor) else end
    try:
        theta = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        theta = np.empty(0)
    if theta.shape != thetas.shape[1:] or not np.isfinite(theta).all():
        what = "a model id" if labels is None else "the name of a group"
        raise InvalidInput(
            f"{option} must be {what}, or a finite theta of {thetas.shape[1]} numbers; got {end!r}."
        )
    return End("theta", theta, (), None)


def output_of(
    embedding: ModelEmbedding, first: End, second: End, output_group: str | None
) -> OutputSpec:
    """Return the outputs that are looked at along a path: by default those of the ends' networks.

    Raises
    ------
    InvalidInput
        If the ends' networks are of several output groups, or none is known and there are several.
    UnknownName
        If there is no such group.
    """
    if output_group is None:
        members = {*first.members, *second.members}
        groups = sorted({embedding.output_groups[member] for member in members})
        if len(groups) > 1:
            raise InvalidInput(
                f"The ends of the path are of the output groups {', '.join(groups)}. Choose ends "
                "of one group, or a readout with output_group=..."
            )
        output_group = groups[0] if groups else None
    return the_output(embedding, output_group)
