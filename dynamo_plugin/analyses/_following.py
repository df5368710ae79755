"""What networks along a path answer, and the figures of that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from dynamo_plugin.analyses._networks import made_networks, mix_weights, run_networks
from dynamo_plugin.analyses._scoring import TaskScorer, emulated_outputs
from dynamo_plugin.analyses._switching import agreement_with, below_line
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.analyses._theta_paths import FunctionalMetric, ThetaPath
    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.recording.recorder import ModelSource
    from dynamo_plugin.types import OutputSpec

__all__ = ["Followed", "follow", "mixed_weight_outputs", "rendered_outputs"]


@dataclass(frozen=True, slots=True)
class Followed:
    """The figures of a path."""

    rows: list[dict[str, Any]]
    """One per point; what is missing is left out."""
    figures: dict[str, Any]
    """Of the whole path."""

    def with_lengths(self, path: ThetaPath, others: FunctionalMetric | None) -> Followed:
        """Return these figures with those that only paths of thetas have.

        Parameters
        ----------
        path
            Its thetas, and their distances on the samples that the geodesic was sought on.
        others
            Measures its length on the other samples, where there are some.
        """
        nothing_left = "" if others else "no held-out samples are left to measure length_elsewhere"
        notes = filter(None, [self.figures["note"], path.note, nothing_left])
        return dataclasses.replace(
            self,
            rows=[
                row | {"distance": distance}
                for row, distance in zip(self.rows, path.distances.tolist(), strict=True)
            ],
            figures=self.figures
            | {
                "length": float(path.distances[-1]),
                "length_elsewhere": float(others.distances(path.thetas)[-1]) if others else None,
                "energy": path.energy,
                "converged": path.converged,
                "iterations": path.iterations,
                "note": "; ".join(notes),
            },
        )


def follow(
    kind: str,
    positions: NDArray[np.float64],
    outputs: NDArray[Any],
    scorer: TaskScorer | None,
    counts: NDArray[np.int64],
    *,
    logits: bool,
) -> Followed:
    """Return scores along a path, and agreement with its ends.

    Parameters
    ----------
    kind
        Of the path.
    positions
        (point,): from 0 to 1.
    outputs
        (point, row, channel), of the samples of the scorer.
    scorer
        None where there are no targets.
    counts
        (sample,): rows of each sample.
    logits
        Whether agreement is that of decisions, else R2.

    Raises
    ------
    InvalidInput
        If outputs are not finite.
    """
    if not np.isfinite(outputs).all():
        raise InvalidInput(
            f"Outputs along the path {kind!r} are not finite. Choose other ends, or leave the path "
            "out with paths=[...]."
        )
    columns: dict[str, NDArray[np.float64]] = {"position": positions}
    figures: dict[str, Any] = {"path": kind, "note": ""}
    if scorer is not None:
        scores = scorer.outputs(outputs)
        below = below_line(scores, positions)
        columns |= {"score": scores.values, "score_se": scores.standard_errors}
        columns |= {"below_line": below.values, "below_line_se": below.standard_errors}
        worst = int(below.values.argmax())
        figures["barrier"] = float(below.values[worst])
        figures["barrier_se"] = float(below.standard_errors[worst])
        figures["barrier_position"] = float(positions[worst])
    for name, end in (("first", 0), ("second", len(positions) - 1)):
        found = agreement_with(outputs, end, counts, logits=logits)
        if found is None:
            figures["note"] = f"outputs at the {name} end are constant: agreement has no R2"
            continue
        columns[f"agreement_{name}"] = found.values
        columns[f"agreement_{name}_se"] = found.standard_errors
    if "agreement_first" in columns and "agreement_second" in columns:
        nearer = columns["agreement_second"] > columns["agreement_first"]
        if nearer.any():
            figures["switch_position"] = float(positions[nearer.argmax()])
    rows = [
        {
            "path": kind,
            "point": point,
            **{name: float(values[point]) for name, values in columns.items()},
        }
        for point in range(len(positions))
    ]
    return Followed(rows, figures)


def rendered_outputs(
    embedding: ModelEmbedding,
    thetas: NDArray[np.float64],
    samples: NDArray[np.int64],
    output: OutputSpec,
) -> NDArray[np.float32]:
    """Return (theta, row, channel): what the networks at some thetas answer."""
    given = torch.as_tensor(thetas, dtype=torch.float32)
    parts: dict[int, list[NDArray[np.float32]]] = {}
    for which, _, outputs in emulated_outputs(embedding, given, samples, output):
        parts.setdefault(which.start, []).append(outputs)
    return np.concatenate([np.concatenate(some, axis=1) for some in parts.values()])


def mixed_weight_outputs(
    embedding: ModelEmbedding,
    models: Mapping[str, ModelSource],
    ends: Sequence[str],
    positions: NDArray[np.float64],
    samples: NDArray[np.int64],
    *,
    capture_options: Mapping[str, Any] | None,
    progress: bool,
) -> NDArray[Any]:
    """Return (position, row, channel): what networks of averaged weights answer, one at a time.

    Parameters
    ----------
    models
        Has the networks of both ends.
    ends
        Their two ids.
    positions
        (position,): shares of the second.
    capture_options
        See `run_networks`.

    Raises
    ------
    InvalidInput
        See `made_networks` and `mix_weights`.
    """
    networks = made_networks(embedding, models, ends)
    found = []
    for position in tqdm(positions, desc="weights", unit="network", disable=not progress):
        mixed = {"mixed": mix_weights(networks, [1 - position, position])}
        outputs = run_networks(embedding, mixed, samples, capture_options=capture_options)
        found.append(outputs["mixed"])
    stacked = np.stack(found)
    return stacked.reshape(len(found), stacked.shape[1], -1)
