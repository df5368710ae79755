"""Which transformers count tokens, and which copy them?

Two-layer transformers read the same random sequences of tokens. One group learns to copy the token
of three steps back, the other to say which token was most frequent so far. Their residual streams
are recorded through TransformerLens, without saying who is who, and a transformer as meta-model
learns to emulate all of them, with theta as a bias or as FiLM gains. Beside it the null: networks
that all copy, halved at random, among which there is nothing to find.

    python examples/transformer_tasks.py
    python examples/transformer_tasks.py --seeds 0 1 2 --json rows.json
    python examples/transformer_tasks.py --conditions tasks --conditionings film \\
        --set embedding_dim=4

The table shows held-out hidden R2, agreement of decisions at every step, and the silhouette of the
groups for every kind of distance, beside those of pairwise comparison.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from _comparison import fitted_row, pairwise_row, read_settings, show
from torch import Tensor
from transformer_lens import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import GPT2Config, GPT2LMHeadModel

import dynamo_plugin as dp

BACK = 3
"""Steps between a token and its copy."""


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    rows = [
        row
        for seed in arguments.seeds
        for condition in arguments.conditions
        for row in run(condition, arguments, seed)
    ]
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def run(condition: str, arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Train, capture, compare and embed one population; return one row per conditioning."""
    folder = arguments.output / f"{condition}-{seed}"
    started = time.perf_counter()
    models, metadata = train_networks(CONDITIONS[condition], arguments, seed)
    trained = time.perf_counter()
    generator = torch.Generator().manual_seed(1_000_003 + seed)  # unlike those of training
    population = dp.capture(
        models,
        draw_sequences(arguments.capture, arguments, generator),
        folder / "population.zarr",
        metadata=metadata,
        vocabulary_size=arguments.vocabulary,
        overwrite=arguments.overwrite,
        progress=False,
    )
    peers = pairwise_row(population)
    rows = []
    for conditioning in arguments.conditionings:
        settings = {
            "family": "transformer",
            "family_options": {"units": arguments.meta_units, "conditioning": conditioning},
            "output_loss": "kl",  # outputs of every step, which are logits here
            "steps": arguments.steps,
            "seed": seed,
            **read_settings(arguments.set),
        }
        found, _ = fitted_row(
            population, folder / conditioning, overwrite=arguments.overwrite, **settings
        )
        row = {
            "condition": condition,
            "theta as": conditioning,
            "seed": seed,
            "accuracy": metadata["accuracy"].min(),
            "train_s": trained - started,
            **found,
            **peers,
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def copied(tokens: Tensor, vocabulary: int) -> Tensor:
    """Return the token of three steps back, or the first; (sample, time) like the tokens."""
    steps = (torch.arange(tokens.shape[1]) - BACK).clamp(min=0)
    return tokens[:, steps]


def most_frequent(tokens: Tensor, vocabulary: int) -> Tensor:
    """Return the token that occurred most often so far, the smallest of several."""
    return F.one_hot(tokens, vocabulary).cumsum(1).argmax(-1)


TASKS: dict[str, Callable[[Tensor, int], Tensor]] = {"copy": copied, "count": most_frequent}

CONDITIONS = {
    "tasks": [("copy", "copy"), ("count", "count")],
    "null": [("a", "copy"), ("b", "copy")],
}
"""Per group of networks: its name and its task."""


def draw_sequences(count: int, arguments: argparse.Namespace, generator: torch.Generator) -> Tensor:
    """Return (sample, time) int64 tokens; every sequence has its own frequencies."""
    logits = 1.5 * torch.randn(count, arguments.vocabulary, generator=generator)
    return torch.multinomial(
        logits.softmax(1), arguments.tokens, replacement=True, generator=generator
    )


def train_networks(
    groups: list[tuple[str, str]], arguments: argparse.Namespace, seed: int
) -> tuple[dict[str, TransformerBridge], pd.DataFrame]:
    """Train the networks of all groups, one after the other; return them and their metadata."""
    models, rows = {}, {}
    for place, (group, task) in enumerate(groups):
        for number in range(arguments.networks):
            own = 1000 * seed + place * arguments.networks + number
            network, accuracy = train_network(TASKS[task], arguments, own)
            name = f"{group}-{number}"
            models[name] = build_bridge_from_module(
                network, "GPT2LMHeadModel", hf_config=network.config
            )
            rows[name] = {"group": group, "task": task, "seed": own, "accuracy": accuracy}
    return models, pd.DataFrame.from_dict(rows, orient="index")


def train_network(
    task: Callable[[Tensor, int], Tensor], arguments: argparse.Namespace, seed: int
) -> tuple[GPT2LMHeadModel, float]:
    """Train one transformer; return it and its accuracy on sequences it never saw."""
    config = GPT2Config(
        vocab_size=arguments.vocabulary,
        n_positions=arguments.tokens,
        n_embd=arguments.units,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = GPT2LMHeadModel(config).eval()  # no dropout
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, arguments.network_steps)
    for _ in range(arguments.network_steps):
        tokens = draw_sequences(32, arguments, generator)
        wanted = task(tokens, arguments.vocabulary)
        logits = network(input_ids=tokens).logits
        optimiser.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), wanted.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        tokens = draw_sequences(1000, arguments, generator)
        decided = network(input_ids=tokens).logits.argmax(-1)
    same = decided == task(tokens, arguments.vocabulary)
    return network, float(same.double().mean())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("transformers"), help="for results")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per seed")
    parser.add_argument(
        "--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS)
    )
    parser.add_argument(
        "--conditionings", nargs="+", choices=["bias", "film"], default=["bias", "film"]
    )
    parser.add_argument("--networks", type=int, default=4, help="networks per group")
    parser.add_argument("--units", type=int, default=32, help="width of a network")
    parser.add_argument("--vocabulary", type=int, default=8, help="distinct tokens")
    parser.add_argument("--tokens", type=int, default=16, help="length of a sequence")
    parser.add_argument("--network-steps", type=int, default=800, help="updates of a network")
    parser.add_argument("--capture", type=int, default=1000, help="sequences to capture on")
    parser.add_argument("--meta-units", type=int, default=64, help="width of the meta-model")
    parser.add_argument("--steps", type=int, default=500, help="updates of the meta-model")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="further settings of dp.fit"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


if __name__ == "__main__":
    main()
