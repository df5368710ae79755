"""Analyses by name."""

from __future__ import annotations

import inspect
from typing import Any

from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, PluginError, suggest
from dynamo_plugin.registry import get_registry
from dynamo_plugin.registry.interfaces import AnalysisResult

__all__ = ["analyse"]


def analyse(name: str, embedding: ModelEmbedding, /, **options: Any) -> AnalysisResult:
    """Run an analysis on a model embedding.

    Parameters
    ----------
    name
        Registered name: of an analysis of `dynamo_plugin.analyses`, where its options are described
        (`dynamo_plugin.analyses.landscape`), or a plugin's. `dynamo-plugin plugins` lists all.
    embedding
        What `fit` or `load_embedding` returned.
    **options
        Keyword arguments of the analysis.

    Returns
    -------
    AnalysisResult
        Frozen, with `to_dataframe()`, `plot()` and `summary()`.

    Raises
    ------
    UnknownName
        If no analysis has this name.
    InvalidInput
        If an option does not exist, a needed one is missing, or a value does not fit.
    PluginError
        If what a plugin's analysis returns is not a result.
    """
    function = get_registry().load("analysis", name)
    if not isinstance(embedding, ModelEmbedding):
        raise InvalidInput(
            f"Expected a ModelEmbedding, got {type(embedding).__name__}. Open a saved one with "
            "dynamo_plugin.load_embedding(path)."
        )
    _check_options(name, function, options)
    result = function(embedding, **options)
    for method in ("to_dataframe", "plot", "summary"):
        if not callable(getattr(result, method, None)):
            raise PluginError(
                f"The analysis {name!r} returned {type(result).__name__}, which has no method "
                f"{method}(). Its author must return a result with to_dataframe(), plot() and "
                "summary()."
            )
    checked: AnalysisResult = result
    return checked


def _check_options(name: str, function: Any, options: dict[str, Any]) -> None:
    _, *parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    by_name = {p.name: p for p in parameters if p.kind is not p.VAR_POSITIONAL}
    for option in options:
        if option not in by_name:
            raise InvalidInput(
                f"The analysis {name!r} has no option {option!r}. {suggest(option, by_name)}"
            )
    for parameter in by_name.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            raise InvalidInput(f"The analysis {name!r} needs the option {parameter.name!r}.")
