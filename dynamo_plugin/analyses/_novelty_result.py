"""The result of `novelty`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pandas as pd

from dynamo_plugin.analyses._novelty_plot import plot_novelty
from dynamo_plugin.analyses._result import TableResult, plain

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dynamo_plugin.analyses._novelty_calibration import Calibration
    from dynamo_plugin.types import JSON

__all__ = ["NoveltyResult"]


@dataclass(frozen=True, slots=True, eq=False)
class NoveltyResult(TableResult):
    """New networks beside those of an embedding; made by `novelty`.

    The table has one row per new network: `model`, `output_group`, `flagged`, `place_p` and
    `fidelity_p` (conformal p-values), `place_p_adjusted` and `fidelity_p_adjusted` (Holm, over
    these two), `neighbour_distance` (mean distance to the nearest members), `nearest` (the nearest
    member), `neighbour_label` where there are labels (that of most of the nearest members; of the
    nearer ones where two are as frequent), `hidden_r2`, `output_agreement` and `output_kind` (on
    held-out samples, see `fidelity`).
    """

    neighbours: pd.DataFrame
    """One row per new network and near member: `model`, `rank` (from 1), `neighbour`, `distance`,
    and `label` where there are labels."""
    coordinates: pd.DataFrame
    """One row per network, indexed by id, members first: `member` (boolean), `label` of members
    where there are labels, and `pc_1`, `pc_2`, ... on the principal components of the members."""
    thetas: pd.DataFrame
    """One row per new network, indexed by id: `theta_0`, `theta_1`, ..."""
    reference_scores: pd.DataFrame
    """What new networks were compared with, one row per member: `model`, `neighbour_distance`,
    `hidden_r2`, `output_agreement`."""
    explained: tuple[float, ...]
    """Share of the variance of the members on each component."""
    calibration: Calibration
    """Where the reference scores come from."""
    alpha: float
    """Up to which adjusted p-value a network is flagged."""
    smallest_p: float
    """The smallest adjusted p-value that so many members allow."""
    note: str | None
    """What to mind: that no network can be flagged, or that members are no fair reference."""
    name: ClassVar[str] = "novelty"
    reference: ClassVar[str] = (
        "Vovk et al. 2005, doi:10.1007/b106715; Laxhammar and Falkman 2010, "
        "doi:10.1145/1833280.1833287; Angelopoulos and Bates 2021, arXiv:2107.07511"
    )

    @property
    def flagged(self) -> tuple[str, ...]:
        """New networks that are flagged."""
        return tuple(self.table.loc[self.table["flagged"], "model"])

    def summary(self) -> dict[str, JSON]:
        """Return the headline figures."""
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "new": len(self.table),
                "members": len(self.reference_scores),
                "flagged": self.flagged,
                "flagged_share": self.table["flagged"].mean(),
                "alpha": self.alpha,
                "calibration": self.calibration,
                "smallest_p": self.smallest_p,
                "note": self.note,
                "hidden_r2": self.table["hidden_r2"].mean(),
                "hidden_r2_reference": self.reference_scores["hidden_r2"].mean(),
                "output_agreement": self.table["output_agreement"].mean(),
                "output_agreement_reference": self.reference_scores["output_agreement"].mean(),
                "neighbour_distance": self.table["neighbour_distance"].mean(),
                "neighbour_distance_reference": self.reference_scores["neighbour_distance"].mean(),
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return members and new networks in the members' plane, flagged ones marked."""
        return plot_novelty(self.table, self.coordinates, self.explained)
