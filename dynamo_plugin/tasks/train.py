"""Train a stack of networks, each on data of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from dynamo_plugin.errors import DivergedFit, InvalidInput, UnknownName, suggest
from dynamo_plugin.tasks.stacked import StackedRecurrent

__all__ = ["TaskLoss", "train_stacked"]

TaskLoss: TypeAlias = Literal["cross_entropy", "mse"]
"""Cross entropy on integer targets, or the squared error averaged over outputs."""


def train_stacked(
    stack: StackedRecurrent,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: TaskLoss,
    seeds: Sequence[int],
    subsets: Sequence[Tensor] | None = None,
    lengths: Tensor | None = None,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    clip_norm: float = 1.0,
    progress: bool = False,
    description: str = "train",
) -> Tensor:
    """Train all networks of a stack at once, in place.

    Each network draws its own minibatches, with replacement, from its own samples and by its own
    seed; gradients are clipped network by network; the loss is the sum over networks. So what
    becomes of one network does not depend on its neighbours, but for rounding. Adam, with a
    learning rate that falls to zero along half a cosine.

    Parameters
    ----------
    stack
        The networks; they are changed.
    inputs
        (sample, time, feature) numbers or (sample, time) integer ids, shared by all networks.
    targets
        For `cross_entropy` integer classes, for `mse` numbers with a last axis of outputs:
        (sample, ...), or (sample, time, ...) for networks with an output per step.
    loss
        `cross_entropy` or `mse`.
    seeds
        One per network, for its minibatches.
    subsets
        Per network, the integer positions of the samples it may see; None where all may.
    lengths
        (sample,) integers: how many steps are real; None where all are. Losses of networks with
        an output per step are averaged over the real steps.
    steps
        Number of updates.
    batch_size
        Samples per network and update.
    learning_rate
        At the first update.
    clip_norm
        The largest norm of one network's gradient.
    progress
        Whether to show a bar on standard error.
    description
        What the bar is called.

    Returns
    -------
    Tensor
        (step, model) float32 on the CPU: the loss of each network on each of its minibatches.

    Raises
    ------
    UnknownName
        If there is no such loss.
    InvalidInput
        If a number is not positive, numbers of samples, seeds or subsets do not fit, a subset is
        empty or out of range, or targets have another shape than the networks' outputs call for.
    DivergedFit
        If a network's loss or weights become NaN or infinite.
    """
    _check(stack, inputs, targets, lengths, loss, seeds, subsets)
    for name, number in (
        ("steps", steps),
        ("batch_size", batch_size),
        ("learning_rate", learning_rate),
        ("clip_norm", clip_norm),
    ):
        if not number > 0:
            raise InvalidInput(f"Expected a positive {name}, got {number}.")
    device = stack.readout_bias.device
    draws = torch.stack(
        [
            _draw(len(inputs), None if subsets is None else subsets[i], seed, steps, batch_size)
            for i, seed in enumerate(seeds)
        ],
        dim=1,
    )  # (step, model, sample)
    parameters = list(stack.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    history = torch.empty(steps, len(stack))
    bar = tqdm(range(steps), desc=description, unit="step", disable=not progress, leave=False)
    for step in bar:
        chosen = draws[step].to(inputs.device)
        own_lengths = None if lengths is None else lengths[draws[step].to(lengths.device)]
        outputs = stack(inputs[chosen].to(device), own_lengths)
        wanted = targets[chosen.to(targets.device)].to(device)
        losses = _losses(outputs, wanted, own_lengths, loss)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.sum())
        _clip_each(parameters, clip_norm)
        optimizer.step()
        schedule.step()
        history[step] = losses.detach()
        if not bool(history[step].isfinite().all()):
            _raise_diverged(history[step].isfinite(), step)
    finite = torch.stack([p.detach().isfinite().flatten(1).all(1).cpu() for p in parameters])
    if not bool(finite.all()):
        _raise_diverged(finite.all(0), steps)
    return history


def _draw(samples: int, subset: Tensor | None, seed: int, steps: int, batch_size: int) -> Tensor:
    """(step, batch) positions of samples."""
    generator = torch.Generator().manual_seed(seed)
    count = samples if subset is None else len(subset)
    drawn = torch.randint(count, (steps, batch_size), generator=generator)
    return drawn if subset is None else subset.cpu()[drawn]


def _losses(outputs: Tensor, targets: Tensor, lengths: Tensor | None, loss: TaskLoss) -> Tensor:
    """(model,) mean over samples of the mean over (real) steps."""
    expected = outputs.shape[:-1] if loss == "cross_entropy" else outputs.shape
    if targets.shape != expected:
        raise InvalidInput(
            f"Expected targets (sample, ...) with {tuple(expected[2:])} per sample for the loss "
            f"{loss!r}, got {tuple(targets.shape[2:])}."
        )
    if loss == "cross_entropy":
        flat = F.cross_entropy(outputs.flatten(0, -2), targets.flatten().long(), reduction="none")
        entries = flat.view(targets.shape)
    else:
        entries = (outputs - targets).square().mean(-1)
    if entries.ndim == 3 and lengths is not None:
        counts = lengths.to(entries.device)
        real = torch.arange(entries.shape[2], device=entries.device) < counts[..., None]
        entries = (entries * real).sum(2) / counts
    return entries.flatten(1).mean(1)


@torch.no_grad()
def _clip_each(parameters: Sequence[Tensor], clip_norm: float) -> None:
    """Scale each network's gradient to at most the norm; the first axis is the network."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    scale = (clip_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


def _raise_diverged(finite: Tensor, step: int) -> None:
    models = (~finite).nonzero().flatten().tolist()
    raise DivergedFit(
        f"Expected finite losses; those of the networks {models} are NaN or infinite at step "
        f"{step}. Lower the learning rate, or look for such values in the inputs."
    )


def _check(
    stack: StackedRecurrent,
    inputs: Tensor,
    targets: Tensor,
    lengths: Tensor | None,
    loss: str,
    seeds: Sequence[int],
    subsets: Sequence[Tensor] | None,
) -> None:
    if loss not in get_args(TaskLoss):
        raise UnknownName(f"There is no loss {loss!r}. " + suggest(loss, get_args(TaskLoss)))
    for name, given in (("targets", targets), ("lengths", lengths)):
        if given is not None and len(given) != len(inputs):
            raise InvalidInput(
                f"Expected one entry of {name} per sample ({len(inputs)}), got {len(given)}."
            )
    for name, sequence in (("seeds", seeds), ("subsets", subsets)):
        if sequence is not None and len(sequence) != len(stack):
            raise InvalidInput(
                f"Expected one entry of {name} per network ({len(stack)}), got {len(sequence)}."
            )
    for index, subset in enumerate(subsets or [torch.arange(len(inputs))]):
        if len(subset) == 0:
            raise InvalidInput(
                f"Network {index} has no sample to learn from. Give it at least one."
            )
        if int(subset.min()) < 0 or int(subset.max()) >= len(inputs):
            raise InvalidInput(
                f"Expected positions of samples from 0 to {len(inputs) - 1}; network {index} has "
                f"{int(subset.min())} to {int(subset.max())}."
            )
