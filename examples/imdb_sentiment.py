"""Which sentiment networks found the same solution?

Small GRUs read movie reviews (Maas et al. 2011, ACL P11-1015). Half of the training reviews, with
their labels, train the networks: some see all of them, some a quarter. The other half, without
labels, is what the population is captured on and what the meta-model learns from.

    python examples/imdb_sentiment.py --data imdb.parquet
    python examples/imdb_sentiment.py            # downloads the data with `datasets`

A Parquet file needs the columns split ("train" or "test"), label (0 or 1) and text. Needs the
`data` extra: pip install "dynamo-plugin[data]".
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import dynamo_plugin as dp
from dynamo_plugin.tasks import RecurrentNetwork, StackedRecurrent, accuracy, train_stacked

WORD = re.compile(r"[a-z0-9']+")
UNKNOWN = 0


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    reviews = load_reviews(arguments.data)
    rows = [run(reviews, arguments, seed) for seed in arguments.seeds]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def run(reviews: pd.DataFrame, arguments: argparse.Namespace, seed: int) -> dict[str, object]:
    """Train, capture, embed, analyse and report for one seed."""
    started = time.perf_counter()
    folder = arguments.output / f"seed-{seed}"
    labelled, unlabelled, test = split_reviews(reviews, seed)
    vocabulary = build_vocabulary(labelled["text"], arguments.vocabulary)
    models, metadata = train_networks(labelled, test, vocabulary, arguments, seed)
    trained = time.perf_counter()

    shared = unlabelled.iloc[: arguments.capture]
    inputs = [encode(text, vocabulary, arguments.tokens) for text in shared["text"]]
    population = dp.capture(
        models,
        inputs,
        folder / "population.zarr",
        metadata=metadata,
        sample_ids=[f"review-{row}" for row in shared["id"]],
        targets=shared["label"].to_numpy(),  # for scores only; the fit never sees them
        vocabulary_size=arguments.vocabulary,
        overwrite=arguments.overwrite,
    )
    captured = time.perf_counter()
    embedding = dp.fit(population, embedding_dim=16, steps=arguments.steps, seed=seed)
    embedding.save(folder / "embedding", overwrite=arguments.overwrite)
    fitted = time.perf_counter()

    fidelity = dp.analyse("fidelity", embedding).to_dataframe()
    clusters = dp.analyse("clusters", embedding, labels="reviews").summary()
    average = dp.analyse("average", embedding, labels="reviews").to_dataframe()
    dp.write_report(
        embedding, folder / "report.html", labels="reviews", overwrite=arguments.overwrite
    )
    print(average.to_string(index=False, float_format="{:.3f}".format), end="\n\n")
    return {
        "seed": seed,
        "accuracy_few": metadata["accuracy"][
            metadata["reviews"] == metadata["reviews"].min()
        ].mean(),
        "accuracy_many": metadata["accuracy"][
            metadata["reviews"] == metadata["reviews"].max()
        ].mean(),
        "hidden_r2": fidelity["hidden_r2"].mean(),
        "output_agreement": fidelity["output_agreement"].mean(),
        "silhouette": clusters["label_silhouette"],
        "p": clusters["label_silhouette_p"],
        "train_s": trained - started,
        "capture_s": captured - trained,
        "fit_s": fitted - captured,
        "total_s": time.perf_counter() - started,
    }


def load_reviews(path: Path | None) -> pd.DataFrame:
    """Return all reviews: id, split, label, text."""
    if path is not None:
        reviews = pd.read_parquet(path, columns=["split", "label", "text"])
    else:
        import datasets

        parts = datasets.load_dataset("imdb")
        reviews = pd.concat(
            [parts[split].to_pandas().assign(split=split) for split in ("train", "test")],
            ignore_index=True,
        )
    reviews.insert(0, "id", np.arange(len(reviews)))
    return reviews


def split_reviews(
    reviews: pd.DataFrame, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Halve the training reviews at random: labelled for the networks, unlabelled for the rest."""
    training = reviews[reviews["split"] == "train"].sample(frac=1, random_state=seed)
    half = len(training) // 2
    test = reviews[reviews["split"] == "test"].sample(n=2000, random_state=seed)
    return training.iloc[:half], training.iloc[half:], test


def build_vocabulary(texts: Sequence[str], size: int) -> dict[str, int]:
    """Number the most frequent words from 1; 0 stands for all others."""
    counts = Counter(word for text in texts for word in WORD.findall(text.lower()))
    return {word: index for index, (word, _) in enumerate(counts.most_common(size - 1), start=1)}


def encode(text: str, vocabulary: dict[str, int], tokens: int) -> Tensor:
    """Return the ids of the last words of a review, (time,) int64, at least one."""
    words = WORD.findall(text.lower())[-tokens:]
    return torch.tensor([vocabulary.get(word, UNKNOWN) for word in words] or [UNKNOWN])


def encode_all(
    texts: Sequence[str], vocabulary: dict[str, int], tokens: int
) -> tuple[Tensor, Tensor]:
    """Return (sample, tokens) int64 ids, padded at the end, and (sample,) lengths."""
    sequences = [encode(text, vocabulary, tokens) for text in texts]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True), lengths


def train_networks(
    labelled: pd.DataFrame,
    test: pd.DataFrame,
    vocabulary: dict[str, int],
    arguments: argparse.Namespace,
    seed: int,
) -> tuple[dict[str, torch.nn.Module], pd.DataFrame]:
    """Train the networks of both groups in one vectorised pass."""
    counts = [len(labelled) // 4] * arguments.networks + [len(labelled)] * arguments.networks
    names = [f"gru-{count}-{index % arguments.networks}" for index, count in enumerate(counts)]
    seeds = [1000 * seed + index for index in range(len(counts))]
    inputs, lengths = encode_all(labelled["text"], vocabulary, arguments.tokens)
    targets = torch.tensor(labelled["label"].to_numpy(), dtype=torch.int64)
    subsets = [
        torch.randperm(len(labelled), generator=torch.Generator().manual_seed(own))[:count]
        for own, count in zip(seeds, counts, strict=True)
    ]
    networks = [
        RecurrentNetwork(
            "gru",
            input_size=arguments.token_dim,
            hidden_size=arguments.units,
            output_size=2,
            vocabulary=arguments.vocabulary,
            seed=own,
        )
        for own in seeds
    ]
    for network in networks:
        # Words start alike: what tells them apart is then learned from the labels.
        # PyTorch starts at 1, where rare words stay noise that every state carries.
        network.embedding.weight.data.mul_(arguments.embedding_std)
    stack = StackedRecurrent(networks)
    train_stacked(
        stack,
        inputs,
        targets,
        lengths=lengths,
        loss="cross_entropy",
        seeds=seeds,
        subsets=subsets,
        steps=arguments.network_steps,
        batch_size=32,
        learning_rate=5e-3,
        progress=True,
        description="networks",
    )
    test_inputs, test_lengths = encode_all(test["text"], vocabulary, arguments.tokens)
    scores = accuracy(
        stack.predict(test_inputs, lengths=test_lengths),
        torch.tensor(test["label"].to_numpy(), dtype=torch.int64),
    )
    metadata = pd.DataFrame(
        {"reviews": counts, "seed": seeds, "accuracy": scores.tolist()}, index=names
    )
    return dict(zip(names, stack.unstack(), strict=True)), metadata


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="local Parquet file; else `datasets` downloads")
    parser.add_argument("--output", type=Path, default=Path("imdb"), help="folder for results")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per seed")
    parser.add_argument("--networks", type=int, default=4, help="networks per group")
    parser.add_argument("--units", type=int, default=64, help="hidden units of a network")
    parser.add_argument("--token-dim", type=int, default=32, help="width of the token embedding")
    parser.add_argument(
        "--embedding-std", type=float, default=0.1, help="spread of the token embedding at first"
    )
    parser.add_argument("--vocabulary", type=int, default=5000, help="distinct ids")
    parser.add_argument("--tokens", type=int, default=80, help="words kept, from the end")
    parser.add_argument("--network-steps", type=int, default=600, help="updates of a network")
    parser.add_argument("--capture", type=int, default=4000, help="reviews to capture on")
    parser.add_argument("--steps", type=int, default=500, help="updates of the meta-model")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser.parse_args()


if __name__ == "__main__":
    main()
