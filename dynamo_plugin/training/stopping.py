"""When a fit has got where it will get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["has_settled"]


def has_settled(
    history: Sequence[Mapping[str, float]],
    *,
    patience: int,
    min_improvement: float,
    min_theta_movement: float,
) -> bool:
    """Return whether neither the held-out loss nor the thetas have changed of late.

    Thetas settle later than the loss does, so that a rule on the loss alone stops too early.

    Parameters
    ----------
    history
        One row per look, with `held_out_loss`, `theta_movement` (root mean square over models since
        the last look) and `theta_spread` (root mean square distance from the mean theta).
    patience
        Looks that have to pass without change.
    min_improvement
        Share of the held-out loss by which its best value has to fall, to count as change.
    min_theta_movement
        Share of their spread by which the thetas have to move between two looks, likewise.

    >>> rows = [{"held_out_loss": x, "theta_movement": 0.0, "theta_spread": 1.0} for x in (3, 2, 2)]
    >>> settings = {"min_improvement": 0.01, "min_theta_movement": 0.01}
    >>> has_settled(rows, patience=1, **settings), has_settled(rows, patience=2, **settings)
    (True, False)
    """
    if len(history) <= patience:
        return False
    before, recent = history[:-patience], history[-patience:]
    best = min(row["held_out_loss"] for row in before)
    improved = min(row["held_out_loss"] for row in recent) < best * (1 - min_improvement)
    moved = any(row["theta_movement"] > min_theta_movement * row["theta_spread"] for row in recent)
    return not improved and not moved
