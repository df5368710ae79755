"""The TOML file of `dynamo-plugin capture`: its schema, and how its faults are told."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dynamo_plugin.errors import InvalidConfig
from dynamo_plugin.recording.reduction import as_rules

__all__ = ["CaptureConfig", "InputsConfig", "MetadataConfig", "ModelConfig", "load_config"]

Target = Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
"""`package.module:function`; naming one runs its code."""

Selector = str | int | list[str | int]
"""Key, attribute or index of a part of a nested output; several lead further in."""

_INPUT_SUFFIXES = (".npy", ".safetensors", ".parquet")
_METADATA_SUFFIXES = (".csv", ".parquet", ".json")
_STATE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_KEYS_OF_SUFFIX = {
    ".npy": ("lengths_file", "targets_file"),
    ".safetensors": ("key", "lengths_key", "targets_key"),
    ".parquet": ("column", "id_column", "target_column"),
}


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class InputsConfig(_Table):
    """`[inputs]`: a file, or a factory."""

    file: str | None = None
    """.npy, .safetensors or .parquet."""
    key: str | None = None
    """Tensor of a .safetensors file; may be left out where it holds one that is no other key's."""
    lengths_key: str | None = None
    """Tensor of a .safetensors file with (sample,) real steps."""
    targets_key: str | None = None
    """Tensor of a .safetensors file with targets."""
    lengths_file: str | None = None
    """.npy file with (sample,) real steps, beside a .npy file of inputs."""
    targets_file: str | None = None
    """.npy file with targets, beside a .npy file of inputs."""
    column: str | None = None
    """Column of a .parquet file with a list of ids, or of feature lists, per row."""
    id_column: str | None = None
    """Column of a .parquet file with the sample ids."""
    target_column: str | None = None
    """Column of a .parquet file with the targets."""
    factory: Target | None = None
    """Returns what `capture` takes as inputs, or a mapping with `inputs` and any of `lengths`,
    `targets`, `sample_ids`, `vocabulary_size` and `has_time`."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the factory."""
    vocabulary_size: Annotated[int, Field(ge=1)] | None = None
    """Number of distinct ids; by default one more than the largest."""
    has_time: bool | None = None
    """Whether floating samples are sequences or single arrays; by default those with two axes
    are sequences."""

    @model_validator(mode="after")
    def _one_source(self) -> InputsConfig:
        if (self.file is None) == (self.factory is None):
            raise ValueError("expected either file or factory")
        if self.file is None:
            _refuse(self, [key for keys in _KEYS_OF_SUFFIX.values() for key in keys], "a factory")
            return self
        suffix = _suffix(self.file, _INPUT_SUFFIXES)
        foreign = [key for kind, keys in _KEYS_OF_SUFFIX.items() if kind != suffix for key in keys]
        _refuse(self, [*foreign, "arguments"], f"a {suffix} file")
        if suffix == ".parquet" and self.column is None:
            raise ValueError("a .parquet file needs column, the one that holds the sequences")
        return self


class MetadataConfig(_Table):
    """`[metadata]`: a table with one row per model."""

    file: str
    """.csv or .parquet with a column `model` or `id`; .json with such records, or with an object
    from id to row."""

    @model_validator(mode="after")
    def _known_suffix(self) -> MetadataConfig:
        _suffix(self.file, _METADATA_SUFFIXES)
        return self


class ModelConfig(_Table):
    """`[[models]]`: one model, or one per file that a wildcard finds."""

    factory: Target
    """Makes the model."""
    id: Annotated[str, Field(min_length=1)] | None = None
    """Name of the model; `{stem}` and `{parent}` stand for the name of the state-dict file
    without its suffix, and of its folder. `{stem}` by default where there is such a file."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the factory."""
    state_dict: str | None = None
    """.pt, .pth, .bin (tensors only: nothing else is unpickled) or .safetensors; may hold
    wildcards."""
    state_dict_key: str | None = None
    """Where in the file the state dict lies, if the file holds more than that."""
    output_group: Annotated[str, Field(min_length=1)] | None = None
    """By default models whose outputs have one shape are one group."""
    metadata: dict[str, Any] = {}
    """Added to the row of the metadata file."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.state_dict is None:
            if self.id is None:
                raise ValueError("expected id, as there is no state_dict to take it from")
            _refuse(self, ["state_dict_key"], "a model without state_dict")
        else:
            _suffix(self.state_dict, _STATE_SUFFIXES)
        return self


def _checked_rules(rules: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    as_rules(rules)  # raises InvalidInput, a ValueError
    return rules


def _some(samples: int | list[int] | None) -> int | list[int] | None:
    if samples is not None and (samples == [] or (isinstance(samples, int) and samples < 1)):
        raise ValueError(f"expected a positive number of samples, or their numbers; got {samples}")
    return samples


class CaptureConfig(_Table):
    """The whole file. Paths are relative to it."""

    store: Annotated[str, Field(min_length=1)]
    """Path or fsspec URL of the population."""
    inputs: InputsConfig
    """What every model is shown."""
    models: Annotated[list[ModelConfig], Field(min_length=1)]
    """The population."""
    metadata: MetadataConfig | None = None
    """What is known of the models."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Most samples that a model is shown at once."""
    adapter: str | None = None
    """Registered name; by default the last registered one that takes the model."""
    layers: (
        Annotated[list[str], Field(min_length=1)]
        | Annotated[dict[str, Selector], Field(min_length=1)]
        | None
    ) = None
    """Patterns over the paths of the modules to record; or a table from patterns to what to take
    of a nested output, "..." for the whole."""
    adapter_options: dict[str, Any] = {}
    """Further keyword arguments of the adapter."""
    reduce: Annotated[dict[str, dict[str, Any]], AfterValidator(_checked_rules)] = {}
    """`[reduce."PATTERN"]`: fields of `Reduction`, for the sites whose names the pattern matches;
    the first that does counts."""
    samples: Annotated[int | list[int] | None, AfterValidator(_some)] = None
    """So many of the inputs, at random, or their numbers; all by default."""
    sample_seed: Annotated[int, Field(ge=0)] = 0
    """Of that draw."""
    output: str | int | None = None
    """Key, attribute or index of the output in what a model returns."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of one operation; by default those of this process."""
    allow_zero: bool = False
    """Accept sites that are zero throughout."""
    device: str | None = None
    """Where models run; the CPU by default, where they are made."""


def load_config(path: Path) -> CaptureConfig:
    """Read and check a capture file.

    Raises
    ------
    InvalidConfig
        It does not exist, is no TOML, or is not of the schema; names every fault by its place
        in the file.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidConfig(f"{path} cannot be read: {reason}. Expected a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} is not valid TOML: {error}.") from error
    try:
        return CaptureConfig.model_validate(content)
    except ValidationError as error:
        faults = [
            f"  {_place(fault['loc'])}: {_without_prefix(fault['msg'])}"
            for fault in error.errors(include_url=False)
        ]
        raise InvalidConfig("\n".join([f"{path} is not a capture file:", *faults])) from error


def _place(location: Iterable[int | str]) -> str:
    """Return where in the file a fault lies.

    >>> _place(("models", 2, "id"))
    'models[2].id'
    """
    place = ""
    for part in location:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else part
    return place or "(whole file)"


def _without_prefix(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Extra inputs are", "an unknown key is")


def _suffix(file: str, known: tuple[str, ...]) -> str:
    suffix = Path(file).suffix.lower()
    if suffix not in known:
        raise ValueError(f"expected a file of type {', '.join(known)}; got {file!r}")
    return suffix


def _refuse(table: _Table, keys: Iterable[str], owner: str) -> None:
    unused = [key for key in keys if key in table.model_fields_set]
    if unused:
        raise ValueError(f"{', '.join(unused)} does not belong to {owner}")
