"""What is printed of a population that was captured or repaired."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamo_plugin.store import Population
    from dynamo_plugin.types import JSON

__all__ = ["capture_summary", "summary_line"]


def capture_summary(population: Population, seconds: float) -> dict[str, JSON]:
    """Return the headline figures of a population."""
    return {
        "store": population.location,
        "models": len(population),
        "samples": len(population.sample_ids),
        "rows": int(population.offsets[-1]),
        "bytes": sum(population.nbytes(model_id) for model_id in population.ids),
        "seconds": round(seconds, 3),
    }


def summary_line(summary: dict[str, JSON]) -> str:
    """Return them as one line."""
    return (
        "{models} models, {samples} samples, {rows} steps, {bytes} bytes in {seconds} s: "
        "{store}".format(**summary)
    )
