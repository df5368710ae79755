"""Cell states of LSTMs against cells stepped by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dynamo_hooks.torch_recurrent import TorchRecurrentAdapter
from dynamo_plugin.errors import CaptureError
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

Start = tuple[Tensor, Tensor]


class Network(nn.Module):
    """An LSTM in the middle of something, with or without an initial state of its own."""

    def __init__(self, rnn: nn.LSTM, *, packed: bool, start: Start | None = None) -> None:
        super().__init__()
        self.rnn = rnn
        self.packed = packed
        self.start = start

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        hx = None
        if self.start is not None:
            hx = tuple(part[:, None].repeat(1, len(values), 1) for part in self.start)
        first = self.rnn.batch_first
        if not first:
            values = values.transpose(0, 1)
        states: Tensor
        if self.packed:
            sequence = pack_padded_sequence(
                values, lengths, batch_first=first, enforce_sorted=False
            )
            states, _ = pad_packed_sequence(self.rnn(sequence, hx)[0], batch_first=first)
        else:
            states, _ = self.rnn(values, hx)
        return states.sum(-1) if first else states.sum(-1).T


def stepped(rnn: nn.LSTM, sequence: Tensor, start: Start | None) -> list[tuple[Tensor, Tensor]]:
    """Step one sequence (time, feature) by the equations of torch.nn.LSTM; h and c per layer."""
    layers = []
    directions = 2 if rnn.bidirectional else 1
    for layer in range(rnn.num_layers):
        found = []
        for direction in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            weights = {
                name: getattr(rnn, name + suffix).detach()
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
                if hasattr(rnn, name + suffix)
            }
            h = sequence.new_zeros(rnn.proj_size or rnn.hidden_size)
            c = sequence.new_zeros(rnn.hidden_size)
            if start is not None:
                h, c = (part[layer * directions + direction] for part in start)
            steps: dict[int, tuple[Tensor, Tensor]] = {}
            for time in range(len(sequence))[:: -1 if direction else 1]:
                gates = weights["weight_ih"] @ sequence[time] + weights["weight_hh"] @ h
                gates = gates + weights.get("bias_ih", 0) + weights.get("bias_hh", 0)
                i, f, g, o = gates.chunk(4)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                if "weight_hr" in weights:
                    h = weights["weight_hr"] @ h
                steps[time] = (h, c)
            found.append([steps[time] for time in range(len(sequence))])
        both = [
            torch.stack(
                [torch.cat([way[time][part] for way in found]) for time in range(len(sequence))]
            )
            for part in (0, 1)
        ]
        layers.append((both[0], both[1]))
        sequence = both[0]
    return layers


def batch_of(
    lengths: list[int], dtype: torch.dtype = torch.float64, seed: int = 0
) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(
        len(lengths), max(lengths), 2, generator=generator, dtype=torch.float64
    ).to(dtype)
    counted = torch.tensor(lengths)
    values[torch.arange(max(lengths)) >= counted[:, None]] = 0
    return SequenceBatch(values, counted)


def captured(
    model: nn.Module, batch: SequenceBatch, **options: Any
) -> tuple[TrajectorySpec, Trajectory]:
    adapter = TorchRecurrentAdapter(cell_state=True, **options)
    spec = adapter.describe(model, batch)
    return spec, adapter.record(model, batch, spec)


@settings(deadline=None, max_examples=60)
@given(
    options=st.fixed_dictionaries(
        {
            "num_layers": st.integers(1, 3),
            "bidirectional": st.booleans(),
            "batch_first": st.booleans(),
            "bias": st.booleans(),
            "proj_size": st.sampled_from([0, 3]),
        }
    ),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    packed=st.booleans(),
    started=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_cell_states_match_cells_stepped_by_hand(
    options: dict[str, Any], lengths: list[int], packed: bool, started: bool, seed: int
) -> None:
    if not packed:
        lengths = [lengths[0]] * len(lengths)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rnn = nn.LSTM(2, 4, dtype=torch.float64, **options)
        start = None
        if started:
            rows = rnn.num_layers * (2 if rnn.bidirectional else 1)
            widths = (rnn.proj_size or 4, 4)
            start = (
                torch.randn(rows, widths[0], dtype=torch.float64),
                torch.randn(rows, widths[1], dtype=torch.float64),
            )
    batch = batch_of(lengths, seed=seed)
    spec, trajectory = captured(Network(rnn, packed=packed, start=start), batch)
    names = ["rnn"] if rnn.num_layers == 1 else [f"rnn.layer{k}" for k in range(rnn.num_layers)]
    assert [site.name for site in spec.sites] == [
        label for name in names for label in (name, f"{name}.cell")
    ]
    assert [tuple(state.shape[2:]) for state in trajectory.states.values()] == [
        site.shape for site in spec.sites
    ]
    assert all(state.is_contiguous() for state in trajectory.states.values())
    for row, length in enumerate(lengths):
        expected = stepped(rnn, batch.values[row, :length], start)
        for name, (h, c) in zip(names, expected, strict=True):
            for label, reference in ((name, h), (f"{name}.cell", c)):
                torch.testing.assert_close(
                    trajectory.states[label][row, :length], reference, rtol=1e-9, atol=1e-12
                )


def test_only_lstms_have_cell_states() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.GRU(2, 3, batch_first=True)
            self.second = nn.LSTM(3, 4, batch_first=True)

        def forward(self, values: Tensor) -> Tensor:
            states: Tensor = self.second(self.first(values)[0])[0]
            return states[:, -1]

    batch = batch_of([4, 4], torch.float32)
    assert list(captured(Two(), batch)[1].states) == ["first", "second", "second.cell"]
    adapter = TorchRecurrentAdapter()
    assert [site.name for site in adapter.describe(Two(), batch).sites] == ["first", "second"]


def test_spec_says_whether_cell_states_are_recorded() -> None:
    model = nn.LSTM(2, 3, batch_first=True, dtype=torch.float64)
    batch = batch_of([4, 4])
    spec = TorchRecurrentAdapter(cell_state=True).describe(model, batch)
    assert list(TorchRecurrentAdapter().record(model, batch, spec).states) == ["lstm", "lstm.cell"]


def test_later_work_in_place_does_not_reach_them() -> None:
    class Reusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(2, 3, num_layers=2, batch_first=True, dtype=torch.float64)

        def forward(self, values: Tensor) -> Tensor:
            values = values.clone()
            start = (values.new_ones(2, len(values), 3), values.new_ones(2, len(values), 3))
            states, (_, c) = self.rnn(values, start)
            result: Tensor = states[:, -1].clone()
            for tensor in (values, states, c, *start):
                tensor.zero_()
            return result

    model = Reusing()
    batch = batch_of([4, 4])
    _, trajectory = captured(model, batch)
    ones = torch.ones(2, 3, dtype=torch.float64)
    for layer, (h, c) in enumerate(stepped(model.rnn, batch.values[1], (ones, ones))):
        torch.testing.assert_close(trajectory.states[f"rnn.layer{layer}"][1], h)
        torch.testing.assert_close(trajectory.states[f"rnn.layer{layer}.cell"][1], c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_low_precision(dtype: torch.dtype, proj_size: int) -> None:
    torch.manual_seed(0)
    model = nn.LSTM(2, 16, num_layers=2, bidirectional=True, proj_size=proj_size, dtype=dtype)
    batch = batch_of([30, 30], dtype=torch.float64)
    spec, trajectory = captured(model, batch)
    name = str(dtype).removeprefix("torch.")
    stored = "float32" if dtype == torch.bfloat16 else name
    assert {(site.dtype, site.source_dtype) for site in spec.sites} == {
        (stored, "bfloat16" if dtype == torch.bfloat16 else None)
    }
    with torch.no_grad():
        output, (_, last) = model.eval()(batch.values.to(dtype).transpose(0, 1).contiguous())
    assert torch.equal(trajectory.states["lstm.layer1"].to(dtype), output.transpose(0, 1))
    cells = trajectory.states["lstm.layer1.cell"].to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(cells[:, -1, :16], last[2], rtol=0, atol=tolerance)
    torch.testing.assert_close(cells[:, 0, 16:], last[3], rtol=0, atol=tolerance)
    exact = stepped(model.double(), batch.values[1], None)
    for layer, (_, c) in enumerate(exact):
        torch.testing.assert_close(
            trajectory.states[f"lstm.layer{layer}.cell"][1].double(), c, rtol=0, atol=tolerance
        )


def test_an_lstm_that_computes_something_else_is_refused() -> None:
    class Doubled(nn.LSTM):
        def forward(self, *arguments: Any) -> Any:
            states, last = super().forward(*arguments)
            return states * 2, last

    class Reset(nn.LSTM):
        def forward(self, *arguments: Any) -> Any:
            states, (h, c) = super().forward(*arguments)
            return states, (h, c * 0)

    batch = batch_of([4, 4])
    for kind in (Doubled, Reset):
        with pytest.raises(CaptureError, match=r"cell states computed .* 'rnn' .*cell_state"):
            captured(Network(kind(2, 3, dtype=torch.float64), packed=False), batch)
    hooked = Network(nn.LSTM(2, 3, dtype=torch.float64), packed=False)
    hooked.rnn.register_forward_hook(lambda module, given, result: (-result[0], result[1]))
    with pytest.raises(CaptureError, match="cell states computed"):
        captured(hooked, batch)
