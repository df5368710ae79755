"""A capture that a TOML file describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from dynamo_plugin.errors import InvalidConfig, InvalidInput
from dynamo_plugin.recording.capturing import capture
from dynamo_plugin.recording.config import CaptureConfig, InputsConfig, ModelConfig, load_config
from dynamo_plugin.recording.executors import connected
from dynamo_plugin.recording.factories import ConfiguredModel, call_target, load_target
from dynamo_plugin.recording.files import read_inputs, read_metadata
from dynamo_plugin.recording.live import live_population
from dynamo_plugin.recording.metadata import Metadata, as_metadata
from dynamo_plugin.store import Population

__all__ = [
    "capture_from_config",
    "configured_inputs",
    "configured_models",
    "live_from_config",
    "located",
]

_FROM_FACTORY = ("inputs", "lengths", "targets", "sample_ids", "vocabulary_size", "has_time")


def capture_from_config(
    path: Path,
    *,
    store: str | None = None,
    batch_size: int | None = None,
    workers: int = 1,
    executor: str | None = None,
    share: tuple[int, int] | None = None,
    threads: int | None = None,
    keep_going: bool = False,
    resume: bool = False,
    repair: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Population:
    """Capture the population that a TOML file describes.

    The file names functions, and naming one runs its code: read a file before you run it. Modules
    beside the file can be named. Paths in it are relative to its folder.

    Parameters
    ----------
    path
        The file; see `CaptureConfig`.
    store, batch_size
        Take the place of what the file says; the store is then relative to the current folder.
    workers, share, threads, resume, repair, overwrite, progress
        As in `capture`.
    executor
        `dask://host:port` of a Dask scheduler.
    keep_going
        Record the other models where one fails, then raise.

    Raises
    ------
    InvalidConfig
        The file is not of the schema, or names something that does not exist.
    DynamoError
        As in `capture`.
    """
    config = load_config(path)
    folder = path.resolve().parent
    models, groups, metadata = configured_models(config, folder, path)
    arguments = configured_inputs(config.inputs, folder)
    with connected(executor) as pool:
        return capture(
            models,
            store=located(config.store, folder) if store is None else store,
            metadata=metadata,
            layers=config.layers,
            adapter=config.adapter,
            adapter_options=config.adapter_options,
            reduce=config.reduce,
            samples=config.samples,
            sample_seed=config.sample_seed,
            output_groups=groups,
            batch_size=config.batch_size if batch_size is None else batch_size,
            executor=pool,
            workers=workers,
            share=share,
            threads=config.threads if threads is None else threads,
            on_error="continue" if keep_going else "raise",
            allow_zero=config.allow_zero,
            resume=resume,
            repair=repair,
            overwrite=overwrite,
            device=config.device,
            output=config.output,
            progress=progress,
            **arguments,
        )


def live_from_config(path: Path) -> Population:
    """Return the population that a TOML file describes, of which nothing is stored.

    What the file says about the store is passed over.

    Parameters
    ----------
    path
        As in `capture_from_config`.

    Raises
    ------
    InvalidConfig
        As in `capture_from_config`, or the file asks for reductions, which belong to a store.
    DynamoError
        As in `live_population`.
    """
    config = load_config(path)
    folder = path.resolve().parent
    if config.reduce:
        raise InvalidConfig(
            f"{path}: reduce makes states smaller before they are stored, and networks that are "
            "run when their states are needed store nothing. Capture, or leave reduce out."
        )
    models, groups, metadata = configured_models(config, folder, path)
    return live_population(
        models,
        metadata=metadata,
        layers=config.layers,
        adapter=config.adapter,
        adapter_options=config.adapter_options,
        samples=config.samples,
        sample_seed=config.sample_seed,
        output_groups=groups,
        batch_size=config.batch_size,
        device=config.device,
        output=config.output,
        **configured_inputs(config.inputs, folder),
    )


def configured_models(
    config: CaptureConfig, folder: Path, path: Path
) -> tuple[dict[str, ConfiguredModel], dict[str, str], Metadata]:
    """Return factory, output group (where one is named) and metadata of every model, by id.

    Raises
    ------
    InvalidConfig
        A factory or a file does not exist, or two models have one id.
    """
    models: dict[str, ConfiguredModel] = {}
    groups: dict[str, str] = {}
    inline: dict[str, dict[str, Any]] = {}
    for number, each in enumerate(config.models):
        place = f"{path}: models[{number}]"
        load_target(each.factory, folder)  # a misspelled name shows before anything runs
        for model_id, state_dict in _expanded(each, folder, place):
            if model_id in models:
                raise InvalidConfig(
                    f"{place}: the id {model_id!r} is taken. Write an id with {{stem}} or "
                    "{parent} that tells the files apart."
                )
            models[model_id] = ConfiguredModel(
                each.factory, folder, each.arguments, state_dict, each.state_dict_key
            )
            inline[model_id] = each.metadata
            if each.output_group is not None:
                groups[model_id] = each.output_group
    metadata: Metadata = inline
    if config.metadata is not None:
        metadata = _merged(read_metadata(folder / config.metadata.file), inline)
    return models, groups, metadata


def _expanded(model: ModelConfig, folder: Path, place: str) -> Iterator[tuple[str, Path | None]]:
    """Yield id and state-dict file of each model that one table describes."""
    if model.state_dict is None:
        assert model.id is not None
        yield model.id, None
        return
    if has_magic(model.state_dict):
        # Path.glob takes no absolute patterns.
        found = sorted(glob(model.state_dict, root_dir=folder, recursive=True))  # noqa: PTH207
        files = [folder / name for name in found]
        if not files:
            raise InvalidConfig(f"{place}.state_dict: no file matches {model.state_dict!r}.")
    else:
        files = [folder / model.state_dict]
        if not files[0].is_file():
            raise InvalidConfig(f"{place}.state_dict: there is no file {files[0]}.")
    template = model.id or "{stem}"
    for file in files:
        yield template.replace("{stem}", file.stem).replace("{parent}", file.parent.name), file


def _merged(table: Metadata, inline: Mapping[str, Mapping[str, Any]]) -> Metadata:
    rows = as_metadata(table, list(inline))
    return {model_id: {**rows[model_id], **inline[model_id]} for model_id in inline}


def configured_inputs(config: InputsConfig, folder: Path) -> dict[str, Any]:
    """Return the keyword arguments of `capture` that say what models are shown.

    Raises
    ------
    InvalidConfig, InvalidInput
        They cannot be read, or the factory returns something else.
    """
    if config.factory is None:
        found = read_inputs(config, folder)
    else:
        made = call_target(config.factory, config.arguments, folder)
        found = dict(made) if isinstance(made, Mapping) else {"inputs": made}
        unknown = sorted(str(key) for key in found if key not in _FROM_FACTORY)
        if unknown or "inputs" not in found:
            raise InvalidInput(
                f"{config.factory} returned a mapping with {', '.join(map(str, found))}; expected "
                f"inputs and any of {', '.join(_FROM_FACTORY[1:])}."
            )
    for name in ("vocabulary_size", "has_time"):
        if getattr(config, name) is not None:
            found[name] = getattr(config, name)
    return found


def located(store: str, folder: Path) -> str:
    """Return where a store lies that a file in this folder names."""
    return store if "://" in store else str(folder / store)
