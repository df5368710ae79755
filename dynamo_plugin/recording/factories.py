"""Models that a file describes, made when they are needed, in whichever process that is."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidConfig, InvalidInput

__all__ = ["ConfiguredModel", "call_target", "load_target"]


@dataclass(frozen=True, slots=True)
class ConfiguredModel:
    """A factory that can be sent to another process."""

    factory: str
    """`package.module:function`."""
    folder: Path
    """Where modules are looked for first."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function."""
    state_dict: Path | None = None
    """File of weights to load into what the function returned."""
    state_dict_key: str | None = None
    """Where in that file they lie."""

    def __call__(self) -> Any:
        """Make the model and load its weights.

        Raises
        ------
        InvalidConfig
            The factory cannot be imported.
        InvalidInput
            The state dict cannot be read or does not fit; names the keys.
        """
        model = call_target(self.factory, self.arguments, self.folder)
        if self.state_dict is not None:
            if not isinstance(model, nn.Module):
                raise InvalidInput(
                    f"{self.factory} returned {type(model).__name__}; expected a torch.nn.Module, "
                    f"into which {self.state_dict} can be loaded."
                )
            weights = _read_state_dict(self.state_dict, self.state_dict_key)
            _check_fit(model, weights, self.state_dict)
            model.load_state_dict(weights)
        return model


def load_target(target: str, folder: Path) -> Any:
    """Import what `package.module:name` names; modules in `folder` come first.

    Importing runs the code of the module.

    Raises
    ------
    InvalidConfig
        There is no such module or name, or the module cannot be imported.
    """
    module_name, _, path = target.partition(":")
    with _search_path(folder):
        try:
            found: Any = importlib.import_module(module_name)
            for part in path.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise InvalidConfig(
                f"{target} cannot be imported: {type(error).__name__}: {error}. Expected "
                f"package.module:function, installed or in {folder}."
            ) from error
    if not callable(found):
        raise InvalidConfig(f"{target} is a {type(found).__name__}; expected a function or class.")
    return found


def call_target(target: str, arguments: Mapping[str, Any], folder: Path) -> Any:
    """Import and call; what the function imports is looked for in `folder`, too."""
    function = load_target(target, folder)
    with _search_path(folder):
        return function(**arguments)


@contextmanager
def _search_path(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _read_state_dict(path: Path, key: str | None) -> dict[str, Tensor]:
    try:
        if path.suffix.lower() == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InvalidInput(f"there is no file {path}.") from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InvalidInput(f"{path} cannot be read as a state dict: {error}.") from error
    except Exception as error:  # pickle.UnpicklingError, and whatever a broken pickle raises
        raise InvalidInput(
            f"{path} is not a file of tensors alone and was not unpickled, as that runs code: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__} "
            "Save model.state_dict()."
        ) from error
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            names = ", ".join(map(str, content)) if isinstance(content, Mapping) else "no keys"
            raise InvalidInput(f"{path} has no entry {key!r}; it holds {names}.")
        content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise InvalidInput(
            f"{path} holds {type(content).__name__}; expected a mapping from names to tensors."
        )
    return dict(content)


def _check_fit(model: nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    own = model.state_dict()
    nested = [name for name, value in weights.items() if isinstance(value, Mapping)]
    wrong = [
        f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if isinstance(value, Tensor)
        and isinstance(weights.get(name), Tensor)
        and weights[name].shape != value.shape
    ]
    faults = [
        f"{what}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        for what, names in (
            ("missing keys", [name for name in own if name not in weights]),
            ("unexpected keys", [name for name in weights if name not in own]),
            ("wrong shapes", wrong),
        )
        if names
    ]
    if faults:
        hint = f" Did you mean state_dict_key = {nested[0]!r}?" if nested else ""
        raise InvalidInput(
            f"{path} does not fit {type(model).__name__}; {'; '.join(faults)}. Check the "
            f"arguments of the factory.{hint}"
        )
