"""The best overlap of two matrices when one may be seen in another orthonormal basis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.metrics._states import Floats

__all__ = ["best_residuals"]

_Real = TypeVar("_Real", bound="np.floating[Any]")

_ROUNDS = ((60, 10), (100, 5), (200, 2), (300, 1))
"""Steps, and how many of the best go on to the next round."""
_TOLERANCE = 1e-8  # norm of the gradient at which a step no longer matters
_CACHED = 2**17  # bytes of one array of matrices that are worked on together
_LONGEST = 1.0  # a step turns no further than about this, in radians


def best_residuals(
    first: NDArray[np.float64], second: NDArray[np.float64], *, starts: int, seed: int
) -> NDArray[np.float64]:
    """Return min over orthogonal C of ‖A - C B Cᵀ‖, as far as it is found.

    The function has many local minima. Starts are the eigenvectors of the symmetric parts, of AᵀA
    and of AAᵀ laid on each other, with signs that fit, the unchanged basis, and random ones, half
    of them with a reflection; from each, some steps along the gradient on the orthogonal group
    (Wen and Yin 2013, doi:10.1007/s10107-012-0584-1), from the best ones more, and from the best of
    all to the minimum.

    Parameters
    ----------
    first, second
        (pair, row, column) A and B, of norm 1.
    starts
        Random ones per pair, and as many with random signs.
    seed
        Of those.

    Returns
    -------
    ndarray
        (pair,) from 0 to 2.
    """
    pairs, size, _ = first.shape
    turns = np.concatenate(
        [
            _aligned_starts(first, second, starts=starts, seed=seed),
            _random_starts(pairs, size, starts, seed),
        ],
        axis=1,
    )
    for number, (steps, kept) in enumerate(_ROUNDS, start=1):
        count = turns.shape[1]
        # which start is best shows in float32 already
        dtype = np.float64 if number == len(_ROUNDS) else np.float32
        climbed, overlaps = _climb(
            np.repeat(first, count, axis=0).astype(dtype),
            np.repeat(second, count, axis=0).astype(dtype),
            _orthonormal(turns.reshape(-1, size, size).astype(dtype)),
            steps,
        )
        best = np.argsort(-overlaps.reshape(pairs, count), axis=1)[:, :kept]
        turns = np.take_along_axis(
            climbed.reshape(pairs, count, size, size), best[:, :, None, None], axis=1
        )
    residuals: NDArray[np.float64] = np.linalg.norm(
        first - turns[:, 0] @ second @ _t(turns[:, 0]), axis=(1, 2)
    )
    return residuals


def _climb(
    left: Floats, right: Floats, turns: Floats, steps: int
) -> tuple[Floats, NDArray[np.float64]]:
    """Return the best turns on the way of so many steps, and the overlaps <A, C B Cᵀ> there."""
    size = max(1, _CACHED // turns[0].nbytes)
    parts = [slice(start, start + size) for start in range(0, len(turns), size)]
    climbed = [_climb_part(left[part], right[part], turns[part], steps) for part in parts]
    return (
        np.concatenate([turns for turns, _ in climbed]),
        np.concatenate([overlaps for _, overlaps in climbed]),
    )


def _climb_part(
    left: Floats, right: Floats, turns: Floats, steps: int
) -> tuple[Floats, NDArray[np.float64]]:
    """Do so for few enough that they stay in the cache of the processor.

    Step lengths are those of Barzilai and Borwein 1988 (doi:10.1093/imanum/8.1.141). Everything is
    products of small matrices: one factorisation would take longer than ten of them.
    """
    best, highest = turns.copy(), np.full(len(turns), -np.inf)
    places, top = np.arange(len(turns)), highest.copy()
    lengths = np.full(len(turns), 0.25)
    tolerance = max(_TOLERANCE, 10 * float(np.finfo(turns.dtype).eps))
    before: Floats | None = None
    for _ in range(steps + 1):
        seen = turns @ right @ _t(turns)
        overlaps = _inner(left, seen)
        risen = overlaps > top
        top = np.where(risen, overlaps, top)
        best[places[risen]], highest[places] = turns[risen], top
        slopes = left @ _t(seen) - _t(seen) @ left
        gradient = slopes - _t(slopes)
        norms = np.sqrt(_inner(gradient, gradient))
        if before is not None:
            change = gradient - before  # the last step went along the gradient there
            across, along = -lengths * _inner(before, change), _inner(change, change)
            usable = (across > 0) & (along > 0)
            lengths = np.where(usable, across / np.where(usable, along, 1), 1.5 * lengths)
        lengths = np.where(overlaps < top - 0.1, 0.1, lengths)  # after a fall, a short step
        lengths = np.minimum(lengths, _LONGEST / np.maximum(norms, 1e-300))
        moving = norms > tolerance
        if not moving.all():
            places, top, lengths = places[moving], top[moving], lengths[moving]
            left, right, turns = left[moving], right[moving], turns[moving]
            gradient = gradient[moving]
            if not len(places):
                break
        steps_taken = lengths[:, None, None].astype(turns.dtype) * gradient
        turns = _orthonormal(_exponential(steps_taken) @ turns)
        before = gradient
    return _orthonormal(_orthonormal(best)), highest


def _exponential(skew: Floats) -> Floats:
    """Return the matrix exponential of small matrices, to the fourth order."""
    square = skew @ skew
    identity = np.eye(skew.shape[-1], dtype=skew.dtype)
    exponential: Floats = identity + skew + square @ (identity / 2 + skew / 6 + square / 24)
    return exponential


def _orthonormal(turns: Floats) -> Floats:
    """Return matrices that are almost orthogonal with the error squared (Newton, Schulz)."""
    identity = np.eye(turns.shape[-1], dtype=turns.dtype)
    nearer: Floats = turns @ (1.5 * identity - 0.5 * (_t(turns) @ turns))
    return nearer


def _inner(first: Floats, second: Floats) -> NDArray[np.float64]:
    products: NDArray[np.float64] = np.einsum("pij,pij->p", first, second).astype(np.float64)
    return products


def _aligned_starts(
    first: NDArray[np.float64], second: NDArray[np.float64], *, starts: int, seed: int
) -> NDArray[np.float64]:
    """Return (pair, start, row, column) turns that lay eigenvectors on each other.

    Eigenvectors have no sign. Those of the symmetric parts come with so many choices of signs.
    """
    rng = np.random.default_rng(seed)
    size = first.shape[-1]
    found = [np.broadcast_to(np.eye(size), first.shape)]
    for part, count in ((_symmetric, starts), (_square, 2), (_co_square, 2)):
        bases = [np.linalg.eigh(part(matrices))[1] for matrices in (first, second)]
        a, b = (_t(u) @ m @ u for u, m in zip(bases, (first, second), strict=True))
        products = a * b + _t(a * b)
        leading = np.where(np.linalg.eigh(products)[1][:, :, -1] < 0, -1.0, 1.0)
        drawn = np.where(rng.random((count - 1, size)) < 0.5, -1.0, 1.0)
        for signs in (leading, *(np.broadcast_to(one, leading.shape) for one in drawn)):
            improved = _better_signs(products, signs)
            found.append((bases[0] * improved[:, None, :]) @ _t(bases[1]))
    return np.stack(found, axis=1)


def _better_signs(products: NDArray[np.float64], signs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (pair, row) signs s with a larger Σ sᵢ sⱼ Mᵢⱼ, which no single change makes larger."""
    signs = signs.copy()
    diagonal = np.einsum("pii->pi", products)
    for _ in range(2 * signs.shape[1]):
        gains = -signs * (np.einsum("pij,pj->pi", products, signs) - diagonal * signs)
        worst = gains.argmax(1)
        better = np.flatnonzero(gains[np.arange(len(gains)), worst] > 0)
        if not len(better):
            break
        signs[better, worst[better]] *= -1
    return signs


def _random_starts(pairs: int, size: int, starts: int, seed: int) -> NDArray[np.float64]:
    """Return (pair, start, row, column) random turns, the same for every pair."""
    rng = np.random.default_rng(seed)
    turns, triangles = np.linalg.qr(rng.normal(size=(starts, size, size)))
    turns = turns * np.sign(np.einsum("sii->si", triangles))[:, None, :]
    reflected = np.linalg.det(turns) < 0
    wanted = np.arange(starts) % 2 == 1
    turns[reflected != wanted, :, 0] *= -1
    return np.broadcast_to(turns, (pairs, starts, size, size))


def _symmetric(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    return matrices + _t(matrices)


def _square(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    return _t(matrices) @ matrices


def _co_square(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    return matrices @ _t(matrices)


def _t(matrices: NDArray[_Real]) -> NDArray[_Real]:
    return matrices.swapaxes(-1, -2)
