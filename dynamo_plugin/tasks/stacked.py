"""Many recurrent networks of one architecture as one module: vectorised over the networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.tasks.cells import CELLS
from dynamo_plugin.tasks.network import RecurrentNetwork

if TYPE_CHECKING:
    from dynamo_plugin.tasks.network import Architecture

__all__ = ["StackedRecurrent"]


class StackedRecurrent(nn.Module):
    """Several `RecurrentNetwork`s that run and train in one pass.

    Weights are stacked along a first axis, one entry per network, and padded with zeros to the
    largest number of hidden units. Every time step is one batched matrix product over all
    networks; the only Python loop is the one over time.

    A padded unit has zero weights in and out, so its state stays exactly zero: in the GRU
    h' = (1 - z) tanh(0) + z 0, in the LSTM c' = f 0 + i tanh(0), in the RNN h' = tanh(0). Nothing
    reads it, so no gradient reaches the weights into it, and as its state is zero none reaches
    the weights out of it. Adam moves nothing whose gradient was always zero: padding stays
    padding, and every network trains as it would alone.

    Parameters
    ----------
    networks
        At least one, of one architecture and of the same input size, output size, vocabulary and
        kind of output. Numbers of hidden units may differ. They are copied.

    Raises
    ------
    InvalidInput
        If there are none, or if they differ in more than their hidden units.

    Examples
    --------
    >>> import torch
    >>> networks = [
    ...     RecurrentNetwork("gru", input_size=3, hidden_size=units, output_size=2, seed=units)
    ...     for units in (4, 6)
    ... ]
    >>> stack = StackedRecurrent(networks)
    >>> inputs = torch.ones(5, 7, 3)
    >>> together = stack(inputs.expand(2, 5, 7, 3))
    >>> torch.allclose(together[1], networks[1](inputs), atol=1e-6)
    True
    """

    embedding: nn.Parameter | None

    def __init__(self, networks: Sequence[RecurrentNetwork]) -> None:
        super().__init__()
        if not networks:
            raise InvalidInput("Expected at least one network to stack, got none.")
        kinds = [_kind(network) for network in networks]
        for position, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise InvalidInput(
                    "Networks of one stack may differ in their hidden units alone; network "
                    f"{position} has {kind} where network 0 has {kinds[0]}. Stack them apart."
                )
        first = networks[0]
        self.architecture: Architecture = first.architecture
        self.every_step = first.every_step
        self.hidden_sizes = tuple(network.rnn.hidden_size for network in networks)
        units = max(self.hidden_sizes)
        padded = [_pad_layer(network.rnn, units) for network in networks]
        self.weight_ih = _stack([layer["weight_ih_l0"] for layer in padded])
        self.weight_hh = _stack([layer["weight_hh_l0"] for layer in padded])
        self.bias_ih = _stack([layer["bias_ih_l0"] for layer in padded])
        self.bias_hh = _stack([layer["bias_hh_l0"] for layer in padded])
        self.readout_weight = _stack(
            [_pad_columns(network.readout.weight, units) for network in networks]
        )
        self.readout_bias = _stack([network.readout.bias for network in networks])
        tables = [n.embedding.weight for n in networks if n.embedding is not None]
        self.embedding = _stack(tables) if tables else None

    def __len__(self) -> int:
        """Return the number of networks."""
        return len(self.hidden_sizes)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run every network on inputs of its own.

        Parameters
        ----------
        inputs
            (model, sample, time, feature) numbers, or (model, sample, time) integer ids where the
            networks have embeddings.
        lengths
            (model, sample) integers from 1 to time: how many steps are real; None where all are.

        Returns
        -------
        Tensor
            (model, sample, output) at the last real step, or (model, sample, time, output).

        Raises
        ------
        InvalidInput
            If shapes do not fit the networks, or an id or a length is out of range.
        """
        states = self.states(inputs)
        if lengths is not None:
            _check_lengths(lengths, inputs)
        if self.every_step:
            read = torch.stack(states, dim=2)  # (model, sample, time, unit)
        elif lengths is None:
            read = states[-1]
        else:
            last = (lengths.to(inputs.device) - 1)[None, :, :, None]
            stacked = torch.stack(states)
            read = stacked.gather(0, last.expand(-1, -1, -1, stacked.shape[-1]))[0]
        outputs = torch.baddbmm(
            self.readout_bias[:, None], read.flatten(1, -2), self.readout_weight.mT
        )
        return torch.unflatten(outputs, 1, read.shape[1:-1])

    def states(self, inputs: Tensor) -> list[Tensor]:
        """Return the hidden state after every step: a list over time of (model, sample, unit).

        Units beyond a network's own are zero. Inputs and errors are those of `forward`.
        """
        expected = 4 if self.embedding is None else 3
        if inputs.ndim != expected or inputs.shape[0] != len(self):
            axes = "(model, sample, time" + (", feature)" if expected == 4 else ")")
            raise InvalidInput(
                f"Expected inputs {axes} for {len(self)} networks, "
                f"got the shape {tuple(inputs.shape)}."
            )
        models, samples, time = inputs.shape[:3]
        # Time before sample: what one step reads then lies together for each network.
        inputs = inputs.transpose(1, 2)
        if self.embedding is not None:
            vocabulary = self.embedding.shape[1]
            # All tables are looked up as one: an id too large would find the next network's.
            if bool(((inputs < 0) | (inputs >= vocabulary)).any()):
                raise InvalidInput(
                    f"Expected ids from 0 to {vocabulary - 1}, got {int(inputs.min())} to "
                    f"{int(inputs.max())}. Map what is out of the vocabulary to one id."
                )
            offsets = vocabulary * torch.arange(models, device=inputs.device)
            ids = inputs.reshape(models, -1) + offsets[:, None]
            features = F.embedding(ids, self.embedding.flatten(0, 1))
            features = torch.unflatten(features, 1, (time, samples))
        else:
            features = inputs
        if 0 in features.shape or features.shape[-1] != self.weight_ih.shape[-1]:
            raise InvalidInput(
                f"Expected at least one sample and one step of {self.weight_ih.shape[-1]} "
                f"features, got inputs {tuple(inputs.transpose(1, 2).shape)}."
            )
        return CELLS[self.architecture](
            features,
            self.weight_ih,
            self.weight_hh,
            self.bias_ih,
            self.bias_hh,
        )

    @torch.no_grad()
    def predict(
        self, inputs: Tensor, lengths: Tensor | None = None, *, batch_size: int = 512
    ) -> Tensor:
        """Run every network on the same inputs, without gradients and in batches.

        Parameters
        ----------
        inputs
            (sample, time, feature) numbers or (sample, time) integer ids.
        lengths
            (sample,) integers, or None.
        batch_size
            Samples at a time; the result does not depend on it.

        Returns
        -------
        Tensor
            (model, sample, output) or (model, sample, time, output), on the stack's device.

        Raises
        ------
        InvalidInput
            If there are no samples, or shapes do not fit the networks.
        """
        if len(inputs) == 0 or batch_size < 1:
            raise InvalidInput(
                f"Expected at least one sample and a positive batch size, got {len(inputs)} "
                f"samples and a batch size of {batch_size}."
            )
        device = self.readout_bias.device
        outputs = []
        for start in range(0, len(inputs), batch_size):
            batch = inputs[start : start + batch_size].to(device)
            own = None
            if lengths is not None:
                own = lengths[start : start + batch_size].to(device).expand(len(self), -1)
            outputs.append(self(batch.expand(len(self), *batch.shape), own))
        return torch.cat(outputs, dim=1)

    @torch.no_grad()
    def unstack(self) -> list[RecurrentNetwork]:
        """Return the networks one by one, in evaluation mode, as copies on the stack's device."""
        networks = []
        for index, units in enumerate(self.hidden_sizes):
            table = self.embedding
            network = RecurrentNetwork(
                self.architecture,
                input_size=self.weight_ih.shape[2],
                hidden_size=units,
                output_size=self.readout_bias.shape[1],
                vocabulary=None if table is None else table.shape[1],
                every_step=self.every_step,
                seed=0,
            ).to(self.readout_bias)
            if table is not None and network.embedding is not None:
                network.embedding.weight.copy_(table[index])
            for name, parameter in network.rnn.named_parameters():
                stacked: Tensor = getattr(self, name.removesuffix("_l0"))[index]
                gates = torch.unflatten(stacked, 0, (-1, max(self.hidden_sizes)))[:, :units]
                if name == "weight_hh_l0":
                    gates = gates[..., :units]
                parameter.copy_(gates.flatten(0, 1))
            network.readout.weight.copy_(self.readout_weight[index, :, :units])
            network.readout.bias.copy_(self.readout_bias[index])
            networks.append(network.eval())
        return networks


def _check_lengths(lengths: Tensor, inputs: Tensor) -> None:
    models, samples, time = inputs.shape[:3]
    if lengths.shape != (models, samples):
        raise InvalidInput(
            f"Expected lengths (model, sample) {(models, samples)}, got {tuple(lengths.shape)}."
        )
    if int(lengths.min()) < 1 or int(lengths.max()) > time:
        raise InvalidInput(
            f"Expected lengths from 1 to the number of steps, {time}; got {int(lengths.min())} to "
            f"{int(lengths.max())}. Leave out empty sequences."
        )


def _kind(network: RecurrentNetwork) -> dict[str, object]:
    return {
        "architecture": network.architecture,
        "input_size": network.rnn.input_size,
        "output_size": network.readout.out_features,
        "vocabulary": None if network.embedding is None else network.embedding.num_embeddings,
        "every_step": network.every_step,
    }


def _stack(tensors: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([tensor.detach() for tensor in tensors]))


def _pad_layer(layer: nn.RNNBase, units: int) -> dict[str, Tensor]:
    padded = {
        name: _pad_gates(parameter, layer.hidden_size, units)
        for name, parameter in layer.named_parameters()
    }
    padded["weight_hh_l0"] = _pad_columns(padded["weight_hh_l0"], units)
    return padded


def _pad_gates(parameter: Tensor, own: int, units: int) -> Tensor:
    """(gates x own units, ...) -> (gates x units, ...), with zeros for the units added."""
    gates = torch.unflatten(parameter.detach(), 0, (-1, own))
    padded = gates.new_zeros(gates.shape[0], units, *gates.shape[2:])
    padded[:, :own] = gates
    return padded.flatten(0, 1)


def _pad_columns(parameter: Tensor, units: int) -> Tensor:
    return F.pad(parameter.detach(), (0, units - parameter.shape[-1]))
