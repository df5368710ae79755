"""Linear projections of states: how they are made from a seed, and what is needed to undo them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.types import SiteSpec

__all__ = [
    "Projection",
    "check_reduction",
    "fitted_projection",
    "projected_shape",
    "random_projection",
    "random_signs",
]


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """What the rows of a site were multiplied by before they were stored.

    A row x, flattened, was stored as z = matrix (x - mean); mean + matrixᵀ z comes back. For
    principal components that is the nearest point of their span. For a random projection it is
    unbiased, but noisy: what a random projection keeps are distances and inner products.
    """

    kind: Literal["random", "pca"]
    """`random`: signs; `pca`: principal components of some of the model's states."""
    mean: NDArray[np.float64]
    """(width,); zero for a random projection."""
    matrix: NDArray[np.float64]
    """(component, width). Rows of a PCA are orthonormal, by decreasing variance."""
    shape: tuple[int, ...]
    """Of one row before it was flattened to its width."""
    variances: NDArray[np.float64] | None = None
    """(component,): variance of the fitted states along each component; PCA only."""
    residual_variance: float | None = None
    """Variance of the fitted states that lies outside the components; PCA only."""

    def project(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Return rows (row, *shape) as they are stored, (row, component), in float64."""
        flat = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
        projected: NDArray[np.float64] = (flat - self.mean) @ self.matrix.T
        return projected

    def restore(self, states: NDArray[Any]) -> NDArray[np.float64]:
        """Return stored rows (row, component) in the space that they came from, (row, *shape)."""
        flat = np.asarray(states, dtype=np.float64) @ self.matrix + self.mean
        return flat.reshape(len(states), *self.shape)


def random_signs(components: int, width: int, seed: int) -> NDArray[np.int8]:
    """Return a (component, width) matrix of 1 and -1 that is the same everywhere, for ever.

    The signs are the bits of SHAKE-256 of the ASCII text

        dynamo-plugin random projection 1: seed {seed}, width {width}, components {components}

    row by row, the most significant bit of each byte first; 1 stands for 1, 0 for -1.

    >>> random_signs(2, 5, seed=0)
    array([[ 1, -1, -1,  1,  1],
           [ 1,  1,  1,  1,  1]], dtype=int8)
    """
    text = f"dynamo-plugin random projection 1: seed {seed}, width {width}, components {components}"
    count = components * width
    stream = hashlib.shake_256(text.encode("ascii")).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=count)
    return (2 * bits.astype(np.int8) - 1).reshape(components, width)


def random_projection(site: SiteSpec) -> Projection:
    """Return the random projection of a stored site: signs over the root of their number of rows.

    Achlioptas 2003 (doi:10.1016/S0022-0000(03)00025-4). Squared lengths and inner products are
    kept in expectation; the standard deviation of a squared length is about sqrt(2 / components)
    of it.
    """
    assert site.reduction is not None
    shape = projected_shape(site)
    width, (components,) = math.prod(shape), site.shape
    seed = site.reduction["seed"]
    assert isinstance(seed, int)
    signs = random_signs(components, width, seed)
    return Projection("random", np.zeros(width), signs / math.sqrt(components), shape)


def fitted_projection(site: SiteSpec, parts: Mapping[str, NDArray[np.float64]]) -> Projection:
    """Return the projection of a stored site onto principal components.

    Parameters
    ----------
    site
        As it is stored.
    parts
        `mean`, `components` and `variances` as they are stored beside it.
    """
    variances = parts["variances"]
    return Projection(
        "pca",
        parts["mean"],
        parts["components"],
        projected_shape(site),
        variances[:-1],
        float(variances[-1]),
    )


def projected_shape(site: SiteSpec) -> tuple[int, ...]:
    """Return the shape of a row of a stored site before it was projected."""
    assert site.reduction is not None
    lengths = site.reduction["pooled_shape"]
    assert isinstance(lengths, list)
    return tuple(int(str(length)) for length in lengths)


def check_reduction(site: SiteSpec) -> None:
    """Check what a spec says about a projection, of which readers make use.

    Raises
    ------
    InvalidInput
        It is not what section "Reductions" of docs/store-format.md says.
    """
    reduction = site.reduction
    if reduction is None:
        return
    if not isinstance(reduction, Mapping):
        raise InvalidInput(f"Expected a mapping as reduction, got {reduction!r}.")
    kind = reduction.get("projection")
    if kind is None:
        return
    shape, seed = reduction.get("pooled_shape"), reduction.get("seed")
    fits = kind in ("random", "pca") and type(seed) is int and seed >= 0
    if isinstance(shape, list) and all(type(length) is int and length > 0 for length in shape):
        width = math.prod(map(int, map(str, shape)))
        fits = fits and len(site.shape) == 1 and site.shape[0] <= width
    else:
        fits = False
    if not fits:
        raise InvalidInput(
            f"Expected a projection 'random' or 'pca' with a seed and a pooled_shape of at least "
            f"as many numbers as a row of site {site.name!r} has, {site.shape}; got "
            f"{dict(reduction)}."
        )
