"""What one step of a meta-model costs, beside its floor.

    python benchmarks/training.py [--threads 1] [--rounds 5] [--device cuda]

Forward and backward pass of a recurrent meta-model of 256 units over 20 models x 32 sequences x 100
steps, in microseconds per model, sequence and step; beside the same written as a loop that autograd
follows, beside PyTorch's module on [x ; theta], and beside the time of its matrix products at the
rate of a large one, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from dynamo_plugin.metamodels import (
    GRUMetaModel,
    LSTMMetaModel,
    RecurrentMetaModel,
    RNNMetaModel,
)
from dynamo_plugin.types import InputSpec, OutputSpec, PopulationSpec

MODELS, SEQUENCES, TIME, UNITS, FEATURES, DIM = 20, 32, 100, 256, 32, 16

FAMILIES: dict[str, tuple[type[RecurrentMetaModel], type[nn.RNNBase]]] = {
    "gru": (GRUMetaModel, nn.GRU),
    "lstm": (LSTMMetaModel, nn.LSTM),
    "rnn": (RNNMetaModel, nn.RNN),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"{name}, {arguments.threads} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
    rows = step_rows(arguments.rounds, device)
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.2f"))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def step_rows(rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Return microseconds per model, sequence and step, of every family and way."""
    rate = matrix_rate(device)
    rows = []
    for name, (family, module) in FAMILIES.items():
        spec = PopulationSpec(
            InputSpec("features", FEATURES), (OutputSpec("y", (2,), "float32", "sample"),)
        )
        torch.manual_seed(0)
        model = family(spec, embedding_dim=DIM, units=UNITS).to(device)
        inputs = torch.randn(SEQUENCES, TIME, FEATURES, device=device)
        thetas = torch.randn(MODELS, DIM, device=device).requires_grad_()
        lengths = torch.full((1, SEQUENCES), TIME, device=device)
        concatenated = module(FEATURES + DIM, UNITS, batch_first=True).to(device)

        def ours(model=model, inputs=inputs, thetas=thetas, lengths=lengths) -> Tensor:  # type: ignore[no-untyped-def]
            states: Tensor = model(inputs[None], thetas[:, None], lengths).states["hidden"]
            return states

        def loop(model=model, inputs=inputs, thetas=thetas) -> Tensor:  # type: ignore[no-untyped-def]
            driven = model.drive(inputs[None]) + (thetas @ model.weight_theta.T)[:, None, None]
            state = driven.new_zeros(MODELS, SEQUENCES, model.units)
            states = []
            for now in driven.unbind(2):
                recurrent = nn.functional.linear(
                    state[..., :UNITS], model.weight_hidden, model.bias_hidden
                )
                state = model.cell.advance(now, recurrent, state)
                states.append(state)
            return torch.stack(states, 2)

        def torchs(module=concatenated, inputs=inputs, thetas=thetas) -> Tensor:  # type: ignore[no-untyped-def]
            x = inputs.expand(MODELS, -1, -1, -1)
            theta = thetas[:, None, None].expand(-1, SEQUENCES, TIME, -1)
            states: Tensor = module(torch.cat([x, theta], -1).flatten(0, 1))[0]
            return states

        ways: dict[str, Callable[[], Tensor]] = {"ours": ours, "loop": loop, "torch.nn": torchs}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, run in ways.items():
                synchronise(device)
                started = time.perf_counter()
                run().sum().backward()
                synchronise(device)
                if number:  # the first round warms up
                    seconds[way].append(time.perf_counter() - started)
        count = MODELS * SEQUENCES * TIME
        floor = 3 * 2 * model.cell.gates * UNITS * UNITS / rate * 1e6
        row: dict[str, Any] = {"family": name, "floor": floor}
        row |= {way: statistics.median(found) / count * 1e6 for way, found in seconds.items()}
        row["over floor"] = row["ours"] / floor
        rows.append(row)
    return rows


def matrix_rate(device: torch.device) -> float:
    """Return floating-point operations per second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(size, size, device=device)
    found = []
    for _ in range(6):
        synchronise(device)
        started = time.perf_counter()
        _ = matrix @ matrix
        synchronise(device)
        found.append(2 * size**3 / (time.perf_counter() - started))
    return statistics.median(found[1:])


def synchronise(device: torch.device) -> None:
    """Wait for what the device has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
