"""How a model of transformers is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynamo_plugin.errors import DynamoError, InvalidInput
from dynamo_plugin.types import SequenceBatch

from ._calling import attention_mask, call_failed, moved

__all__ = ["HuggingFaceCall", "accepts", "weights_kept"]


def accepts(model: nn.Module, name: str) -> bool:
    """Return whether the model's forward has a parameter of this name.

    >>> accepts(nn.Linear(2, 3), "attention_mask")
    False
    """
    return name in inspect.signature(model.forward).parameters


@dataclass(frozen=True, slots=True)
class HuggingFaceCall:
    """Calls a model by the names of its inputs, without a cache.

    Ids become `input_ids`, with the padding token of the configuration, if it has one, after the
    end of each sequence; numbers per step become `inputs_embeds`; arrays without time what the
    model calls its main input, such as `pixel_values`. `attention_mask` is one at real steps.
    """

    def __call__(self, model: nn.Module, batch: SequenceBatch) -> Any:
        """Run the model on a batch.

        Raises
        ------
        InvalidInput
            The model does not take inputs of this kind.
        CaptureError
            The model raised; says how it was called.
        """
        arguments = _arguments(model, batch)
        try:
            return model(**arguments)
        except DynamoError:
            raise
        except Exception as error:
            way = ", ".join(
                f"{name} of shape {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else f"{name}={value}"
                for name, value in arguments.items()
            )
            raise call_failed(model, error, f"with {way}") from error


def _arguments(model: nn.Module, batch: SequenceBatch) -> dict[str, Any]:
    main = str(getattr(model, "main_input_name", "input_ids"))
    values = moved(batch.values, model)
    kind = type(model).__name__
    arguments: dict[str, Any] = {}
    if main == "input_ids":
        if not batch.has_time:
            raise InvalidInput(
                f"{kind} takes sequences: (sample, time) ids or (sample, time, width) numbers; the "
                f"inputs are one array of shape {tuple(values.shape[1:])} per sample."
            )
        if not values.is_floating_point():
            arguments["input_ids"] = _padded_ids(values.long(), batch.lengths, model)
        elif accepts(model, "inputs_embeds"):
            arguments["inputs_embeds"] = values
        else:
            raise InvalidInput(
                f"{kind} takes ids, and has no parameter inputs_embeds for numbers; the inputs "
                f"have dtype {str(values.dtype).removeprefix('torch.')}."
            )
    elif main == "pixel_values" and batch.has_time:
        raise InvalidInput(
            f"{kind} takes images: one array (channels, height, width) per sample; the inputs are "
            "sequences."
        )
    else:
        arguments[main] = values
    if batch.has_time and accepts(model, "attention_mask"):
        arguments["attention_mask"] = attention_mask(batch, values.device)
    if accepts(model, "use_cache"):
        arguments["use_cache"] = False
    return arguments


def _padded_ids(ids: Tensor, lengths: Tensor, model: nn.Module) -> Tensor:
    """Put the model's own padding token where zeros stand: some models look for it."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    token = getattr(text, "pad_token_id", None)
    if not isinstance(token, int) or token < 0:
        return ids
    time = torch.arange(ids.shape[1])
    return ids.masked_fill((time >= lengths[:, None]).to(ids.device), token)


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Undo what RWKV does to its weights when it runs in evaluation mode.

    It halves some of them, by powers of two, and doubles them again when it is trained next.
    """
    scaled = [
        (module, bool(module.layers_are_rescaled))
        for module in model.modules()
        if hasattr(module, "layers_are_rescaled") and hasattr(module, "_rescale_layers")
    ]
    try:
        yield
    finally:
        for module, before in scaled:
            if bool(module.layers_are_rescaled) != before:
                training = module.training
                module.training = not before
                module._rescale_layers()  # type: ignore[operator]
                module.training = training
