"""What a capture that a TOML file describes, or a single factory, would record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.recording.config import InputsConfig, load_config
from dynamo_plugin.recording.configured import configured_inputs, configured_models, located
from dynamo_plugin.recording.factories import ConfiguredModel, load_target
from dynamo_plugin.recording.inspecting import inspect_models
from dynamo_plugin.recording.inspection import InspectReport
from dynamo_plugin.recording.metadata import as_metadata

__all__ = ["inspect_factory", "inspect_from_config"]


def inspect_from_config(
    path: Path,
    *,
    store: str | None = None,
    batch_size: int | None = None,
    workers: int = 1,
    every_model: bool = False,
) -> InspectReport:
    """Say what `capture_from_config` would record, weigh and take; see `inspect_models`.

    Raises
    ------
    InvalidConfig
        The file is not of the schema, or names something that does not exist.
    InvalidInput
        Inputs or metadata cannot be read, or do not fit.
    """
    config = load_config(path)
    folder = path.resolve().parent
    models, groups, metadata = configured_models(config, folder, path)
    as_metadata(metadata, tuple(models))
    return inspect_models(
        models,
        store=located(config.store, folder) if store is None else store,
        layers=config.layers,
        reduce=config.reduce,
        samples=config.samples,
        sample_seed=config.sample_seed,
        adapter=config.adapter,
        adapter_options=config.adapter_options,
        threads=config.threads,
        output_groups=groups,
        batch_size=config.batch_size if batch_size is None else batch_size,
        workers=workers,
        device=config.device,
        output=config.output,
        every_model=every_model,
        **configured_inputs(config.inputs, folder),
    )


def inspect_factory(
    factory: str,
    inputs: Path,
    *,
    arguments: Mapping[str, Any],
    layers: Sequence[str] | None = None,
    adapter: str | None = None,
    store: str | None = None,
    batch_size: int | None = None,
) -> InspectReport:
    """Say what would be recorded of one model; see `inspect_models`.

    Parameters
    ----------
    factory
        `package.module:function`, installed or in the current folder; its code is run.
    inputs
        .npy or .safetensors file.
    arguments
        Keyword arguments of the function.
    layers, adapter, store, batch_size
        As in `capture`.

    Raises
    ------
    InvalidConfig
        The factory cannot be imported.
    InvalidInput
        The inputs cannot be read, or do not fit.
    """
    folder = Path.cwd()
    load_target(factory, folder)
    try:
        config = InputsConfig(file=str(inputs))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InvalidInput(
            f"{inputs}: {reason}. Describe other inputs in a capture file, and inspect that."
        ) from error
    return inspect_models(
        {factory.rpartition(":")[2]: ConfiguredModel(factory, folder, dict(arguments))},
        store=store,
        layers=layers,
        adapter=adapter,
        batch_size=64 if batch_size is None else batch_size,
        **configured_inputs(config, folder),
    )
