"""The recurrent adapter against hand-written step loops."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from dynamo_hooks.torch_recurrent import TorchRecurrentAdapter
from dynamo_plugin.errors import CaptureError, InvalidInput, UnknownName, UnsupportedModel
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec


def reference_states(
    module: nn.RNNBase, sequence: Tensor, initial: Tensor | None = None
) -> list[Tensor]:
    """Step one unpadded sequence (time, feature) through cells; (time, units) per layer."""
    layers = []
    directions = 2 if module.bidirectional else 1
    width = module.proj_size or module.hidden_size
    for layer in range(module.num_layers):
        parts = []
        for direction in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            weights = {
                name: getattr(module, name + suffix)
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
                if hasattr(module, name + suffix)
            }
            zero = sequence.new_zeros(1, width)
            h = zero if initial is None else initial[layer * directions + direction][None]
            c = sequence.new_zeros(1, module.hidden_size)
            order = range(len(sequence))[:: -1 if direction else 1]
            steps: list[Tensor] = [zero] * len(sequence)
            for time in order:
                h, c = one_step(module, weights, sequence[time][None], h, c)
                steps[time] = h
            parts.append(torch.cat(steps))
        sequence = torch.cat(parts, dim=-1)
        layers.append(sequence)
    return layers


def one_step(
    module: nn.RNNBase, weights: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    if module.mode == "LSTM" and module.proj_size:
        gates = x @ weights["weight_ih"].T + h @ weights["weight_hh"].T
        if module.bias:
            gates = gates + weights["bias_ih"] + weights["bias_hh"]
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return (o.sigmoid() * c.tanh()) @ weights["weight_hr"].T, c
    size = (x.shape[-1], module.hidden_size)
    options: dict[str, Any] = {"bias": module.bias, "dtype": x.dtype}
    cell: nn.RNNCellBase
    if module.mode == "LSTM":
        cell = nn.LSTMCell(*size, **options)
    elif module.mode == "GRU":
        cell = nn.GRUCell(*size, **options)
    else:
        cell = nn.RNNCell(*size, nonlinearity=module.mode[4:].lower(), **options)
    cell.load_state_dict(weights)
    with torch.no_grad():
        if isinstance(cell, nn.LSTMCell):
            h, c = cell(x, (h, c))
            return h, c
        return cell(x, h), c


class Classifier(nn.Module):
    """A network nobody wrote for us: one recurrent module and a readout of the last real step."""

    def __init__(self, rnn: nn.RNNBase, *, packed: bool, enforce_sorted: bool = False) -> None:
        super().__init__()
        self.rnn = rnn
        width = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
        self.readout = nn.Linear(width, 3, dtype=torch.float64)
        self.packed = packed
        self.enforce_sorted = enforce_sorted

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        states: Tensor
        if not self.rnn.batch_first:
            values = values.transpose(0, 1)
        if self.packed:
            packed = pack_padded_sequence(
                values,
                lengths,
                batch_first=self.rnn.batch_first,
                enforce_sorted=self.enforce_sorted,
            )
            states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=self.rnn.batch_first)
        else:
            states, _ = self.rnn(values)
        if not self.rnn.batch_first:
            states = states.transpose(0, 1)
        logits: Tensor = self.readout(states[torch.arange(len(states)), lengths - 1])
        return logits


class Last(nn.Module):
    """Takes no lengths: reads its input to the end."""

    def __init__(self, rnn: nn.RNNBase | None = None, *, time_first: bool = False) -> None:
        super().__init__()
        self.rnn = rnn or nn.GRU(2, 4, batch_first=not time_first)
        self.readout = nn.Linear(4, 3)
        self.time_first = time_first

    def forward(self, values: Tensor) -> Any:
        states = self.rnn(values)[0]
        return self.readout(states[-1] if self.time_first else states[:, -1])


def batch_of(lengths: list[int], features: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(sum(lengths) + len(lengths))
    values = torch.randn(
        len(lengths), max(lengths), features, generator=generator, dtype=torch.float64
    )
    counted = torch.tensor(lengths)
    values[torch.arange(max(lengths))[None, :] >= counted[:, None]] = 0
    return SequenceBatch(values.to(dtype), counted)


def captured(
    model: nn.Module, batch: SequenceBatch, **options: Any
) -> tuple[TrajectorySpec, Trajectory]:
    adapter = TorchRecurrentAdapter(**options)
    assert adapter.supports(model)
    spec = adapter.describe(model, batch)
    return spec, adapter.record(model, batch, spec)


architectures = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["RNN", "RELU", "GRU", "LSTM", "PROJECTED"]),
        "num_layers": st.integers(1, 3),
        "bidirectional": st.booleans(),
        "batch_first": st.booleans(),
        "bias": st.booleans(),
    }
)


def built(kind: str, **options: Any) -> nn.RNNBase:
    options["dtype"] = torch.float64
    if kind == "RELU":
        return nn.RNN(2, 3, nonlinearity="relu", **options)
    if kind == "PROJECTED":
        return nn.LSTM(2, 4, proj_size=3, **options)
    kinds: dict[str, Callable[..., nn.RNNBase]] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
    return kinds[kind](2, 3, **options)


@settings(deadline=None, max_examples=60)
@given(
    architecture=architectures,
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    way=st.sampled_from(["padded", "packed", "sorted"]),
    seed=st.integers(0, 2**16),
)
def test_states_match_cells_stepped_by_hand(
    architecture: dict[str, Any], lengths: list[int], way: str, seed: int
) -> None:
    if way == "padded":  # the reverse direction of a padded batch would read the padding
        lengths = [lengths[0]] * len(lengths)
    lengths = sorted(lengths, reverse=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rnn = built(**architecture)
        model = Classifier(rnn, packed=way != "padded", enforce_sorted=way == "sorted")
    batch = batch_of(lengths, dtype=torch.float64)
    spec, trajectory = captured(model, batch)
    layers = rnn.num_layers
    names = ["rnn"] if layers == 1 else [f"rnn.layer{index}" for index in range(layers)]
    assert [site.name for site in spec.sites] == names == list(trajectory.states)
    assert {site.dtype for site in spec.sites} == {"float64"}
    for row, length in enumerate(lengths):
        expected = reference_states(rnn, batch.values[row, :length])
        for name, states in zip(names, expected, strict=True):
            torch.testing.assert_close(
                trajectory.states[name][row, :length], states, rtol=1e-9, atol=1e-12
            )
        logits = model.readout(expected[-1][-1])
        torch.testing.assert_close(
            trajectory.outputs["output3"][row], logits.detach(), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rnn_class", [nn.GRU, nn.LSTM])
def test_unrolled_layers_start_from_the_state_the_module_received(
    rnn_class: type[nn.GRU | nn.LSTM], packed: bool
) -> None:
    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = rnn_class(2, 3, num_layers=2, batch_first=True, dtype=torch.float64)
            self.start = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))

        def forward(self, values: Tensor, lengths: Tensor) -> Any:
            h = self.start[:, None].expand(-1, len(values), -1).contiguous()
            hx = (h, torch.zeros_like(h)) if isinstance(self.rnn, nn.LSTM) else h
            if not packed:
                return self.rnn(values, hx=hx)[0]
            sequence = pack_padded_sequence(values, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.rnn(sequence, hx=hx)[0], batch_first=True)[0]

    model = Started()
    batch = batch_of([4, 4, 2] if packed else [4, 4, 4], dtype=torch.float64)
    spec, trajectory = captured(model, batch)
    assert spec.output.axis == "time"
    for row, length in enumerate(batch.lengths.tolist()):
        expected = reference_states(model.rnn, batch.values[row, :length], model.start)
        for index in range(2):
            torch.testing.assert_close(
                trajectory.states[f"rnn.layer{index}"][row, :length], expected[index].detach()
            )


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("samples", [1, 4, 5])
def test_layout_is_found_even_where_the_batch_is_square(time_first: bool, samples: int) -> None:
    model = Last(time_first=time_first)
    batch = batch_of([4] * samples)
    spec, trajectory = captured(model, batch)
    assert spec.options["time_first"] is time_first
    assert spec.options["takes_lengths"] is False
    for row in range(samples):
        expected = reference_states(model.rnn, batch.values[row])[0].detach()
        torch.testing.assert_close(trajectory.states["rnn"][row], expected)
        torch.testing.assert_close(
            trajectory.outputs["output3"][row], model.readout(expected[-1]).detach()
        )


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_bare_recurrent_module_is_a_model(batch_first: bool) -> None:
    model = nn.GRU(2, 4, batch_first=batch_first)
    batch = batch_of([4, 4, 4, 4])
    spec, trajectory = captured(model, batch)
    assert [site.name for site in spec.sites] == ["gru"]
    assert spec.output.shape == (4,)
    assert spec.output.axis == "time"
    torch.testing.assert_close(trajectory.outputs["output4-per-step"], trajectory.states["gru"])
    torch.testing.assert_close(
        trajectory.states["gru"][2], reference_states(model, batch.values[2])[0].detach()
    )


def test_token_ids_reach_an_embedding() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 2)
            self.encoder = nn.ModuleDict({"rnn": nn.GRU(2, 4, batch_first=True)})

        def forward(self, ids: Tensor) -> dict[str, Tensor]:
            states = self.encoder["rnn"](self.embedding(ids))[0]
            return {"hidden": states, "logits": states.sum(-1)}

    ids = torch.tensor([[1, 2, 6], [0, 3, 3]])
    model = Reader()
    spec, trajectory = captured(model, SequenceBatch(ids, torch.tensor([3, 3])))
    assert spec.sites[0].name == "encoder.rnn"
    assert spec.output.axis == "time"
    assert spec.output.shape == (1,)
    rnn = model.encoder["rnn"]
    assert isinstance(rnn, nn.GRU)
    expected = reference_states(rnn, model.embedding(ids[1]).detach())[0]
    torch.testing.assert_close(trajectory.states["encoder.rnn"][1], expected.detach())


@pytest.mark.parametrize(
    ("shape", "axis", "size"),
    [
        (lambda s: s[:, -1, 0], "sample", 1),
        (lambda s: s[:, -1], "sample", 4),
        (lambda s: s[:, :, 0], "time", 1),
        (lambda s: s[:, :, 0].T, "time", 1),
        (lambda s: s, "time", 4),
        (lambda s: s.transpose(0, 1), "time", 4),
        (lambda s: s.transpose(1, 2), "time", 4),
    ],
)
def test_output_layouts(shape: Callable[[Tensor], Tensor], axis: str, size: int) -> None:
    model = nn.GRU(2, 4, batch_first=True)
    batch = batch_of([4, 4, 4, 4])
    spec, trajectory = captured(
        model, batch, forward=lambda model, values, lengths: shape(model(values)[0])
    )
    assert (spec.output.axis, spec.output.shape) == (axis, (size,))
    states = trajectory.states["gru"]
    expected = states[:, -1, :size] if axis == "sample" else states[..., :size]
    torch.testing.assert_close(next(iter(trajectory.outputs.values())), expected)


@pytest.mark.parametrize(
    "reshape",
    [
        lambda s: s.flatten(0, 1),  # (sample * time, unit)
        lambda s: s[0, -1],  # no axis of samples
        lambda s: s @ s.transpose(1, 2),  # two axes of time
    ],
)
def test_unreadable_output_layouts_are_refused(reshape: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(CaptureError, match=r"the output has shapes .*forward="):
        captured(
            nn.GRU(2, 4, batch_first=True),
            batch_of([5, 5, 5]),
            forward=lambda model, values, lengths: reshape(model(values)[0]),
        )


def test_outputs_may_have_several_axes_of_units() -> None:
    spec, trajectory = captured(
        nn.GRU(2, 4, batch_first=True),
        batch_of([5, 5, 5]),
        forward=lambda model, values, lengths: model(values)[0].unflatten(-1, (2, 2)),
    )
    assert (spec.output.shape, spec.output.axis) == ((2, 2), "time")
    expected = trajectory.states["gru"].unflatten(-1, (2, 2))
    torch.testing.assert_close(trajectory.outputs["output2x2-per-step"], expected)


def test_ambiguous_output_of_a_fixed_length_model_is_refused() -> None:
    class Fixed(Last):
        def forward(self, values: Tensor) -> Any:
            assert values.shape[1] == 4
            return self.rnn(values)[0][:, :, 0]

    with pytest.raises(CaptureError, match="may be the time steps or the units"):
        captured(Fixed(), batch_of([4, 4]))


def test_fixed_length_model_with_a_clear_output_is_read() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 4, batch_first=True)
            self.readout = nn.Linear(5 * 4, 3)

        def forward(self, values: Tensor) -> Any:
            return self.readout(self.rnn(values)[0].flatten(1))

    spec, _ = captured(Fixed(), batch_of([5, 5]))
    assert spec.output.axis == "sample"
    assert spec.output.shape == (3,)


def test_padding_never_leaks() -> None:
    batch = batch_of([5, 3, 1])
    adapter = TorchRecurrentAdapter()
    blind = Last()
    spec = adapter.describe(blind, batch)
    assert spec.options["ragged_batches"] is False
    with pytest.raises(CaptureError, match="cannot tell padding from data"):
        adapter.record(blind, batch, spec)
    torch.manual_seed(0)
    bidirectional = nn.GRU(2, 3, bidirectional=True, batch_first=True, dtype=torch.float64)
    reading = Classifier(bidirectional, packed=False)
    assert adapter.describe(reading, batch).options["takes_lengths"] is True
    assert adapter.describe(reading, batch).options["ragged_batches"] is False
    reading.packed = True
    assert adapter.describe(reading, batch).options["ragged_batches"] is True


def test_lengths_arrive_as_int64_under_any_of_their_names() -> None:
    seen: list[Tensor] = []

    class Named(Last):
        def forward(self, values: Tensor, *, sequence_lengths: Tensor | None = None) -> Any:
            assert sequence_lengths is not None
            seen.append(sequence_lengths)
            return super().forward(values)

    captured(Named(), batch_of([3, 3]))
    assert seen
    assert all(lengths.dtype == torch.int64 for lengths in seen)
    assert all(lengths.device.type == "cpu" for lengths in seen)


def test_packed_output_is_padded() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 4, batch_first=True)

        def forward(self, values: Tensor, lengths: Tensor) -> PackedSequence:
            packed = pack_padded_sequence(values, lengths, batch_first=True)
            result: PackedSequence = self.rnn(packed)[0]
            return result

    spec, trajectory = captured(Packed(), batch_of([4, 2]))
    assert spec.output.axis == "time"
    torch.testing.assert_close(trajectory.outputs["output4-per-step"], trajectory.states["rnn"])


class Bystander(nn.Module):
    """Two modules, of which one is not used, and one submodule that is frozen in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.GRU(2, 4, batch_first=True)
        self.unused = nn.LSTM(2, 4, batch_first=True)
        self.frozen = nn.Dropout(0.5)
        self.live = nn.Dropout(0.5)

    def forward(self, values: Tensor) -> Tensor:
        states: Tensor = self.live(self.used(values)[0])
        return states[:, -1]


def snapshot(model: nn.Module) -> list[Any]:
    return [
        [module.training for module in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone().tolist() for p in model.parameters()],
        [p.data_ptr() for p in model.parameters()],
        [p.clone().tolist() for p in model.parameters()],
        torch.random.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    ]


def prepared() -> Bystander:
    model = Bystander()
    model.used.register_forward_hook(lambda *_: None)
    model.frozen.eval()
    model.used.bias_hh_l0.requires_grad_(False)
    weight = model.unused.get_parameter("weight_ih_l0")
    weight.grad = torch.ones_like(weight)
    return model


def test_model_is_left_as_it_was_found() -> None:
    model = prepared()
    before = snapshot(model)
    spec, _ = captured(model, batch_of([4, 4, 4]))
    assert [site.name for site in spec.sites] == ["used"]
    assert snapshot(model) == before
    stacked = nn.GRU(2, 4, num_layers=2)
    before = snapshot(stacked)
    captured(stacked, batch_of([4, 4, 4]))
    assert snapshot(stacked) == before


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_model_is_left_as_it_was_found_after_exceptions(error: BaseException) -> None:
    model = prepared()
    before = snapshot(model)
    adapter = TorchRecurrentAdapter()
    batch = batch_of([4, 4, 4])
    spec = adapter.describe(model, batch)
    fuse = model.live.register_forward_hook(lambda *_: (_ for _ in ()).throw(error))
    expected = CaptureError if isinstance(error, Exception) else KeyboardInterrupt
    with pytest.raises(expected):
        adapter.record(model, batch, spec)
    with pytest.raises(expected):
        adapter.describe(model, batch)
    fuse.remove()
    assert snapshot(model) == before


def test_what_is_captured_is_a_copy() -> None:
    class Reusing(Last):
        def forward(self, values: Tensor) -> Any:
            states = self.rnn(values)[0]
            states.mul_(0)
            return states[:, -1] + 1

    model = Reusing()
    batch = batch_of([4, 4])
    _, trajectory = captured(model, batch)
    torch.testing.assert_close(
        trajectory.states["rnn"][0], reference_states(model.rnn, batch.values[0])[0].detach()
    )
    assert not trajectory.states["rnn"].requires_grad


def test_modules_that_run_never_or_twice_are_named() -> None:
    class Twice(Bystander):
        def forward(self, values: Tensor) -> Tensor:
            self.unused(values)
            states: Tensor = self.used(values)[0] + self.used(values)[0]
            return states[:, -1]

    batch = batch_of([3, 3])
    with pytest.raises(CaptureError, match="'used' ran 2 times"):
        captured(Twice(), batch)
    spec, _ = captured(Twice(), batch, layers=["un*"])
    assert [site.name for site in spec.sites] == ["unused"]
    with pytest.raises(CaptureError, match=r"'unused' did not run .*those that did: 'used'"):
        captured(Bystander(), batch, layers=["unused"])
    with pytest.raises(CaptureError, match=r"did not run .*those that did: none"):
        captured(Bystander(), batch, forward=lambda model, values, lengths: values.mean(dim=(1, 2)))
    with pytest.raises(UnknownName, match="Did you mean 'used'"):
        captured(Bystander(), batch, layers=["uzed"])
    with pytest.raises(InvalidInput, match="sequence of at least one pattern"):
        TorchRecurrentAdapter(layers="used")


def test_sites_stand_in_order_of_computation() -> None:
    class Reverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.GRU(4, 3, batch_first=True)
            self.first = nn.GRU(2, 4, batch_first=True)

        def forward(self, values: Tensor) -> Tensor:
            states: Tensor = self.second(self.first(values)[0])[0]
            return states[:, -1]

    spec, _ = captured(Reverse(), batch_of([4, 4]))
    assert [site.name for site in spec.sites] == ["first", "second"]


def test_contradictory_layouts_are_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.GRU(2, 4, batch_first=True)
            self.second = nn.GRU(4, 4, batch_first=False)

        def forward(self, values: Tensor) -> Tensor:
            states: Tensor = self.second(self.first(values)[0])[0]
            return states[:, -1]

    with pytest.raises(CaptureError, match="Samples and time are exchanged"):
        captured(Mixed(), batch_of([5, 5]))


def test_other_numbers_of_steps_are_refused() -> None:
    with pytest.raises(CaptureError, match="shortens or lengthens"):
        captured(
            Last(), batch_of([6, 6]), forward=lambda model, values, lengths: model(values[:, ::2])
        )


def test_packing_by_wrong_lengths_is_refused() -> None:
    class Cutting(Classifier):
        def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
            wrong = lengths.clone()
            wrong[1:] = 1
            return super().forward(values, wrong)

    with pytest.raises(CaptureError, match="packed sequences of other lengths"):
        captured(Cutting(built("GRU", batch_first=True), packed=True), batch_of([4, 4]))


def test_states_kept_between_calls_are_refused() -> None:
    class Stateful(Last):
        hidden: Tensor | None = None

        def forward(self, values: Tensor) -> Any:
            states, _ = self.rnn(values, self.hidden)
            self.hidden = torch.ones(1, len(values), 4)
            return self.readout(states[:, -1])

    with pytest.raises(CaptureError, match="differs between two runs"):
        captured(Stateful(), batch_of([4, 4]))


def test_overridden_layers_are_refused() -> None:
    class Odd(nn.GRU):
        def forward(self, *arguments: Any) -> Any:
            states, last = super().forward(*arguments)
            return states * 2, last

    batch = batch_of([4, 4])
    with pytest.raises(CaptureError, match="run one by one"):
        captured(Odd(2, 4, num_layers=2, batch_first=True), batch)

    class Bare(nn.GRU):
        def forward(self, *arguments: Any) -> Any:
            return super().forward(*arguments)[0]

    with pytest.raises(CaptureError, match=r"torch\.nn returns \(states, last state\)"):
        captured(Bare(2, 4, batch_first=True), batch)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(torch.float64, "float64"), (torch.float16, "float16"), (torch.bfloat16, "float32")],
)
def test_dtypes(dtype: torch.dtype, stored: str) -> None:
    model = Last().to(dtype)
    spec, trajectory = captured(model, batch_of([3, 3], dtype=torch.float64))
    assert spec.sites[0].dtype == spec.output.dtype == stored
    assert spec.sites[0].source_dtype == ("bfloat16" if dtype == torch.bfloat16 else None)
    assert trajectory.states["rnn"].dtype == getattr(torch, stored)
    model.eval()
    with torch.no_grad():
        own = model.rnn(batch_of([3, 3], dtype=torch.float64).values.to(dtype))[0]
    assert torch.equal(trajectory.states["rnn"].to(dtype), own)


@pytest.mark.parametrize("kind", ["gru", "stacked", "lstm", "cell"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_inside_the_model(kind: str, dtype: torch.dtype) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            rnn_class = nn.LSTM if kind == "lstm" else nn.GRU
            self.embed = nn.Linear(2, 2)
            self.rnn: nn.Module = nn.GRUCell(2, 4)
            if kind != "cell":
                self.rnn = rnn_class(2, 4, 1 if kind == "gru" else 2, bidirectional=True)

        def forward(self, values: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=dtype):
                embedded = self.embed(values)
                if kind != "cell":
                    return self.rnn(embedded)[0].float()  # type: ignore[no-any-return]
                h = None
                steps = []
                for step in embedded:
                    h = self.rnn(step, h)
                    steps.append(h)
                return torch.stack(steps).float()

    torch.manual_seed(0)
    model = Mixed().eval()
    batch = batch_of([5, 5, 5])
    spec, trajectory = captured(model, batch, cell_state=kind == "lstm")
    with torch.no_grad():
        own = model(batch.values.transpose(0, 1).contiguous()).transpose(0, 1)
    expected = ("float32", "bfloat16") if dtype == torch.bfloat16 else ("float16", None)
    assert {(site.dtype, site.source_dtype) for site in spec.sites} == {expected}
    last = "rnn.layer1" if kind in ("stacked", "lstm") else "rnn"
    assert torch.equal(trajectory.states[last].float(), own)
    if isinstance(model.rnn, nn.RNNBase):
        sites = [name for name in trajectory.states if not name.endswith(".cell")]
        exact = reference_states(model.rnn, model.embed(batch.values[1]).detach())
        for name, layer in zip(sites, exact, strict=True):
            torch.testing.assert_close(
                trajectory.states[name][1].float(), layer.detach(), rtol=0, atol=0.02
            )


def test_integer_outputs_are_refused() -> None:
    with pytest.raises(CaptureError, match="dtype int64; expected float16"):
        captured(
            Last(), batch_of([3, 3]), forward=lambda model, values, _: model(values).argmax(-1)
        )


def test_output_selection() -> None:
    def returning(result: Callable[[Tensor], Any]) -> Callable[[Any, Tensor, Tensor], Any]:
        return lambda model, values, lengths: result(model(values))

    batch = batch_of([4, 4])
    labels: Callable[[Tensor], Any] = lambda y: (y.argmax(-1), y)  # noqa: E731
    spec, _ = captured(Last(), batch, forward=returning(labels))
    assert spec.output.shape == (3,)
    spec, _ = captured(
        Last(), batch, output="score", forward=returning(lambda y: {"score": y[:, :2], "x": y})
    )
    assert spec.output.shape == (2,)
    spec, _ = captured(Last(), batch, output=1, forward=returning(lambda y: (y, y[:, :1])))
    assert spec.output.shape == (1,)
    with pytest.raises(UnknownName, match="Did you mean 'score'"):
        captured(Last(), batch, output="scor", forward=returning(lambda y: {"score": y}))
    with pytest.raises(UnknownName, match="asks for an entry"):
        captured(Last(), batch, output=5, forward=returning(lambda y: (y,)))
    with pytest.raises(CaptureError, match=r"dict with keys score.*output="):
        captured(Last(), batch, forward=returning(lambda y: {"score": y}))


def test_wrong_calls_say_how_the_model_was_called() -> None:
    class Demanding(Last):
        def forward(self, values: Tensor, mask: Tensor) -> Any:  # type: ignore[override]
            return super().forward(values * mask)

    with pytest.raises(CaptureError, match=r"raised TypeError.*model\(values\).*forward="):
        captured(Demanding(), batch_of([3, 3]))


def test_unsupported_models() -> None:
    adapter = TorchRecurrentAdapter()
    batch = batch_of([3, 3])
    assert not adapter.supports(nn.Linear(2, 3))
    assert not adapter.supports("gru")
    with pytest.raises(UnsupportedModel, match=r"no nn\.RNN"):
        adapter.describe(nn.Linear(2, 3), batch)
    with pytest.raises(UnsupportedModel, match="got str"):
        adapter.describe("gru", batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.GRU(2, 3))
    assert not adapter.supports(scripted)
    model = Last()
    model.rnn.compile(backend="eager")
    with pytest.raises(UnsupportedModel, match="submodule 'rnn' is compiled"):
        adapter.describe(model, batch)


def test_wrappers_are_read_through() -> None:
    model = Last()
    batch = batch_of([3, 3])
    _, trajectory = captured(nn.DataParallel(model), batch, layers=["rnn"])
    torch.testing.assert_close(
        trajectory.states["rnn"][1], reference_states(model.rnn, batch.values[1])[0].detach()
    )


def test_distributed_models_are_read_through(tmp_path: Path) -> None:
    model = Last()
    batch = batch_of([3, 3])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        before = snapshot(wrapped)
        _, trajectory = captured(wrapped, batch)
        assert snapshot(wrapped) == before
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(
        trajectory.states["rnn"][1], reference_states(model.rnn, batch.values[1])[0].detach()
    )


def test_an_unused_submodule_on_meta_does_not_matter() -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.absent = nn.GRU(2, 4, device="meta")
            self.rnn = nn.GRU(2, 4, batch_first=True)

        def forward(self, values: Tensor) -> Tensor:
            states: Tensor = self.rnn(values)[0]
            return states[:, -1]

    model = Partial()
    batch = batch_of([3, 3])
    _, trajectory = captured(model, batch)
    assert model.absent.weight_ih_l0.is_meta
    torch.testing.assert_close(
        trajectory.states["rnn"][1], reference_states(model.rnn, batch.values[1])[0].detach()
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("rnn_class", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("packed", [False, True])
def test_dynamically_quantised_modules(rnn_class: type[nn.GRU | nn.LSTM], packed: bool) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = rnn_class(2, 8, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
            given: Any = values
            if packed:
                given = pack_padded_sequence(values, lengths, batch_first=True)
            states: Any = self.rnn(given)[0]
            return pad_packed_sequence(states, batch_first=True)[0] if packed else states

    torch.manual_seed(0)
    model = Reader()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.GRU, nn.LSTM})
    batch = batch_of([5, 3, 2] if packed else [5, 5, 5])
    counted: list[int] = []
    quantised.rnn.register_forward_hook(lambda *_: counted.append(1))
    adapter = TorchRecurrentAdapter()
    assert adapter.supports(quantised)
    spec = adapter.describe(quantised, batch)
    counted.clear()
    # What one sequence gives depends on its batch, as the whole batch is quantised by one scale.
    options = {**spec.options, "ragged_batches": True}
    trajectory = adapter.record(quantised, batch, replace(spec, options=options))
    assert len(counted) == 1
    assert [site.name for site in spec.sites] == ["rnn.layer0", "rnn.layer1"]
    own = quantised(batch.values, batch.lengths)
    assert torch.equal(trajectory.states["rnn.layer1"], own)
    assert all(state.is_contiguous() for state in trajectory.states.values())
    for row, length in enumerate(batch.lengths.tolist()):
        exact = reference_states(model.rnn, batch.values[row, :length])
        for index, layer in enumerate(exact):
            torch.testing.assert_close(
                trajectory.states[f"rnn.layer{index}"][row, :length],
                layer.detach(),
                rtol=0,
                atol=0.03,
            )
    if rnn_class is nn.LSTM:
        with pytest.raises(UnsupportedModel, match="'rnn' is dynamically quantised"):
            captured(quantised, batch, cell_state=True)


def test_inputs_without_time_are_refused() -> None:
    arrays = SequenceBatch(torch.zeros(3, 4, 2), torch.ones(3, dtype=torch.int64), has_time=False)
    with pytest.raises(InvalidInput, match=r"one array of shape \(4, 2\) per sample.*Add an axis"):
        TorchRecurrentAdapter().describe(Last(), arrays)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_recorded_states_are_contiguous(batch_first: bool, layers: int, packed: bool) -> None:
    rnn = built("LSTM", num_layers=layers, batch_first=batch_first, bidirectional=True)
    _, trajectory = captured(
        Classifier(rnn, packed=packed), batch_of([4, 4, 4], dtype=torch.float64), cell_state=True
    )
    assert len(trajectory.states) == 2 * layers
    assert all(state.is_contiguous() for state in trajectory.states.values())


def test_patterns_choose_recurrent_modules_before_others() -> None:
    class Encoding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleDict(
                {"embed": nn.Linear(2, 3), "rnn": nn.GRU(3, 4, batch_first=True)}
            )

        def forward(self, values: Tensor) -> Tensor:
            states: Tensor = self.encoder["rnn"](self.encoder["embed"](values))[0]
            return states[:, -1]

    batch = batch_of([3, 3])
    for patterns in (["encoder.*"], ["**"], ["encoder.r?n"]):
        spec, _ = captured(Encoding(), batch, layers=patterns)
        assert [site.name for site in spec.sites] == ["encoder.rnn"]
    with pytest.raises(UnknownName, match="matches no module"):
        captured(Encoding(), batch, layers=["*.r"])


def test_compiled_models_are_read_through_their_original() -> None:
    model = Last()
    batch = batch_of([3, 3])
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    _, trajectory = captured(compiled, batch)
    torch.testing.assert_close(
        trajectory.states["rnn"][1], reference_states(model.rnn, batch.values[1])[0].detach()
    )


def test_a_model_that_changed_since_it_was_described_is_refused() -> None:
    adapter = TorchRecurrentAdapter()
    batch = batch_of([3, 3])
    model = Last()
    spec = adapter.describe(model, batch)
    with pytest.raises(CaptureError, match="changed in between"):
        adapter.record(model.double(), batch, spec)
    del model.rnn
    with pytest.raises(UnsupportedModel):
        adapter.record(model, batch, spec)
