"""Principal components of the model embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from dynamo_plugin.analyses._dimension import neighbour_dimensions, participation_ratio
from dynamo_plugin.analyses._origin import analysis
from dynamo_plugin.analyses._result import TableResult, plain, plot_text, style_figure
from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import NDArray

    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.types import JSON

__all__ = ["ComponentsResult", "components"]


@dataclass(frozen=True, slots=True, eq=False)
class ComponentsResult(TableResult):
    """Principal components of the thetas; made by `components`.

    The table has one row per component: `component` (from 1), `explained_variance`,
    `explained_variance_ratio`, `cumulative_ratio`.
    """

    scores: pd.DataFrame
    """(model, component): every model on columns `pc_1`, `pc_2`, ..., indexed by id."""
    axes: NDArray[np.float64]
    """(component, embedding_dim): directions of unit length, orthogonal; theta is approximated
    by mean + scores @ axes."""
    mean: NDArray[np.float64]
    """(embedding_dim,): the mean theta."""
    dimensions: pd.DataFrame
    """How many dimensions the thetas fill, one row per estimate: `estimator`
    (`participation_ratio`, `two_nn` or `mle`), `of` (`all` dimensions of theta, or the `leading`
    ones), `value`, `low` and `high` (95 % confidence), `networks` it rests on, `note`. What is
    missing is explained by the note."""
    name: ClassVar[str] = "components"
    reference: ClassVar[str] = "Pearson 1901, doi:10.1080/14786440109462720"

    @property
    def components_for_95(self) -> int:
        """How many components explain at least 95 % of the variance."""
        return int(np.argmax(self.table["cumulative_ratio"].to_numpy() >= 0.95 - 1e-12)) + 1

    def summary(self) -> dict[str, JSON]:
        """Return the headline figures."""
        figures: dict[str, JSON] = plain(
            {
                "analysis": self.name,
                "models": len(self.scores),
                "embedding_dim": len(self.mean),
                "explained_variance_ratio": self.table["explained_variance_ratio"].tolist(),
                "components_for_95": self.components_for_95,
                "dimensions": {
                    f"{row.pop('estimator')}_{row.pop('of')}": row
                    for row in self.dimensions.to_dict(orient="records")
                },
            }
        )
        return figures

    def plot(self) -> go.Figure:
        """Return the models in the plane of the first two components."""
        import plotly.graph_objects as go

        ratio = self.table["explained_variance_ratio"]
        second = self.scores["pc_2"] if len(ratio) > 1 else 0 * self.scores["pc_1"]
        figure = go.Figure(
            go.Scatter(
                x=self.scores["pc_1"].to_numpy(),
                y=second.to_numpy(),
                text=[plot_text(model) for model in self.scores.index],
                mode="markers",
                marker={"size": 10},
                hovertemplate="%{text}<extra></extra>",
            )
        )
        figure.update_xaxes(title={"text": f"component 1 ({ratio[0]:.0%} of the variance)"})
        shown = f" ({ratio[1]:.0%})" if len(ratio) > 1 else " (there is only one)"
        figure.update_yaxes(title={"text": f"component 2{shown}"})
        return style_figure(figure)


@analysis
def components(embedding: ModelEmbedding) -> ComponentsResult:
    """Principal component analysis of the thetas (Pearson 1901, doi:10.1080/14786440109462720).

    Thetas are centred and not scaled, since their length carries meaning. N models span at most
    N - 1 dimensions, so there are min(N - 1, embedding_dim) components.

    Beside them, how many dimensions the thetas fill: the participation ratio of the variances
    (Gao et al. 2017, doi:10.1101/214262), and the intrinsic dimension of a curved set by two-NN
    (Facco et al. 2017, doi:10.1038/s41598-017-11873-y) and by maximum likelihood (Levina and Bickel
    2004, averaged as MacKay and Ghahramani 2005), each with a 95 % confidence interval.

    A fit may have private dimensions, which it writes small (`private_scale`). Variances hardly see
    them. Near neighbours do, as soon as networks lie closer together in the leading dimensions than
    the private ones are large: the intrinsic dimension is then that of what is private. So each is
    given twice, `of` all dimensions and of the leading ones alone. Neighbours of networks in tight
    groups tell of the inside of the groups.

    Parameters
    ----------
    embedding
        At least two models.

    Returns
    -------
    ComponentsResult

    Raises
    ------
    InvalidInput
        If all thetas are equal: nothing varies.
    """
    thetas = embedding.thetas.double().numpy()
    if len(thetas) < 2 or not (thetas.std(0) > 1e-7 * np.abs(thetas).max()).any():
        raise InvalidInput(
            f"Principal components need thetas that differ; these {len(thetas)} are all equal. "
            "Fit longer, or with a smaller theta_decay."
        )
    pca = PCA(n_components=min(len(thetas) - 1, thetas.shape[1]), svd_solver="full").fit(thetas)
    scores = pca.transform(thetas)
    table = pd.DataFrame(
        {
            "component": np.arange(1, scores.shape[1] + 1),
            "explained_variance": pca.explained_variance_,
            "explained_variance_ratio": pca.explained_variance_ratio_,
            "cumulative_ratio": np.minimum(np.cumsum(pca.explained_variance_ratio_), 1.0),
        }
    )
    columns = [f"pc_{component}" for component in table["component"]]
    frame = pd.DataFrame(scores, index=pd.Index(embedding.ids, name="model"), columns=columns)
    return ComponentsResult(
        table, frame, pca.components_, pca.mean_, _dimensions(thetas, _leading(embedding))
    )


def _leading(embedding: ModelEmbedding) -> int:
    """Return the number of leading dimensions of theta; all, where the fit made no difference."""
    leading, dim = embedding.config.leading_dim, embedding.thetas.shape[1]
    return min(leading, dim) if isinstance(leading, int) else dim


def _dimensions(thetas: NDArray[np.float64], leading: int) -> pd.DataFrame:
    parts = {"all": thetas}
    if leading < thetas.shape[1]:
        parts["leading"] = thetas[:, :leading]
    rows = [
        {
            "estimator": name,
            "of": part,
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "networks": estimate.points,
            "note": estimate.note,
        }
        for part, points in parts.items()
        for name, estimate in {
            "participation_ratio": participation_ratio(points),
            **neighbour_dimensions(points),
        }.items()
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(("value", "low", "high"), "Float64"))
