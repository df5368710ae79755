"""What every adapter finds out about a model, and refuses in the same words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from dynamo_hooks.torch_layers import TorchLayersAdapter
from dynamo_hooks.torch_recurrent import TorchRecurrentAdapter
from dynamo_hooks.transformer_lens import TransformerLensAdapter
from dynamo_plugin.errors import CaptureError
from dynamo_plugin.registry.interfaces import Adapter
from dynamo_plugin.types import SequenceBatch

Twist = Callable[[Tensor, Tensor], Tensor]
"""Takes the values that a model gets, (sample, time, feature), and the lengths."""


class Network(HookedRootModule):
    """Something to read for each adapter: a layer, a recurrent module, a hook point."""

    def __init__(self, *, time_first: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(2, 3)
            self.rnn = nn.GRU(3, 4, batch_first=not time_first)
        self.hook_state = HookPoint()
        self.setup()  # type: ignore[no-untyped-call]

    def forward(self, values: Tensor) -> Tensor:
        states: Tensor = self.hook_state(self.rnn(self.layer(values))[0])
        return states


def twisted(twist: Twist) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """Return a call of the network on inputs that are changed on the way."""
    return lambda model, values, lengths: model(twist(values, lengths))


def sequences(*lengths: int) -> SequenceBatch:
    generator = torch.Generator().manual_seed(0)
    values = 1 + torch.rand(len(lengths), max(lengths), 2, generator=generator)
    counted = torch.tensor(lengths)
    values[torch.arange(max(lengths)) >= counted[:, None]] = 0
    return SequenceBatch(values, counted)


ADAPTERS = [
    pytest.param(lambda **options: TorchLayersAdapter(layers=["layer"], **options), id="layers"),
    pytest.param(
        lambda **options: TorchRecurrentAdapter(layers=["rnn"], **options), id="recurrent"
    ),
    pytest.param(lambda **options: TransformerLensAdapter(layers=["hook_*"], **options), id="lens"),
]
adapters = pytest.mark.parametrize("built", ADAPTERS)
Built = Callable[..., Adapter]


@adapters
def test_options_say_how_a_model_is_read(built: Built) -> None:
    spec = built().describe(Network(), sequences(4, 4))
    assert json.loads(json.dumps(dict(spec.options))) == spec.options
    assert spec.options["time_first"] is False
    assert spec.options["takes_lengths"] is False
    assert spec.options["ragged_batches"] is True  # causal, and everything has rows per step
    assert spec.options["output_axes"] == ["sample", "time", "unit"]
    (site,) = spec.sites
    assert spec.options["site_axes"] == {site.name: ["sample", "time", "unit"]}


@adapters
@pytest.mark.parametrize("samples", [1, 3, 4, 5])
def test_layout_is_found(built: Built, samples: int) -> None:
    batch = sequences(*[4] * samples)
    model = Network(time_first=True)
    adapter = built()
    spec = adapter.describe(model, batch)
    assert spec.options["time_first"] is True
    found = adapter.record(model, batch, spec).outputs["output4-per-step"]
    with torch.no_grad():
        for row in range(samples):
            expected = model.rnn(model.layer(batch.values[row]))[0]
            torch.testing.assert_close(found[row], expected)


@adapters
def test_samples_must_not_influence_each_other(built: Built) -> None:
    centred = twisted(lambda values, lengths: values - values.mean((0, 1)))
    with pytest.raises(CaptureError, match=r"depends on the other samples of its batch.*forward="):
        built(forward=centred).describe(Network(), sequences(4, 4, 4))
    # Samples may be all the same, and then differ from each other only where they are varied.
    with pytest.raises(CaptureError, match="depends on the other samples of its batch"):
        built(forward=centred).describe(Network(), sequences(4))

    def first_only(values: Tensor, lengths: Tensor) -> Tensor:
        others = values[1:].sum(0, keepdim=True)
        return torch.cat([values[:1] + others, values[1:]])

    with pytest.raises(CaptureError, match="depends on the other samples of its batch"):
        built(forward=twisted(first_only)).describe(Network(), sequences(4, 4, 4))


@adapters
def test_the_same_inputs_must_give_the_same(built: Built) -> None:
    noisy = twisted(lambda values, lengths: values + torch.rand(values.shape))
    before = torch.random.get_rng_state()
    with pytest.raises(CaptureError, match="differs between two runs on the same inputs"):
        built(forward=noisy).describe(Network(), sequences(4, 4))
    assert torch.equal(torch.random.get_rng_state(), before)


@adapters
def test_recording_leaves_random_generators_alone(built: Built) -> None:
    def drawing(model: Any, values: Tensor, lengths: Tensor) -> Tensor:
        torch.rand(3)
        result: Tensor = model(values)
        return result

    adapter, model, batch = built(forward=drawing), Network(), sequences(4, 4)
    before = torch.random.get_rng_state()
    adapter.record(model, batch, adapter.describe(model, batch))
    assert torch.equal(torch.random.get_rng_state(), before)


@adapters
def test_outputs_with_two_axes_of_time_are_refused(built: Built) -> None:
    def pattern(model: Any, values: Tensor, lengths: Tensor) -> Tensor:
        states = model(values)
        result: Tensor = states @ states.transpose(1, 2)
        return result

    with pytest.raises(CaptureError, match=r"the output .*two axes follow time.*output="):
        built(forward=pattern).describe(Network(), sequences(4, 4))


def test_faults_of_a_layout_that_is_known_are_not_mixed_with_those_of_the_other() -> None:
    """A recurrent module that gets the whole batch shows that the layout is right."""
    centred = twisted(lambda values, lengths: values - values.mean((0, 1)))
    adapter = TorchRecurrentAdapter(forward=centred)
    with pytest.raises(CaptureError, match="depends on the other samples") as caught:
        adapter.describe(Network(), sequences(4, 4))
    assert "(time, sample, ...)" not in str(caught.value)


# --- padding -----------------------------------------------------------------------------------


def highest(mask: bool) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """Return a call whose output is a maximum over steps, over the real ones or over all.

    All inputs of these tests are above zero, so that zeros as padding do not show.
    """

    def forward(model: Any, values: Tensor, lengths: Tensor) -> Tensor:
        model(values)
        time = torch.arange(values.shape[1])
        padding = time >= lengths[:, None] if mask else torch.zeros(values.shape[:2]).bool()
        return values.masked_fill(padding[..., None], -torch.inf).amax(1)

    return forward


@adapters
def test_a_call_that_ignores_the_lengths_is_not_told_them(built: Built) -> None:
    batch = sequences(5, 3)
    heeding = built(forward=highest(mask=True)).describe(Network(), batch)
    assert (heeding.options["takes_lengths"], heeding.options["ragged_batches"]) == (True, True)
    ignoring = built(forward=highest(mask=False)).describe(Network(), batch)
    assert (ignoring.options["takes_lengths"], ignoring.options["ragged_batches"]) == (True, False)


@adapters
def test_sequences_that_padding_would_change_are_kept_apart(built: Built) -> None:
    total = twisted(lambda values, lengths: values + values.sum(1, keepdim=True))
    adapter, model, batch = built(forward=total), Network(), sequences(5, 3)
    spec = adapter.describe(model, batch)
    assert spec.options["ragged_batches"] is False
    with pytest.raises(CaptureError, match=r"Network cannot tell padding from data.*of 3 to 5"):
        adapter.record(model, batch, spec)


@adapters
def test_zeros_suffice_where_lengths_are_heeded(built: Built) -> None:
    """A convolution sees the zeros past the end that it would see alone; others it would not."""

    def smoothed(model: Any, values: Tensor, lengths: Tensor) -> Tensor:
        after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        states = model(values + after)
        real = torch.arange(values.shape[1]) < lengths[:, None]
        result: Tensor = (states * real[..., None]).sum(1)
        return result

    adapter, model, batch = built(forward=smoothed), Network(), sequences(5, 3)
    spec = adapter.describe(model, batch)
    assert spec.options["ragged_batches"] is True
    mixed = adapter.record(model, batch, spec)
    alone = adapter.record(model, SequenceBatch(batch.values[1:, :3], torch.tensor([3])), spec)
    for name, state in alone.states.items():
        torch.testing.assert_close(mixed.states[name][1:, :3], state)
    torch.testing.assert_close(mixed.outputs["output4"][1:], alone.outputs["output4"])


# --- recording ---------------------------------------------------------------------------------


@adapters
def test_a_model_that_changed_is_refused_in_the_same_words(built: Built) -> None:
    adapter, model, batch = built(), Network(), sequences(4, 4)
    spec = adapter.describe(model, batch)
    site = re.escape(spec.sites[0].name)
    with pytest.raises(
        CaptureError, match=rf"site '{site}': expected float32 .* as it was described; got float64"
    ):
        adapter.record(model.double(), batch, spec)
    with pytest.raises(CaptureError, match=rf"site '{site}' was computed in float32 .* bfloat16"):
        adapter.record(model.bfloat16(), batch, spec)
