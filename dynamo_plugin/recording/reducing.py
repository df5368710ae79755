"""Making states smaller before they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dynamo_plugin.types import SiteSpec, TrajectorySpec

__all__ = ["Reductions"]


@dataclass(frozen=True, slots=True)
class Reductions:
    """What is done to the states of each site; nothing, unless rules say so."""

    def stored(self, spec: TrajectorySpec) -> TrajectorySpec:
        """Return what is stored of a model whose adapter describes it by `spec`."""
        return spec

    def apply(self, site: SiteSpec, stored: SiteSpec, values: Tensor) -> Tensor:
        """Return states as they are stored.

        Parameters
        ----------
        site, stored
            The site as the adapter describes it, and as `stored` does.
        values
            (sample, time, *shape) or (sample, *shape) of `site`.
        """
        return values
