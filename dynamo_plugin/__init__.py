"""Dynamical model embedding: one meta-model and one small vector per network.

Public names are imported on first use (PEP 562), so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo_plugin.errors import DynamoError

if TYPE_CHECKING:
    from dynamo_plugin import (
        analyses,
        embedding,
        errors,
        losses,
        metamodels,
        metrics,
        recording,
        registry,
        report,
        store,
        tasks,
        training,
        types,
    )
    from dynamo_plugin.analyses import analyse
    from dynamo_plugin.embedding import ModelEmbedding, fit, load_embedding
    from dynamo_plugin.metrics import PairwiseDistances, metric, pairwise
    from dynamo_plugin.recording import (
        InspectReport,
        Reduction,
        capture,
        inspect_models,
        live_population,
        register_adapter,
    )
    from dynamo_plugin.registry import get_registry, plugins
    from dynamo_plugin.report import write_report
    from dynamo_plugin.store import (
        Population,
        join_populations,
        open_population,
        verify_population,
    )

    __version__: str
else:
    _ROOM_OF_NAME = {
        "InspectReport": "recording",
        "ModelEmbedding": "embedding",
        "PairwiseDistances": "metrics",
        "Population": "store",
        "Reduction": "recording",
        "analyse": "analyses",
        "capture": "recording",
        "fit": "embedding",
        "get_registry": "registry",
        "inspect_models": "recording",
        "join_populations": "store",
        "live_population": "recording",
        "load_embedding": "embedding",
        "metric": "metrics",
        "open_population": "store",
        "pairwise": "metrics",
        "plugins": "registry",
        "register_adapter": "recording",
        "verify_population": "store",
        "write_report": "report",
    }

    def __getattr__(name: str) -> object:
        """Import a public name or a room on first use."""
        import importlib

        if name not in __all__:
            from dynamo_plugin.errors import suggest

            # Python asks modules for underscored names of its own; those need no advice.
            advice = "" if name.startswith("_") else f". {suggest(name, __all__)}"
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{advice}")
        if name == "__version__":
            import importlib.metadata

            value: object = importlib.metadata.version("dynamo-plugin")
        elif name in _ROOM_OF_NAME:
            value = getattr(importlib.import_module(f"{__name__}.{_ROOM_OF_NAME[name]}"), name)
        else:
            return importlib.import_module(f"{__name__}.{name}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Return what is here and what comes on first use."""
        return sorted({*globals(), *__all__})


__all__ = [
    "DynamoError",
    "InspectReport",
    "ModelEmbedding",
    "PairwiseDistances",
    "Population",
    "Reduction",
    "__version__",
    "analyse",
    "analyses",
    "capture",
    "embedding",
    "errors",
    "fit",
    "get_registry",
    "inspect_models",
    "join_populations",
    "live_population",
    "load_embedding",
    "losses",
    "metamodels",
    "metric",
    "metrics",
    "open_population",
    "pairwise",
    "plugins",
    "recording",
    "register_adapter",
    "registry",
    "report",
    "store",
    "tasks",
    "training",
    "types",
    "verify_population",
    "write_report",
]
