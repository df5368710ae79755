from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamo_plugin.errors import DivergedFit, InvalidInput, UnknownName
from dynamo_plugin.tasks.network import Architecture, RecurrentNetwork
from dynamo_plugin.tasks.stacked import StackedRecurrent
from dynamo_plugin.tasks.train import train_stacked

ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
SAMPLES, TIME, FEATURES, OUTPUTS = 40, 6, 3, 2


def make(
    architecture: Architecture, size: int, *, every_step: bool = True, seed: int = 0
) -> RecurrentNetwork:
    return RecurrentNetwork(
        architecture,
        input_size=FEATURES,
        hidden_size=size,
        output_size=OUTPUTS,
        every_step=every_step,
        seed=seed,
    )


def make_data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SAMPLES, TIME, FEATURES, generator=generator)
    return inputs, inputs.cumsum(1)[..., :OUTPUTS]


def assert_same_weights(one: RecurrentNetwork, other: RecurrentNetwork, atol: float) -> None:
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), parameter, atol=atol, rtol=1e-4)


def train_by_hand(
    network: RecurrentNetwork,
    inputs: Tensor,
    targets: Tensor,
    *,
    subset: Tensor,
    lengths: Tensor,
    seed: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    clip_norm: float,
) -> list[float]:
    """One network, as a tutorial would train it."""
    draws = torch.randint(
        len(subset), (steps, batch_size), generator=torch.Generator().manual_seed(seed)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []
    for draw in draws:
        chosen = subset[draw]
        outputs = network(inputs[chosen], lengths[chosen])
        losses = []
        for output, sample in zip(outputs, chosen.tolist(), strict=True):
            length = int(lengths[sample])
            if network.every_step:
                losses.append(F.mse_loss(output[:length], targets[sample, :length]))
            else:
                losses.append(F.cross_entropy(output[None], targets[sample : sample + 1]))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
        optimizer.step()
        schedule.step()
        history.append(loss.item())
    return history


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("every_step", [False, True])
def test_a_stack_trains_as_networks_do_one_by_one(
    architecture: Architecture, every_step: bool
) -> None:
    inputs, targets = make_data()
    if not every_step:
        targets = (targets[:, -1, 0] > 0).long()
    lengths = torch.arange(SAMPLES) % TIME + 1
    subsets = [torch.arange(SAMPLES), torch.arange(0, SAMPLES, 3), torch.arange(7)]
    networks = [make(architecture, 4 + 3 * i, every_step=every_step, seed=i) for i in range(3)]
    stack = StackedRecurrent(networks)
    options: dict[str, Any] = {
        "steps": 6,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "clip_norm": 0.3,  # small enough to bind
    }
    history = train_stacked(
        stack,
        inputs,
        targets,
        loss="mse" if every_step else "cross_entropy",
        seeds=(10, 11, 12),
        subsets=subsets,
        lengths=lengths,
        **options,
    )
    assert history.shape == (6, 3)
    for index, (network, trained) in enumerate(zip(networks, stack.unstack(), strict=True)):
        expected = train_by_hand(
            network,
            inputs,
            targets,
            subset=subsets[index],
            lengths=lengths,
            seed=10 + index,
            **options,
        )
        torch.testing.assert_close(history[:, index], torch.tensor(expected), atol=1e-5, rtol=1e-4)
        assert_same_weights(network, trained, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_trains_alone_as_in_company(architecture: Architecture) -> None:
    inputs, targets = make_data()
    networks = [make(architecture, size, seed=size) for size in (4, 12, 7)]
    together = StackedRecurrent(networks)
    alone = StackedRecurrent(networks[:1])
    train_stacked(together, inputs, targets, loss="mse", seeds=(3, 4, 5), steps=15)
    train_stacked(alone, inputs, targets, loss="mse", seeds=(3,), steps=15)
    assert_same_weights(alone.unstack()[0], together.unstack()[0], atol=1e-4)


def test_training_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    inputs, targets = make_data()
    before = torch.get_rng_state()
    histories = [
        train_stacked(
            StackedRecurrent([make("gru", 5)]), inputs, targets, loss="mse", seeds=(seed,), steps=4
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(histories[0], histories[1])
    assert not torch.equal(histories[0], histories[2])
    assert torch.equal(before, torch.get_rng_state())


def test_progress_goes_to_standard_error_only_when_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs, targets = make_data()
    for progress in (False, True):
        stack = StackedRecurrent([make("rnn", 2)])
        train_stacked(
            stack,
            inputs,
            targets,
            loss="mse",
            seeds=(0,),
            steps=2,
            progress=progress,
            description="my stack",
        )
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("my stack" in captured.err) == progress


def test_divergence_names_the_network() -> None:
    inputs, targets = make_data()
    inputs[0, 0, 0] = float("nan")
    stack = StackedRecurrent([make("gru", 3), make("gru", 4)])
    with pytest.raises(DivergedFit, match=r"networks \[1\] are NaN or infinite at step 0"):
        train_stacked(
            stack,
            inputs,
            targets,
            loss="mse",
            seeds=(0, 1),
            subsets=[torch.arange(1, SAMPLES), torch.tensor([0])],
            steps=3,
        )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"seeds": (0,)}, r"seeds per network \(2\), got 1"),
        ({"subsets": [torch.arange(2)]}, r"subsets per network \(2\), got 1"),
        ({"subsets": [torch.arange(2), torch.arange(0)]}, "Network 1 has no sample"),
        ({"subsets": [torch.arange(2), torch.tensor([-1])]}, "from 0 to 39; network 1 has -1"),
        ({"lengths": torch.ones(3).long()}, r"lengths per sample \(40\), got 3"),
        ({"steps": 0}, "positive steps, got 0"),
        ({"batch_size": 0}, "positive batch_size"),
        ({"learning_rate": 0.0}, "positive learning_rate"),
        ({"clip_norm": float("nan")}, "positive clip_norm"),
        ({"targets": torch.zeros(SAMPLES, TIME)}, r"Expected targets .* \(6, 2\)"),
        ({"targets": torch.zeros(3, TIME, OUTPUTS)}, r"targets per sample \(40\), got 3"),
        ({"loss": "cross_entropy"}, r"Expected targets .* \(6,\) per sample"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    inputs, targets = make_data()
    stack = StackedRecurrent([make("gru", 3), make("gru", 4)])
    given: dict[str, Any] = {"targets": targets, "loss": "mse", "seeds": (0, 1), "steps": 1}
    with pytest.raises(InvalidInput, match=match):
        train_stacked(stack, inputs, **(given | options))


def test_unknown_loss() -> None:
    inputs, targets = make_data()
    stack = StackedRecurrent([make("gru", 3)])
    with pytest.raises(UnknownName, match="Did you mean 'mse'"):
        train_stacked(stack, inputs, targets, loss="mses", seeds=(0,), steps=1)  # type: ignore[arg-type]
