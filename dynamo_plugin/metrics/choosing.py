"""Metrics by name."""

from __future__ import annotations

import inspect
from typing import Any

from dynamo_plugin.errors import InvalidInput, PluginError, suggest
from dynamo_plugin.registry import get_registry
from dynamo_plugin.registry.interfaces import Metric

__all__ = ["metric"]


def metric(name: str, /, **options: Any) -> Metric[Any]:
    """Return a metric, which compares what two networks compute on the same samples.

    Parameters
    ----------
    name
        Registered name: `cka`, `procrustes`, `shape`, `cca`, `cca_r2`, `svcca`, `pwcca`, `rsa`,
        `predictivity`, `neighbours`, `dsa`, `disagreement`, `jensen_shannon`; of an embedding
        `theta`, `pullback`, `functional`; or a plugin's.
    **options
        Keyword arguments of the metric.

    Returns
    -------
    Metric
        Called with two (sample, unit) arrays (`reads` says where it is something else) it returns
        a float, of the `kind` `distance` or `similarity`.

    Raises
    ------
    UnknownName
        If no metric has this name.
    InvalidInput
        If an option does not exist, or its value does not fit.
    PluginError
        If what a plugin registered makes no metric.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> procrustes = metric("procrustes")
    >>> procrustes.kind, round(procrustes(x, -x), 7)
    ('distance', 0.0)
    """
    target = get_registry().load("metric", name)
    _check_options(name, target, options)
    made = target(**options)
    if not isinstance(made, Metric):
        raise PluginError(
            f"The metric {name!r} made a {type(made).__name__}. Its author must register a class "
            "that derives from dynamo_plugin.registry.interfaces.Metric."
        )
    return made


def _check_options(name: str, target: Any, options: dict[str, Any]) -> None:
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # written in C: it checks its options itself
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for option in options:
        if option not in parameters:
            raise InvalidInput(
                f"The metric {name!r} has no option {option!r}. {suggest(option, parameters)}"
            )
