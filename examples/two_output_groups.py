"""One meta-model for networks that answer different questions.

GRUs judge movie reviews (Maas et al. 2011, ACL P11-1015: two classes), others sort news (Zhang et
al. 2015, arXiv:1509.01626: four classes). All are captured on texts of both kinds, and one
meta-model emulates them all, with one readout per output group. A theta is then a network that can
be asked both questions; that of the average network of each group is, at the end.

Two variants are fitted. `paper`: every network has a state map of its own, and theta is learned
with everything else; one state can then serve both questions, and theta need not tell the tasks
apart. `default`: beside that, one map for all networks has to explain their states, laid on each
other beforehand, which the leading dimensions of theta have to make possible.

    python examples/two_output_groups.py --data FOLDER
    python examples/two_output_groups.py --data FOLDER --seeds 0 1 2 --json rows.json
    python examples/two_output_groups.py --data FOLDER --variants paper --set hidden_loss=l1

The folder has imdb.parquet and ag_news.parquet, with the columns split ("train" or "test"), label
and text. Per variant, the first table shows held-out hidden R2 and agreement of decisions by output
group, the second what the average thetas answer to test texts under either readout. The last shows
the silhouette of the groups for every kind of distance, beside those of pairwise comparison. Needs
the `data` extra: pip install "dynamo-plugin[data]".
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _comparison import fitted_row, pairwise_row, read_settings, show
from imdb_sentiment import build_vocabulary, encode, encode_all
from torch import Tensor, nn

import dynamo_plugin as dp
from dynamo_plugin.tasks import RecurrentNetwork, StackedRecurrent, accuracy, train_stacked
from dynamo_plugin.training import PRESETS

FILES = {"reviews": "imdb.parquet", "news": "ag_news.parquet"}
"""Output group to the texts that its networks learn from."""

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": dict(PRESETS["paper"]),
    "default": {},
}
"""Settings of the fits, by name."""

TESTED = 1000
"""Test texts of each kind."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts of one kind: columns label and text."""

    labelled: pd.DataFrame
    """What the networks learn from."""
    others: pd.DataFrame
    """What they are captured on."""
    test: pd.DataFrame


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    rows = [row for seed in arguments.seeds for row in run(arguments, seed)]
    show([{name: value for name, value in row.items() if name != "answers"} for row in rows])
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def run(arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Train, capture, embed and ask for one seed; return one row per variant."""
    folder = arguments.output / f"seed-{seed}"
    started = time.perf_counter()
    texts = {group: read_texts(arguments.data / file, seed) for group, file in FILES.items()}
    vocabulary = build_vocabulary(
        [text for part in texts.values() for text in part.labelled["text"]], arguments.vocabulary
    )
    models: dict[str, nn.Module] = {}
    rows: dict[str, dict[str, Any]] = {}
    for group, part in texts.items():
        for name, (network, score) in train_networks(
            group, part, vocabulary, arguments, seed
        ).items():
            models[name], rows[name] = network, {"group": group, "accuracy": score}
    metadata = pd.DataFrame.from_dict(rows, orient="index")
    trained = time.perf_counter()
    half = arguments.capture // 2
    captured = pd.concat([part.others.iloc[:half] for part in texts.values()])
    population = dp.capture(
        models,
        [encode(text, vocabulary, arguments.tokens) for text in captured["text"]],
        folder / "population.zarr",
        metadata=metadata,
        output_groups=metadata["group"].to_dict(),
        vocabulary_size=arguments.vocabulary,
        overwrite=arguments.overwrite,
        progress=False,
    )
    scores = metadata.groupby("group")["accuracy"].mean()
    peers = pairwise_row(population)
    made = []
    for variant in arguments.variants:
        settings = {
            **VARIANTS[variant],
            "steps": arguments.steps,
            "seed": seed,
            **read_settings(arguments.set),
        }
        found, embedding = fitted_row(
            population, folder / variant, overwrite=arguments.overwrite, **settings
        )
        fidelity = dp.analyse("fidelity", embedding).to_dataframe()
        columns = ["hidden_r2", "hidden_r2_mean_theta", "output_agreement"]
        by_group = fidelity.groupby("output_group")[columns].mean()
        answers = ask_averages(embedding, texts, vocabulary, arguments)
        print(f"{variant}\n{by_group.to_string(float_format='%.3f')}")
        print(answers.to_string(index=False, float_format="%.3f"), end="\n\n", flush=True)
        made.append(
            {
                "seed": seed,
                "variant": variant,
                "train_s": trained - started,
                **{f"accuracy {group}": float(scores[group]) for group in FILES},
                **{
                    f"agree {group}": float(by_group.loc[group, "output_agreement"])
                    for group in FILES
                },
                **found,
                **peers,
                "answers": answers.to_dict("records"),
            }
        )
    return made


def read_texts(path: Path, seed: int) -> Texts:
    """Halve the training texts at random, and choose test texts."""
    table = pd.read_parquet(path, columns=["split", "label", "text"])
    training = table[table["split"] == "train"].sample(frac=1, random_state=seed)
    test = table[table["split"] == "test"]
    half = len(training) // 2
    return Texts(
        training.iloc[:half],
        training.iloc[half:],
        test.sample(n=min(TESTED, len(test)), random_state=seed),
    )


def train_networks(
    group: str,
    texts: Texts,
    vocabulary: dict[str, int],
    arguments: argparse.Namespace,
    seed: int,
) -> dict[str, tuple[nn.Module, float]]:
    """Train the networks of one group in one vectorised pass; return them and their accuracies."""
    first = 1000 * seed + arguments.networks * list(FILES).index(group)
    seeds = list(range(first, first + arguments.networks))
    labels = torch.tensor(texts.labelled["label"].to_numpy(), dtype=torch.int64)
    networks = [
        RecurrentNetwork(
            "gru",
            input_size=arguments.token_dim,
            hidden_size=arguments.units,
            output_size=int(labels.max()) + 1,
            vocabulary=arguments.vocabulary,
            seed=own,
        )
        for own in seeds
    ]
    for network in networks:
        assert network.embedding is not None
        network.embedding.weight.data.mul_(0.1)  # as in imdb_sentiment.py, which says why
    stack = StackedRecurrent(networks)
    inputs, lengths = encode_all(texts.labelled["text"], vocabulary, arguments.tokens)
    train_stacked(
        stack,
        inputs,
        labels,
        lengths=lengths,
        loss="cross_entropy",
        seeds=seeds,
        steps=arguments.network_steps,
        batch_size=32,
        learning_rate=5e-3,
    )
    inputs, lengths = encode_all(texts.test["text"], vocabulary, arguments.tokens)
    right = torch.tensor(texts.test["label"].to_numpy(), dtype=torch.int64)
    scores = accuracy(stack.predict(inputs, lengths=lengths), right).tolist()
    names = [f"{group}-{number}" for number in range(arguments.networks)]
    return dict(zip(names, zip(stack.unstack(), scores, strict=True), strict=True))


@torch.no_grad()
def ask_averages(
    embedding: dp.ModelEmbedding,
    texts: dict[str, Texts],
    vocabulary: dict[str, int],
    arguments: argparse.Namespace,
) -> pd.DataFrame:
    """Render the mean theta of every group, and of all, with either readout.

    Returns
    -------
    DataFrame
        Accuracy of each on the test texts that the readout is about, and beside it what always
        giving the most frequent answer reaches.
    """
    groups = np.array(embedding.output_groups)
    thetas: dict[str, Tensor] = {
        group: embedding.thetas[torch.from_numpy(groups == group)].mean(0) for group in FILES
    }
    thetas["all"] = embedding.thetas.mean(0)
    rows = []
    for asked, part in texts.items():
        inputs, lengths = encode_all(part.test["text"], vocabulary, arguments.tokens)
        right = torch.tensor(part.test["label"].to_numpy(), dtype=torch.int64)
        constant = float(right.bincount().max()) / len(right)
        for name, theta in thetas.items():
            network = embedding.render(theta, output_group=asked)
            decided = network(inputs, lengths=lengths).argmax(1)
            rows.append(
                {
                    "mean theta of": name,
                    "asked about": asked,
                    "accuracy": float((decided == right).double().mean()),
                    "constant": constant,
                }
            )
    return pd.DataFrame(rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument("--output", type=Path, default=Path("groups"), help="folder for results")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per seed")
    parser.add_argument("--networks", type=int, default=5, help="networks per group")
    parser.add_argument("--units", type=int, default=64, help="hidden units of a network")
    parser.add_argument("--token-dim", type=int, default=32, help="width of the token embedding")
    parser.add_argument("--vocabulary", type=int, default=5000, help="distinct ids")
    parser.add_argument("--tokens", type=int, default=80, help="words kept, from the end")
    parser.add_argument("--network-steps", type=int, default=600, help="updates of a network")
    parser.add_argument("--capture", type=int, default=2000, help="texts to capture on")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=500, help="updates of the meta-model")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="further settings of dp.fit"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


if __name__ == "__main__":
    main()
