"""Small recurrent networks, as somebody would write them by hand, and exact twins of them."""

from __future__ import annotations

import copy
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dynamo_plugin.errors import InvalidInput, UnknownName, suggest

__all__ = ["Architecture", "RecurrentNetwork", "permuted_twin"]

Architecture: TypeAlias = Literal["gru", "lstm", "rnn"]
"""The recurrent layers of PyTorch: `nn.GRU`, `nn.LSTM`, `nn.RNN` with tanh."""

_LAYERS: dict[str, type[nn.GRU | nn.LSTM | nn.RNN]] = {
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "rnn": nn.RNN,
}


class RecurrentNetwork(nn.Module):
    """One recurrent layer with a linear readout, and an embedding table where inputs are ids.

    Parameters
    ----------
    architecture
        `gru`, `lstm` or `rnn`.
    input_size
        Features per step or, with a vocabulary, the width of the embedding.
    hidden_size
        Number of hidden units.
    output_size
        Number of outputs.
    vocabulary
        Number of distinct ids; None where the inputs are features.
    every_step
        Whether there is one output per step, or one per sequence, at its last real step.
    seed
        Seed of the initial weights, which are those that PyTorch gives its own modules after
        `torch.manual_seed(seed)`. The global generator is left as it was.

    Raises
    ------
    UnknownName
        If there is no such architecture.
    InvalidInput
        If a size is not positive.

    Examples
    --------
    >>> import torch
    >>> network = RecurrentNetwork("gru", input_size=3, hidden_size=8, output_size=2, seed=0)
    >>> network(torch.zeros(5, 7, 3)).shape
    torch.Size([5, 2])
    """

    embedding: nn.Embedding | None
    rnn: nn.RNNBase
    readout: nn.Linear

    def __init__(
        self,
        architecture: Architecture,
        *,
        input_size: int,
        hidden_size: int,
        output_size: int,
        vocabulary: int | None = None,
        every_step: bool = False,
        seed: int,
    ) -> None:
        super().__init__()
        if architecture not in _LAYERS:
            message = f"There is no architecture {architecture!r}. "
            raise UnknownName(message + suggest(str(architecture), get_args(Architecture)))
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size}
        if vocabulary is not None:
            sizes["vocabulary"] = vocabulary
        for name, size in sizes.items():
            if size < 1:
                raise InvalidInput(f"Expected a positive {name}, got {size}.")
        self.architecture: Architecture = architecture
        self.every_step = every_step
        with torch.random.fork_rng(devices=[]):
            # Not `torch.manual_seed`, which would reseed the accelerators too.
            torch.default_generator.manual_seed(seed)
            self.embedding = None if vocabulary is None else nn.Embedding(vocabulary, input_size)
            self.rnn = _LAYERS[architecture](input_size, hidden_size, batch_first=True)
            self.readout = nn.Linear(hidden_size, output_size)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run the network.

        Parameters
        ----------
        inputs
            (sample, time, feature) numbers, or (sample, time) integer ids where the network has
            an embedding.
        lengths
            (sample,) integers from 1 to time: how many steps are real; None where all are.

        Returns
        -------
        Tensor
            (sample, output) at the last real step, or (sample, time, output) for a network with
            an output per step; what it says beyond the end of a sequence means nothing.

        Raises
        ------
        InvalidInput
            If the inputs have another number of dimensions.
        """
        expected = 3 if self.embedding is None else 2
        if inputs.ndim != expected:
            axes = "(sample, time, feature)" if expected == 3 else "(sample, time)"
            raise InvalidInput(f"Expected inputs {axes}, got the shape {tuple(inputs.shape)}.")
        features = inputs if self.embedding is None else self.embedding(inputs)
        if lengths is None:
            states, _ = self.rnn(features)
            return cast(Tensor, self.readout(states if self.every_step else states[:, -1]))
        packed = pack_padded_sequence(
            features, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, final = self.rnn(packed)
        if self.every_step:
            padded, _ = pad_packed_sequence(
                states, batch_first=True, total_length=features.shape[1]
            )
            return cast(Tensor, self.readout(padded))
        hidden = final[0] if self.architecture == "lstm" else final
        return cast(Tensor, self.readout(hidden[-1]))


@torch.no_grad()
def permuted_twin(network: RecurrentNetwork, generator: torch.Generator) -> RecurrentNetwork:
    """Return a copy that computes the same function with its hidden units in another order.

    Parameters
    ----------
    network
        Any `RecurrentNetwork`; it is not changed.
    generator
        Where the order comes from: unit i of the twin is unit `order[i]` of the network, with
        `order = torch.randperm(units, generator=generator)`.

    Returns
    -------
    RecurrentNetwork
        Its outputs differ from the network's by rounding alone.

    Examples
    --------
    >>> import torch
    >>> network = RecurrentNetwork("rnn", input_size=2, hidden_size=4, output_size=1, seed=0)
    >>> twin = permuted_twin(network, torch.Generator().manual_seed(1))
    >>> inputs = torch.ones(1, 3, 2)
    >>> torch.allclose(network(inputs), twin(inputs), atol=1e-6)
    True
    """
    twin = copy.deepcopy(network)
    units = network.rnn.hidden_size
    order = torch.randperm(units, generator=generator, device=generator.device)
    order = order.to(network.readout.weight.device)
    for name, parameter in twin.rnn.named_parameters():
        # Rows are gates x units in every one of them; columns of the recurrent weights are units.
        gates = torch.unflatten(parameter, 0, (-1, units))[:, order]
        if name.startswith("weight_hh"):
            gates = gates[..., order]
        parameter.copy_(gates.flatten(0, 1))
    twin.readout.weight.copy_(network.readout.weight[:, order])
    return twin
