"""Cells that a model's own loop calls once per step, against the same loop written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynamo_hooks.torch_recurrent import TorchRecurrentAdapter
from dynamo_plugin.errors import CaptureError, InvalidInput, UnknownName, UnsupportedModel
from dynamo_plugin.types import SequenceBatch, Trajectory, TrajectorySpec

KINDS: dict[str, Callable[..., nn.RNNCellBase]] = {
    "rnn": nn.RNNCell,
    "gru": nn.GRUCell,
    "lstm": nn.LSTMCell,
}


def batch_of(lengths: list[int], features: int = 2, *, seed: int = 0) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(
        len(lengths), max(lengths), features, generator=generator, dtype=torch.float64
    )
    counted = torch.tensor(lengths)
    values[torch.arange(max(lengths)) >= counted[:, None]] = 0
    return SequenceBatch(values, counted)


def captured(
    model: nn.Module, batch: SequenceBatch, **options: Any
) -> tuple[TrajectorySpec, Trajectory]:
    adapter = TorchRecurrentAdapter(**options)
    assert adapter.supports(model)
    spec = adapter.describe(model, batch)
    return spec, adapter.record(model, batch, spec)


def stepped(
    cell: nn.RNNCellBase, inputs: Tensor, *, backwards: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Step one sequence (time, feature); states (time, units), for an LSTM also cell states."""
    h = inputs.new_zeros(1, cell.hidden_size)
    c = torch.zeros_like(h)
    states = {}
    with torch.no_grad():
        for time in range(len(inputs))[:: -1 if backwards else 1]:
            if isinstance(cell, nn.LSTMCell):
                h, c = cell(inputs[time][None], (h, c))
            else:
                h = cell(inputs[time][None], h)
            states[time] = (h[0], c[0])
    pairs = [states[time] for time in range(len(inputs))]
    hidden = torch.stack([h for h, _ in pairs])
    return hidden, torch.stack([c for _, c in pairs]) if isinstance(cell, nn.LSTMCell) else None


class Stepper(nn.Module):
    """Layers of cells, stepped forwards and, in bidirectional layers, backwards too."""

    def __init__(
        self, kind: str, layers: int, *, bidirectional: bool, masked: bool, time_first: bool
    ) -> None:
        super().__init__()
        width = 6 if bidirectional else 3
        self.ahead, self.back = (
            nn.ModuleList(
                KINDS[kind](width if layer else 2, 3, dtype=torch.float64)
                for layer in range(layers if wanted else 0)
            )
            for wanted in (True, bidirectional)
        )
        self.masked = masked
        self.time_first = time_first

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        if not self.time_first:
            values = values.transpose(0, 1)
        for layer, ahead in enumerate(self.ahead):
            found = [self.swept(ahead, values, lengths, backwards=False)]
            if self.back:
                found.append(self.swept(self.back[layer], values, lengths, backwards=True))
            values = torch.cat(found, dim=-1)
        return values if self.time_first else values.transpose(0, 1)

    def swept(self, cell: nn.Module, values: Tensor, lengths: Tensor, *, backwards: bool) -> Tensor:
        h = c = values.new_zeros(values.shape[1], 3)
        result: dict[int, Tensor] = {}
        for time in range(len(values))[:: -1 if backwards else 1]:
            if isinstance(cell, nn.LSTMCell):
                after = cell(values[time], (h, c))
            else:
                after = (cell(values[time], h), c)
            if self.masked:
                real = (time < lengths)[:, None]
                after = tuple(map(lambda new, old: torch.where(real, new, old), after, (h, c)))
            h, c = after
            result[time] = h
        return torch.stack([result[time] for time in range(len(values))])


@settings(deadline=None, max_examples=50)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    masked=st.booleans(),
    time_first=st.booleans(),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    seed=st.integers(0, 2**16),
)
def test_states_match_cells_stepped_by_hand(
    kind: str,
    layers: int,
    bidirectional: bool,
    masked: bool,
    time_first: bool,
    lengths: list[int],
    seed: int,
) -> None:
    lengths = sorted(lengths, reverse=True)
    if not masked:  # a model that steps through the padding is only shown equal lengths
        lengths = [lengths[0]] * len(lengths)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Stepper(
            kind, layers, bidirectional=bidirectional, masked=masked, time_first=time_first
        )
    batch = batch_of(lengths, seed=seed)
    spec, trajectory = captured(model, batch, cell_state=True)
    if len(set(lengths)) > 1:
        assert spec.options["ragged_batches"] is True
    ways = ("ahead", "back") if bidirectional else ("ahead",)
    names = [f"{way}.{layer}" for layer in range(layers) for way in ways]
    suffixes = ("", ".cell") if kind == "lstm" else ("",)
    assert list(trajectory.states) == [name + suffix for name in names for suffix in suffixes]
    if lengths[0] > 1:
        assert spec.options["reversed_cells"] == [n for n in sorted(names) if n.startswith("back")]
    for row, length in enumerate(lengths):
        values = batch.values[row, :length]
        for layer in range(layers):
            found = []
            for way in ways:
                cell = model.get_submodule(f"{way}.{layer}")
                assert isinstance(cell, nn.RNNCellBase)
                h, c = stepped(cell, values, backwards=way == "back")
                found.append(h)
                state = trajectory.states[f"{way}.{layer}"]
                assert state.is_contiguous()
                torch.testing.assert_close(state[row, :length], h, rtol=1e-9, atol=1e-12)
                if c is not None:
                    state = trajectory.states[f"{way}.{layer}.cell"]
                    torch.testing.assert_close(state[row, :length], c, rtol=1e-9, atol=1e-12)
            values = torch.cat(found, dim=-1)
        torch.testing.assert_close(
            next(iter(trajectory.outputs.values()))[row, :length], values, rtol=1e-9, atol=1e-12
        )


class Loop(nn.Module):
    """One cell, any module, stepped forwards; the base of what follows."""

    def __init__(self, cell: nn.Module | None = None) -> None:
        super().__init__()
        self.cell = cell or nn.GRUCell(2, 3, dtype=torch.float64)
        self.readout = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, values: Tensor) -> Tensor:
        h = values.new_zeros(len(values), 3)
        for step in self.steps(values):
            h = self.cell(step, h)
        logits: Tensor = self.readout(h)
        return logits

    def steps(self, values: Tensor) -> Any:
        return values.unbind(1)


class Leaky(nn.Module):
    """A user's cell."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.5 * h + torch.tanh(self.inner(torch.cat([x, h], dim=-1)))


class Parts(NamedTuple):
    hidden: Tensor
    second: Tensor


@pytest.mark.parametrize("backwards", [False, True])
def test_users_cells_are_named_by_layers(backwards: bool) -> None:
    class Ordered(Loop):
        def steps(self, values: Tensor) -> Any:
            return values.unbind(1)[:: -1 if backwards else 1]

    model = Ordered(Leaky())
    batch = batch_of([4, 4, 4])
    spec, trajectory = captured(model, batch, layers=["cell"])
    assert spec.options["reversed_cells"] == (["cell"] if backwards else [])
    h = torch.zeros(3, 3, dtype=torch.float64)
    for time in range(4)[:: -1 if backwards else 1]:
        h = model.cell(batch.values[:, time], h)
        torch.testing.assert_close(trajectory.states["cell"][:, time], h.detach())
    torch.testing.assert_close(trajectory.outputs["output2"], model.readout(h).detach())
    inner = captured(model, batch, layers=["cell.*"])[1].states
    assert list(inner) == ["cell.inner"]


@pytest.mark.parametrize("kind", [tuple, list, Parts])
def test_second_of_a_pair_is_the_cell_state_if_it_has_the_same_shape(kind: Any) -> None:
    class Pairs(Leaky):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width = width

        def forward(self, x: Tensor, h: Any) -> Any:
            state = super().forward(x, h if isinstance(h, Tensor) else h[0])
            pair = (state, -state[:, : self.width])
            return Parts(*pair) if kind is Parts else kind(pair)

    class Unpacking(Loop):
        def forward(self, values: Tensor) -> Tensor:
            h: Any = values.new_zeros(len(values), 3)
            for step in values.unbind(1):
                h = self.cell(step, h)
            return self.readout(h[0])  # type: ignore[no-any-return]

    batch = batch_of([4, 4, 4])
    _, trajectory = captured(Unpacking(Pairs(3)), batch, layers=["cell"], cell_state=True)
    torch.testing.assert_close(trajectory.states["cell.cell"], -trajectory.states["cell"])
    for options in ({"cell_state": True}, {}):
        narrow = Unpacking(Pairs(2))
        assert list(captured(narrow, batch, layers=["cell"], **options)[1].states) == ["cell"]


def test_states_of_any_shape() -> None:
    class Map(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return 0.5 * h + x[:, :, None] * torch.ones(2, 3, dtype=x.dtype)

    class Maps(Loop):
        def forward(self, values: Tensor) -> Tensor:
            h = values.new_zeros(len(values), 2, 3)
            for step in values.unbind(1):
                h = self.cell(step, h)
            return h[:, 0]

    batch = batch_of([4, 4, 4])
    spec, trajectory = captured(Maps(Map()), batch, layers=["cell"])
    assert spec.sites[0].shape == (2, 3)
    expected = batch.values[:, 0]
    for time in range(1, 4):
        expected = 0.5 * expected + batch.values[:, time]
    torch.testing.assert_close(
        trajectory.states["cell"][:, 3], expected[..., None].expand(-1, -1, 3)
    )


def test_ids_are_perturbed_by_ids_that_occur() -> None:
    class Reader(Loop):
        """Fails on any id but those that it was given."""

        def forward(self, values: Tensor) -> Tensor:
            assert set(values.flatten().tolist()) <= {3, 7}
            one_hot = torch.nn.functional.one_hot((values == 7).long(), 2).double()
            return super().forward(one_hot.flip(1))

    batch = SequenceBatch(torch.tensor([[3, 7, 7], [7, 3, 7]]), torch.tensor([3, 3]))
    assert captured(Reader(), batch)[0].options["reversed_cells"] == ["cell"]
    same = SequenceBatch(torch.full((2, 3), 7), torch.tensor([3, 3]))
    with pytest.raises(CaptureError, match=r"cell 'cell' .* does not show .*reversed_cells="):
        captured(Reader(), same)
    for choice in ([], ["cell"]):
        spec, _ = captured(Reader(), same, reversed_cells=choice)
        assert spec.options["reversed_cells"] == choice


def test_constant_inputs_show_the_direction() -> None:
    class Backwards(Loop):
        def steps(self, values: Tensor) -> Any:
            centred = values - values.mean(-1, keepdim=True)
            return centred.unbind(1)[::-1]

    batch = SequenceBatch(torch.ones(3, 4, 2, dtype=torch.float64), torch.full((3,), 4))
    assert captured(Backwards(), batch)[0].options["reversed_cells"] == ["cell"]


def test_direction_above_a_bidirectional_module() -> None:
    class Above(nn.Module):
        def __init__(self, *, packed: bool, batch_first: bool, backwards: bool) -> None:
            super().__init__()
            self.below = nn.GRU(
                2, 3, bidirectional=True, batch_first=batch_first, dtype=torch.float64
            )
            self.cell = nn.GRUCell(6, 3, dtype=torch.float64)
            self.packed = packed
            self.order = -1 if backwards else 1

        def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
            first = self.below.batch_first
            given: Any = values if first else values.transpose(0, 1)
            if self.packed:
                given = nn.utils.rnn.pack_padded_sequence(given, lengths, batch_first=first)
            states = self.below(given)[0]
            if self.packed:
                states = nn.utils.rnn.pad_packed_sequence(states, batch_first=first)[0]
            h = values.new_zeros(len(values), 3)
            for step in states.unbind(1 if first else 0)[:: self.order]:
                h = self.cell(step, h)
            return h

    batch = batch_of([4, 4, 4])
    for packed in (False, True):
        for batch_first in (False, True):
            for backwards in (False, True):
                model = Above(packed=packed, batch_first=batch_first, backwards=backwards)
                spec, trajectory = captured(model, batch)
                assert spec.options["reversed_cells"] == (["cell"] if backwards else [])
                below = trajectory.states["below"][1]
                expected, _ = stepped(model.cell, below, backwards=backwards)
                torch.testing.assert_close(trajectory.states["cell"][1], expected)
    with pytest.raises(CaptureError, match=r"'cell' .* does not show"):
        captured(model, batch, layers=["cell"])


@pytest.mark.parametrize("shift", [1, 2])
@pytest.mark.parametrize("steps", [2, 3, 4])
def test_cells_that_see_earlier_steps_are_never_taken_for_reversed_ones(
    shift: int, steps: int
) -> None:
    class Shifted(Loop):
        def steps(self, values: Tensor) -> Any:
            return nn.functional.pad(values, (0, 0, shift, 0))[:, : values.shape[1]].unbind(1)

    batch = batch_of([steps, steps])
    try:
        spec, _ = captured(Shifted(), batch)
    except CaptureError as error:
        assert steps <= shift + 1
        assert "does not show" in str(error)  # noqa: PT017
    else:
        assert spec.options["reversed_cells"] == []


def test_a_decoder_that_only_sees_a_summary_has_no_direction() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.GRU(2, 3, batch_first=True, dtype=torch.float64)
            self.decoder = nn.GRUCell(2, 3, dtype=torch.float64)

        def forward(self, values: Tensor) -> Tensor:
            h = self.encoder(values)[1][0]
            steps = []
            for _ in range(values.shape[1]):
                h = self.decoder(values.new_zeros(len(values), 2), h)
                steps.append(h)
            return torch.stack(steps, dim=1)

    batch = batch_of([4, 4])
    with pytest.raises(CaptureError, match=r"'decoder' .* does not show"):
        captured(Autoencoder(), batch)
    _, trajectory = captured(Autoencoder(), batch, reversed_cells=[])
    torch.testing.assert_close(
        trajectory.states["decoder"], next(iter(trajectory.outputs.values()))
    )
    with pytest.raises(UnknownName, match="Did you mean 'decoder'"):
        captured(Autoencoder(), batch, reversed_cells=["decoded"])
    with pytest.raises(InvalidInput, match="reversed_cells must be a sequence"):
        TorchRecurrentAdapter(reversed_cells="decoder")


class Twice(Loop):
    def steps(self, values: Tensor) -> Any:
        return [step for step in values.unbind(1) for _ in range(2)]


class Four(Loop):
    def steps(self, values: Tensor) -> Any:
        return [values[:, time] for time in range(4)]


class Around(Loop):
    def steps(self, values: Tensor) -> Any:
        return [values[:, time % values.shape[1]] for time in range(4)]


class Halting(Loop):
    def steps(self, values: Tensor) -> Any:
        return values.unbind(1)[: int((values[0, :, 0].abs() < 100).sum())]


class Single(Loop):
    def forward(self, values: Tensor) -> Tensor:
        h = values.new_zeros(len(values), 3)
        return torch.stack([self.alone(row, h[index]) for index, row in enumerate(values)])

    def alone(self, row: Tensor, h: Tensor) -> Tensor:
        for step in row:
            h = self.cell(step, h)
        return h


class Every(Loop):
    def steps(self, values: Tensor) -> Any:
        return values.unbind(1)[::2]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Twice, r"cell 'cell' \(GRUCell\) was called 8 times on inputs of 4 steps.*share a cell"),
        (Four, r"'cell' .*called 4 times on inputs of 5 steps.*whatever the number of steps"),
        (Around, r"'cell' .*called 4 times on inputs of 3 steps.*whatever the number of steps"),
        (Single, r"'cell' .*was called 8 times on inputs of 4 steps.*one sample at a time"),
        (Every, r"'cell' .*was called 2 times on inputs of 4 steps.*stops early"),
    ],
)
def test_cells_that_are_not_called_once_per_step_are_named(kind: type[Loop], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        captured(kind(), batch_of([4, 4]))


def test_cells_that_run_on_one_number_of_steps_only_are_refused() -> None:
    """Four calls on four steps: nothing shows that they are the steps."""

    class Fixed(Four):
        def forward(self, values: Tensor) -> Tensor:
            assert values.shape[1] == 4
            return super().forward(values)

    with pytest.raises(CaptureError, match=r"On 4 steps 'cell' was; on another number: Fixed"):
        captured(Fixed(), batch_of([4, 4]))


def test_a_changing_number_of_calls_is_named_when_it_happens() -> None:
    adapter = TorchRecurrentAdapter()
    model = Halting()
    batch = batch_of([4, 4])
    spec = adapter.describe(model, batch)
    batch.values[0, 2, 0] = 1000
    with pytest.raises(CaptureError, match=r"'cell' .*was called 3 times on inputs of 4 steps"):
        adapter.record(model, batch, spec)


def test_a_cell_that_does_not_run_is_named() -> None:
    class Idle(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.LSTMCell(2, 3)

    batch = batch_of([4, 4])
    assert list(captured(Idle(), batch)[1].states) == ["cell"]
    with pytest.raises(CaptureError, match=r"'spare' did not run .*those that did: 'cell'"):
        captured(Idle(), batch, layers=["spare"])

    class Silent(Loop):
        def forward(self, values: Tensor) -> Tensor:
            if bool((values.abs() > 100).any()):
                return values[:, -1]
            return super().forward(values)

    adapter = TorchRecurrentAdapter()
    spec = adapter.describe(Silent(), batch)
    batch.values[0, 2, 0] = 1000
    with pytest.raises(CaptureError, match=r"'cell' did not run .*same path"):
        adapter.record(Silent(), batch, spec)


def test_modules_that_are_not_stepped_are_left_to_another_adapter() -> None:
    batch = batch_of([4, 4])
    network = nn.Sequential(nn.Linear(2, 3, dtype=torch.float64), nn.Tanh())
    assert not TorchRecurrentAdapter().supports(network)
    assert TorchRecurrentAdapter(layers=["0"]).supports(network)
    with pytest.raises(
        CaptureError, match=r"'0' \(Linear\) was called 1 times .*adapter=\"torch_layers\""
    ):
        captured(network, batch, layers=["0"])
    with pytest.raises(CaptureError, match=r"'readout' .*called 1 times .*torch_layers"):
        captured(Loop(), batch, layers=["readout"])
    with pytest.raises(UnknownName, match="Did you mean 'cell'"):
        captured(Loop(), batch, layers=["cel"])
    with pytest.raises(UnsupportedModel, match=r"no cell of torch\.nn.*layers="):
        TorchRecurrentAdapter().describe(network, batch)


def test_sequences_that_leave_the_batch_are_recorded_by_length() -> None:
    class Shrinking(Loop):
        """Steps only the sequences that have not ended."""

        def forward(self, values: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
            h = values.new_zeros(len(values), 3)
            for time in range(int(lengths.max())):
                going = lengths > time
                h = h.masked_scatter(going[:, None], self.cell(values[going, time], h[going]))
            return h

    model = Shrinking()
    batch = batch_of([4, 3])
    adapter = TorchRecurrentAdapter()
    spec = adapter.describe(model, batch)
    assert spec.options["ragged_batches"] is False
    with pytest.raises(CaptureError, match="record sequences of equal length together"):
        adapter.record(model, batch, spec)
    even = batch_of([4, 4])
    expected, _ = stepped(_gru(model.cell), even.values[1])
    torch.testing.assert_close(adapter.record(model, even, spec).states["cell"][1], expected)

    class Filtering(Loop):
        def steps(self, values: Tensor) -> Any:
            return values.unbind(1)

        def forward(self, values: Tensor) -> Tensor:
            h = values.new_zeros(len(values), 3)
            for time, step in enumerate(self.steps(values)):
                h = self.cell(step[: len(step) - time % 2], h[: len(step) - time % 2])
                h = nn.functional.pad(h, (0, 0, 0, time % 2))
            return h

    with pytest.raises(CaptureError, match=r"states of 1 samples in call 1, of a batch of 2.*drop"):
        captured(Filtering(), even)


def test_unreadable_states_are_named() -> None:
    class Odd(Leaky):
        def __init__(self, result: Callable[[Tensor, int], Any]) -> None:
            super().__init__()
            self.result = result
            self.calls = 0

        def forward(self, x: Tensor, h: Tensor) -> Any:
            self.calls += 1
            return self.result(x, self.calls)

    class Ignoring(Loop):
        def forward(self, values: Tensor) -> Tensor:
            for step in values.unbind(1):
                self.cell(step, step)
            return values[:, -1]

    batch = batch_of([3, 3])
    cases: list[tuple[Callable[[Tensor, int], Any], str]] = [
        (lambda x, call: {"h": x}, "returned dict in call 0; expected a tensor"),
        (lambda x, call: x[:, 0], r"shape \((\d),\) in call 0; expected \(\1, units\)"),
        (lambda x, call: x[:, : 1 + call % 2], r"\(\d, 1\) on cpu in call 1, other than before"),
        (lambda x, call: x.to(torch.float32 if call % 2 else x.dtype), "float64 of .* in call 1"),
    ]
    for result, message in cases:
        with pytest.raises(CaptureError, match=rf"cell 'cell' \(Odd\) .*{message}"):
            captured(Ignoring(Odd(result)), batch, layers=["cell"])


def test_cell_states_must_be_there_on_all_inputs() -> None:
    class Sometimes(Leaky):
        def forward(self, x: Tensor, h: Tensor) -> Any:
            state = super().forward(x, h)
            return state, state if len(x) == 2 else state[:, :1]

    class Looping(Loop):
        def forward(self, values: Tensor) -> Tensor:
            h = values.new_zeros(len(values), 3)
            for step in values.unbind(1):
                h = self.cell(step, h)[0]
            return h

    with pytest.raises(CaptureError, match=r"expected the sites cell, cell\.cell, .* got cell\."):
        captured(Looping(Sometimes()), batch_of([4, 4]), layers=["cell"], cell_state=True)


def test_two_sites_of_one_name_are_refused() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(2, 3, dtype=torch.float64)

        def forward(self, x: Tensor, state: Any) -> Any:
            return self.cell(x, state)

    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outer = Holder()

        def forward(self, values: Tensor) -> Any:
            state = None
            for step in values.unbind(1):
                state = self.outer(step, state)
            return state

    with pytest.raises(CaptureError, match=r"two sites would be called 'outer\.cell'"):
        captured(Holding(), batch_of([3, 3]), layers=["outer", "outer.cell"], cell_state=True)
    states = captured(Holding(), batch_of([3, 3]), cell_state=True)[1].states
    assert list(states) == ["outer.cell", "outer.cell.cell"]


def test_a_bare_cell_is_a_model_where_forward_steps_it() -> None:
    def forward(model: nn.Module, values: Tensor, lengths: Tensor) -> Any:
        h = None
        for step in values.unbind(1):
            h = model(step, h)
        return h

    cell = nn.GRUCell(2, 3, dtype=torch.float64)
    batch = batch_of([4, 4])
    states = captured(cell, batch, forward=forward)[1].states
    torch.testing.assert_close(states["grucell"][1], stepped(cell, batch.values[1])[0])


def test_later_work_in_place_does_not_reach_states() -> None:
    class Reusing(Loop):
        def forward(self, values: Tensor) -> Tensor:
            h = values.new_zeros(len(values), 3)
            for step in values.unbind(1):
                h = self.cell(step, h)
                h.mul_(0)
            return h + values[:, -1, :1]

    model = Reusing()
    batch = batch_of([3, 3])
    states = captured(model, batch)[1].states["cell"]
    for time in range(3):
        expected, _ = stepped(_gru(model.cell), batch.values[1, time : time + 1])
        torch.testing.assert_close(states[1, time], expected[0])


def snapshot(model: nn.Module) -> list[Any]:
    return [
        [module.training for module in model.modules()],
        [list(module._forward_hooks.values()) for module in model.modules()],
        [list(module._forward_pre_hooks.values()) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        [(parameter.data_ptr(), parameter.tolist()) for parameter in model.parameters()],
        torch.random.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    ]


def prepared() -> nn.Module:
    model = Stepper("lstm", 2, bidirectional=True, masked=False, time_first=False)
    model.ahead[0].register_forward_hook(lambda *_: None)
    model.back.training = False
    parameter = next(model.parameters())
    parameter.grad = torch.ones_like(parameter)
    model.back[0].requires_grad_(False)
    return model


def test_model_is_left_as_it_was_found() -> None:
    model = prepared()
    before = snapshot(model)
    captured(model, batch_of([4, 4, 4]), cell_state=True)
    assert snapshot(model) == before


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("calls", [0, 10, 60, 130])
def test_model_is_left_as_it_was_found_after_exceptions(error: BaseException, calls: int) -> None:
    """Broken off in the first run, the second, while directions are found out, and later."""
    model = prepared()
    left = calls

    def fuse(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise error

    handle = model.get_submodule("back.1").register_forward_hook(fuse)
    before = snapshot(model)
    expected = CaptureError if isinstance(error, Exception) else KeyboardInterrupt

    def read_again_and_again() -> None:
        while True:
            captured(model, batch_of([4, 4, 4]), cell_state=True)

    with pytest.raises(expected):
        read_again_and_again()
    assert snapshot(model) == before
    handle.remove()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_cells() -> None:
    model = Loop(nn.LSTMCell(2, 3)).float()

    def forward(model: Any, values: Tensor, lengths: Tensor) -> Any:
        state = None
        for step in values.unbind(1):
            state = model.cell(step, state)
        assert state is not None
        return model.readout(state[0])

    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.LSTMCell})
    values = batch_of([4, 4]).values.float()
    _, trajectory = captured(
        quantised, SequenceBatch(values, torch.tensor([4, 4])), forward=forward, cell_state=True
    )
    state = None
    for time, step in enumerate(values.unbind(1)):
        state = quantised.cell(step, state)
        assert torch.equal(trajectory.states["cell"][:, time], state[0])
        assert torch.equal(trajectory.states["cell.cell"][:, time], state[1])


def _gru(cell: nn.Module) -> nn.GRUCell:
    assert isinstance(cell, nn.GRUCell)
    return cell
