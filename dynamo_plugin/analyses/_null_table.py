"""Statistics beside their null, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pandas as pd

from dynamo_plugin.analyses._permutation import ROUNDING, holm, share_reaching
from dynamo_plugin.errors import InvalidInput, UnknownName, suggest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Alternative", "choose", "null_table", "unusable"]

Alternative: TypeAlias = Literal["greater", "less", "two-sided"]

NOISE = 1e-14
"""Statistics that vary by less than this vary by rounding only."""


def null_table(
    names: Sequence[str],
    observed: NDArray[np.float64],
    drawn: NDArray[np.float64],
    alternatives: Sequence[Alternative],
    *,
    exact: bool,
) -> pd.DataFrame:
    """Return one row per statistic.

    Parameters
    ----------
    names
        Of the statistics.
    observed, drawn
        (statistic,) values and (statistic, draw) values under the null.
    alternatives
        Which values count as at least as extreme, for each statistic.
    exact
        Whether the draws are all there are, what was observed among them.
    """
    p_values = np.concatenate(
        [
            p_values_of(observed[[row]], drawn[[row]], alternative, exact=exact)
            for row, alternative in enumerate(alternatives)
        ]
    )
    low, median, high = np.quantile(drawn, [0.025, 0.5, 0.975], axis=1)
    means, stds = drawn.mean(1), drawn.std(1)
    varies = _varies(drawn)
    effects = (observed - means) / np.where(varies, stds, np.inf)
    return pd.DataFrame(
        {
            "statistic": list(names),
            "value": observed,
            "null_mean": means,
            "null_std": np.where(varies, stds, 0.0),
            "effect_size": np.where(varies, effects, np.nan),
            "null_low": low,
            "null_median": median,
            "null_high": high,
            "p_value": p_values,
            "p_adjusted": holm(p_values),
        }
    )


def p_values_of(
    observed: NDArray[np.float64],
    drawn: NDArray[np.float64],
    alternative: Alternative,
    *,
    exact: bool,
) -> NDArray[np.float64]:
    """Return the p-value of every statistic, (statistic,)."""
    if alternative == "less":
        return share_reaching(-observed, -drawn, exact=exact)
    if alternative == "greater":
        return share_reaching(observed, drawn, exact=exact)
    # What was observed is one of the draws under the null, so the centre must count it like them.
    every = drawn if exact else np.column_stack([observed, drawn])
    centre = every.mean(1)
    return share_reaching(np.abs(observed - centre), np.abs(drawn - centre[:, None]), exact=exact)


def unusable(
    names: Sequence[str],
    observed: NDArray[np.float64],
    drawn: NDArray[np.float64],
    *,
    draw: str,
    draws: str,
) -> dict[str, str]:
    """Return why some statistics have no null; `draw` and `draws` are what a draw is called."""
    every = np.column_stack([observed, drawn])
    reasons = {}
    for name, values in zip(names, every, strict=True):
        if not np.isfinite(values).all():
            reasons[name] = f"missing or infinite for some {draws}"
        elif not _varies(values[None])[0]:
            reasons[name] = f"the same for every {draw}"
    return reasons


def choose(
    names: Sequence[str],
    omitted: Mapping[str, str],
    asked: Sequence[str] | None,
    analysis: str,
    *,
    on: str,
) -> list[str]:
    """Return the statistics that were asked for, or all that have a null.

    Raises
    ------
    UnknownName
        If there is no such statistic.
    InvalidInput
        If one has no null, or none has; `on` is what they should depend on.
    """
    if isinstance(asked, str):
        raise InvalidInput(f"statistics must be a list of names; write [{asked!r}].")
    for name in asked or ():
        if name not in names:
            raise UnknownName(
                f"The analysis {analysis!r} has no statistic {name!r}. {suggest(name, names)}"
            )
        if name in omitted:
            raise InvalidInput(f"The statistic {name!r} has no null: it is {omitted[name]}.")
    kept = [name for name in names if name not in omitted] if asked is None else list(asked)
    if not kept:
        raise InvalidInput(
            f"The analysis {analysis!r} has no statistic that depends on the {on}. Choose another "
            "analysis, or labels."
        )
    return kept


def _varies(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which rows vary by more than rounding."""
    tolerance = np.maximum(ROUNDING * np.abs(values).max(1), NOISE)
    varies: NDArray[np.bool_] = np.ptp(values, axis=1) > tolerance
    return varies
