"""Second moments of what goes into a map and what should come out, and the ridge solution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Moments"]


class Moments(nn.Module):
    """Running means and products of features and targets, one set per model.

    With a decay d, what was seen k updates ago counts d^k as much as what was seen now; the weights
    are normalised, so that the first updates count fully (as in Adam, Kingma and Ba 2015,
    arXiv:1412.6980). Without one, all rows ever seen count alike.

    Parameters
    ----------
    models, features, targets
        Sizes.
    decay
        Per update of a model; None for none.
    dtype
        In which sums are kept.
    """

    weight: Tensor
    """(model,): sum of the weights of the updates."""
    feature_mean: Tensor
    """(model, feature), times weight; so are the following."""
    target_mean: Tensor
    """(model, target)."""
    features: Tensor
    """(model, feature, feature): mean of x x^T."""
    products: Tensor
    """(model, feature, target): mean of x y^T."""

    def __init__(
        self,
        models: int,
        features: int,
        targets: int,
        *,
        decay: float | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.decay = decay
        for name, shape in (
            ("weight", (models,)),
            ("feature_mean", (models, features)),
            ("target_mean", (models, targets)),
            ("features", (models, features, features)),
            ("products", (models, features, targets)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    @torch.no_grad()
    def update(self, models: Tensor, features: Tensor, targets: Tensor, mask: Tensor) -> None:
        """Take in some rows of some models.

        Parameters
        ----------
        models
            (model,) int64.
        features, targets
            (model, row, feature) and (model, row, target).
        mask
            (1 or model, row): which rows count.
        """
        kept = mask.to(features.dtype).expand(features.shape[:2])
        count = kept.sum(1, dtype=self.weight.dtype)
        if self.decay is None:
            share, new, scale = torch.ones_like(count), count, torch.ones_like(count)
        else:
            share = torch.where(count > 0, self.decay, 1.0).to(count.dtype)
            new = (1 - self.decay) * (count > 0).to(count.dtype)
            scale = new / count.clamp(min=1)
        features, targets = features * kept[..., None], targets * kept[..., None]
        transposed = features.mT
        for total, value in (
            (self.feature_mean, features.sum(1)),
            (self.target_mean, targets.sum(1)),
            (self.features, transposed @ features),
            (self.products, transposed @ targets),
        ):
            shape = (-1,) + (1,) * (value.ndim - 1)
            total[models] = total[models] * share.view(shape) + value * scale.view(shape)
        self.weight[models] = self.weight[models] * share + new

    def select(self, models: Sequence[int]) -> Moments:
        """Return copies of the moments of some models, in the order given."""
        _, features, targets = self.products.shape
        chosen = Moments(
            len(models), features, targets, decay=self.decay, dtype=self.weight.dtype
        ).to(self.weight.device)
        rows = torch.tensor(models, device=self.weight.device)
        chosen.load_state_dict({name: own[rows] for name, own in self.state_dict().items()})
        return chosen

    def means(self, models: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of x, (model, feature), and of y, (model, target)."""
        weight = self._weight(models)[:, None]
        return self.feature_mean[models] / weight, self.target_mean[models] / weight

    def raw(self, models: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of x x^T, (model, feature, feature), and of x y^T."""
        weight = self._weight(models)[:, None, None]
        return self.features[models] / weight, self.products[models] / weight

    def centred(self, models: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the covariances of x with x and with y, and both means."""
        (features, products), (mean, target) = self.raw(models), self.means(models)
        features = features - mean[:, :, None] * mean[:, None]
        return features, products - mean[:, :, None] * target[:, None], mean, target

    def _weight(self, models: Tensor) -> Tensor:
        return self.weight[models].clamp(min=torch.finfo(self.weight.dtype).tiny)


def ridge(features: Tensor, products: Tensor, penalty: float) -> Tensor:
    """Return (model, feature, target): the ridge solution, penalty times the mean diagonal.

    Hoerl and Kennard 1970 (doi:10.1080/00401706.1970.10488634). NaN where moments are not finite.
    """
    diagonal = features.diagonal(dim1=-2, dim2=-1).mean(-1)
    strength = penalty * diagonal.clamp(min=torch.finfo(features.dtype).tiny)
    regular = features + torch.diag_embed(strength[..., None].expand(features.shape[:-1]))
    factor, info = torch.linalg.cholesky_ex(regular)
    solution: Tensor = torch.cholesky_solve(products, factor)
    if bool((info > 0).any()):  # rounding in single precision, or not finite at all
        finite = (regular.isfinite().all(-1) & products.isfinite().all(-1)).all(-1)
        exact = torch.linalg.lstsq(regular[finite].double(), products[finite].double()).solution
        solution = torch.full_like(solution, torch.nan)
        solution[finite] = exact.to(solution.dtype)
    return solution
