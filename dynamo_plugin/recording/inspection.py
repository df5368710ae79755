"""What a capture would record, as far as it was looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from dynamo_plugin.store import Weight

if TYPE_CHECKING:
    from dynamo_plugin.types import JSON

__all__ = ["ArrayInspection", "InspectReport", "ModelInspection"]


@dataclass(frozen=True, slots=True)
class ArrayInspection:
    """One array that would be stored of a model: a site, or its output."""

    kind: Literal["site", "output"]
    """Which of these."""
    name: str
    """Of the site, or of the output group."""
    shape: tuple[int, ...]
    """Of one row as it would be stored."""
    dtype: str
    """As it would be stored."""
    axis: str
    """`time` or `sample`: what one row is."""
    every: int
    """Steps 0, every, 2 every, ... are stored."""
    source_shape: tuple[int, ...]
    """Of one row as the network computes it."""
    source_dtype: str
    """In which the network computes it."""
    bytes_per_sample: float
    """On average over the samples."""


@dataclass(frozen=True, slots=True)
class ModelInspection:
    """One model that was looked at, in place of all that are made alike."""

    id: str
    """Its name."""
    models: int
    """How many models are taken to be like it, itself included."""
    adapter: str | None
    """Registered name of the adapter that takes it; None if none does."""
    arrays: tuple[ArrayInspection, ...]
    """Its sites, in the order in which the network computes them, then its output."""
    weight: Weight
    """What it alone would weigh."""
    seconds: float | None
    """What it alone would take: an estimate from making it, describing it, and one batch."""
    error: str | None = None
    """Why it cannot be recorded."""


@dataclass(frozen=True, slots=True)
class InspectReport:
    """What `inspect_models` found. Nothing was written."""

    models: tuple[ModelInspection, ...]
    """Those that were looked at, in order."""
    model_count: int
    """All models of the capture."""
    samples: int
    """That each is shown."""
    steps: int
    """Of all samples together; as many as samples, where they have no time."""
    inputs: Weight
    """Of what all models share."""
    workers: int
    """Processes that the estimate of time reckons with."""
    location: str | None = None
    """Where the population would go, if that was said."""
    free_bytes: int | None = None
    """Room there; None where that cannot be known."""

    @property
    def ok(self) -> bool:
        """Whether every model that was looked at can be recorded."""
        return all(model.error is None for model in self.models)

    @property
    def weight(self) -> Weight:
        """What the whole population would weigh; models with an error count for nothing."""
        total = self.inputs
        for model in self.models:
            total += model.weight * model.models
        return total

    @property
    def seconds(self) -> float:
        """What the capture would take without writing, by a rough estimate."""
        total = sum((model.seconds or 0.0) * model.models for model in self.models)
        return total / min(self.workers, self.model_count)

    @property
    def fits(self) -> bool | None:
        """Whether there is room for it; None where that cannot be known."""
        return None if self.free_bytes is None else self.weight.on_disk <= self.free_bytes

    def to_dataframe(self) -> pd.DataFrame:
        """Return one row per array of each model, and one per model that cannot be recorded."""
        rows: list[dict[str, Any]] = []
        for model in self.models:
            head = {"model": model.id, "models": model.models, "adapter": model.adapter}
            rows += [head | asdict(array) | {"error": None} for array in model.arrays]
            if model.error is not None:
                rows.append(head | {"error": model.error})
        names = ["model", "models", "adapter", *ArrayInspection.__slots__, "error"]
        return pd.DataFrame(rows, columns=names).astype({"every": "Int64"})

    def summary(self) -> dict[str, JSON]:
        """Return the whole report, ready for JSON."""
        return {
            "location": self.location,
            "ok": self.ok,
            "model_count": self.model_count,
            "samples": self.samples,
            "steps": self.steps,
            "bytes": self.weight.bytes,
            "files": self.weight.files,
            "on_disk": self.weight.on_disk,
            "free_bytes": self.free_bytes,
            "fits": self.fits,
            "workers": self.workers,
            "estimated_seconds": self.seconds,
            "models": [_summary(model) for model in self.models],
        }


def _summary(model: ModelInspection) -> JSON:
    arrays: list[JSON] = [_plain(asdict(array)) for array in model.arrays]
    return {
        "id": model.id,
        "models": model.models,
        "adapter": model.adapter,
        "arrays": arrays,
        "bytes": model.weight.bytes,
        "files": model.weight.files,
        "estimated_seconds": model.seconds,
        "error": model.error,
    }


def _plain(value: dict[str, Any]) -> JSON:
    return {
        name: list(item) if isinstance(item, Sequence) and not isinstance(item, str) else item
        for name, item in value.items()
    }
