"""Populations whose groups are known, for benchmarks/separation.py and benchmarks/training.py.

Each is trained once per seed, captured, and kept under the folder that is given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import dynamo_plugin as dp
from dynamo_plugin.tasks import (
    RecurrentNetwork,
    StackedRecurrent,
    merge,
    train_flip_flop_population,
    train_integrator_population,
    train_stacked,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from imdb_sentiment import build_vocabulary, encode

__all__ = ["POPULATIONS", "open_or_make"]

VOCABULARY, TOKENS, UNITS, TOKEN_DIM = 5000, 80, 64, 32
CAPTURED = 2000
"""Texts on which a population is captured."""


@dataclass(frozen=True)
class Made:
    """Trained networks, and what they are captured on."""

    models: Mapping[str, nn.Module]
    inputs: Sequence[Tensor] | Tensor
    metadata: pd.DataFrame
    """A column `group` with the true groups."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `capture`."""


@dataclass(frozen=True)
class Texts:
    """Labelled texts for training networks, and others for capturing them."""

    labelled: list[Tensor]
    labels: Tensor
    others: list[Tensor]


def open_or_make(name: str, seed: int, data: Path | None, folder: Path) -> dp.Population:
    """Return a population by name; train and capture it if it is not in the folder."""
    place = folder / f"{name}-{seed}.zarr"
    if place.exists():
        return dp.open_population(place)
    made = POPULATIONS[name](seed, data)
    return dp.capture(
        made.models, made.inputs, place, metadata=made.metadata, progress=False, **made.options
    )


def imdb_size(seed: int, data: Path | None, networks: int = 10) -> Made:
    """Return GRUs trained on a quarter of the reviews, and on all."""
    (texts,) = read_texts(data, seed, ["imdb"])
    counts = [len(texts.labels) // 4] * networks + [len(texts.labels)] * networks
    names = [f"{count}-{index % networks}" for index, count in enumerate(counts)]
    return _texts_made(texts, names, [str(c) for c in counts], ["gru"] * len(counts), counts, seed)


def imdb_size_small(seed: int, data: Path | None) -> Made:
    """Return 4 + 4 of the same."""
    return imdb_size(seed, data, networks=4)


def imdb_null(seed: int, data: Path | None) -> Made:
    """Return GRUs that differ in their seed alone; the groups mean nothing."""
    (texts,) = read_texts(data, seed, ["imdb"])
    names = [f"{group}-{index}" for group in "ab" for index in range(10)]
    counts = [len(texts.labels)] * len(names)
    return _texts_made(texts, names, [name[0] for name in names], ["gru"] * 20, counts, seed)


def imdb_architecture(seed: int, data: Path | None) -> Made:
    """Return GRUs, LSTMs and vanilla RNNs."""
    (texts,) = read_texts(data, seed, ["imdb"])
    kinds = [kind for kind in ("gru", "lstm", "rnn") for _ in range(5)]
    names = [f"{kind}-{index % 5}" for index, kind in enumerate(kinds)]
    counts = [len(texts.labels)] * len(kinds)
    return _texts_made(texts, names, kinds, kinds, counts, seed)


def text_task(seed: int, data: Path | None) -> Made:
    """Return GRUs that judge reviews, and GRUs that sort news, captured on both kinds of text."""
    both = read_texts(data, seed, ["imdb", "ag_news"])
    models: dict[str, nn.Module] = {}
    groups: dict[str, str] = {}
    for task, texts in zip(("reviews", "news"), both, strict=True):
        names = [f"{task}-{index}" for index in range(5)]
        made = _texts_made(texts, names, [task] * 5, ["gru"] * 5, [len(texts.labels)] * 5, seed)
        models |= made.models
        groups |= dict.fromkeys(names, task)
    half = CAPTURED // 2
    return Made(
        models,
        [*both[0].others[:half], *both[1].others[:half]],
        pd.DataFrame({"group": groups}),
        {"vocabulary_size": VOCABULARY, "output_groups": groups},
    )


def pulse_task(seed: int, data: Path | None) -> Made:
    """Return GRUs that hold three bits, and GRUs that integrate, of several widths."""
    trained = merge(train_flip_flop_population(seed=seed), train_integrator_population(seed=seed))
    metadata = trained.metadata.assign(group=trained.metadata["task"])
    return Made(trained.models, trained.inputs, metadata, {"output_groups": trained.output_groups})


def pulse_architecture(seed: int, data: Path | None) -> Made:
    """Return GRUs, LSTMs and vanilla RNNs that hold three bits."""
    kinds = ("gru", "lstm", "rnn")
    trained = merge(
        *(
            train_flip_flop_population(
                seed=seed, architecture=kind, networks=5, hidden_sizes=(48,), steps=400
            )
            for kind in kinds
        )
    )
    metadata = trained.metadata.assign(group=trained.metadata["architecture"])
    return Made(trained.models, trained.inputs, metadata)


def pulse_null(seed: int, data: Path | None) -> Made:
    """Return GRUs that hold three bits and differ in their seed alone."""
    trained = train_flip_flop_population(seed=seed, networks=20, hidden_sizes=(40,))
    metadata = trained.metadata.assign(group=["ab"[index % 2] for index in range(20)])
    return Made(trained.models, trained.inputs, metadata)


POPULATIONS: dict[str, Callable[[int, Path | None], Made]] = {
    "imdb_size": imdb_size,
    "imdb_size_small": imdb_size_small,
    "imdb_architecture": imdb_architecture,
    "text_task": text_task,
    "pulse_task": pulse_task,
    "pulse_architecture": pulse_architecture,
    "imdb_null": imdb_null,
    "pulse_null": pulse_null,
}


def read_texts(data: Path | None, seed: int, names: Sequence[str]) -> list[Texts]:
    """Return the training texts of some corpora as ids of one vocabulary, halved at random."""
    if data is None:
        raise SystemExit("The text populations need --data, a folder with imdb.parquet, ...")
    halves = []
    for name in names:
        table = pd.read_parquet(data / f"{name}.parquet", columns=["split", "label", "text"])
        table = table[table["split"] == "train"].sample(frac=1, random_state=seed)
        halves.append((table.iloc[: len(table) // 2], table.iloc[len(table) // 2 :]))
    vocabulary = build_vocabulary(
        [text for labelled, _ in halves for text in labelled["text"]], VOCABULARY
    )
    return [
        Texts(
            [encode(text, vocabulary, TOKENS) for text in labelled["text"]],
            torch.tensor(labelled["label"].to_numpy(), dtype=torch.int64),
            [encode(text, vocabulary, TOKENS) for text in others["text"].iloc[:CAPTURED]],
        )
        for labelled, others in halves
    ]


def _texts_made(
    texts: Texts,
    names: list[str],
    groups: list[str],
    kinds: list[str],
    counts: list[int],
    seed: int,
) -> Made:
    lengths = torch.tensor([len(text) for text in texts.labelled])
    inputs = nn.utils.rnn.pad_sequence(texts.labelled, batch_first=True)
    models: dict[str, nn.Module] = {}
    for kind in dict.fromkeys(kinds):
        members = [index for index, own in enumerate(kinds) if own == kind]
        seeds = [1000 * seed + index for index in members]
        networks = [
            RecurrentNetwork(
                kind,  # type: ignore[arg-type]  # one of the architectures
                input_size=TOKEN_DIM,
                hidden_size=UNITS,
                output_size=int(texts.labels.max()) + 1,
                vocabulary=VOCABULARY,
                seed=own,
            )
            for own in seeds
        ]
        for network in networks:  # as in examples/imdb_sentiment.py, which says why
            assert network.embedding is not None
            network.embedding.weight.data.mul_(0.1)
        stack = StackedRecurrent(networks)
        train_stacked(
            stack,
            inputs,
            texts.labels,
            lengths=lengths,
            loss="cross_entropy",
            seeds=seeds,
            subsets=[
                torch.randperm(len(lengths), generator=torch.Generator().manual_seed(own))[
                    : counts[index]
                ]
                for index, own in zip(members, seeds, strict=True)
            ],
            steps=600,
            batch_size=32,
            learning_rate=5e-3 if kind != "rnn" else 1e-3,
        )
        models |= dict(zip((names[index] for index in members), stack.unstack(), strict=True))
    return Made(
        {name: models[name] for name in names},
        texts.others,
        pd.DataFrame({"group": groups}, index=names),
        {"vocabulary_size": VOCABULARY},
    )
