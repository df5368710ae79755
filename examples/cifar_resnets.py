"""Which image classifiers were trained with strong augmentation, and which on less data?

Small residual networks learn CIFAR-10 (Krizhevsky 2009), in two groups: with and without strong
augmentation (`--condition augmentation`), or on all images and on a quarter of them (`size`). A
third condition has no difference at all (`null`). Half of the training images, with labels, train
the networks; the population is captured on others, whose labels nobody sees, and a deeper residual
network learns to emulate all of them. One fit per hidden loss and weight of the output loss.

    python examples/cifar_resnets.py --data cifar10.parquet
    python examples/cifar_resnets.py --data cifar10.parquet --condition size --depth 14
    python examples/cifar_resnets.py --data cifar10.parquet --hidden-losses l2 --output-weights 1 \\
        --set 'family_options={"depth": 20, "width": 32}'

A Parquet file needs the columns split ("train" or "test"), label (0 to 9) and jpeg (an encoded
image, 32 by 32). The table shows, per variant, held-out hidden R2 and what channels that all
networks share could reach at most (r2_shared: more needs a wider meta-model), agreement of
decisions, and the silhouette of the groups for every kind of distance, beside those of pairwise
comparison. Population and embeddings stay in the folder; `dynamo-plugin fit` tries other settings
on the former. Needs the `data` extra: pip install "dynamo-plugin[data]".
"""

from __future__ import annotations

import argparse
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _augmentation import AUGMENTATIONS
from _comparison import fitted_row, pairwise_row, read_settings, shared_channels_r2, show
from _small_resnets import SmallResNet, accuracy, train_resnet
from PIL import Image
from torch import Tensor

import dynamo_plugin as dp

MEAN, DEVIATION = torch.tensor([0.491, 0.482, 0.447]), torch.tensor([0.247, 0.243, 0.262])
"""Of the colours of the training images of CIFAR-10."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the networks of one group are trained."""

    group: str
    augmentation: str
    share: float
    """Of the labelled images."""


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    images = load_images(arguments.data)
    rows = [row for seed in arguments.seeds for row in run(images, arguments, seed)]
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def run(images: Images, arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Train, capture, compare and embed for one seed; return one row per variant."""
    folder = arguments.output / f"{arguments.condition}-{seed}"
    order = torch.randperm(len(images.training), generator=torch.Generator().manual_seed(seed))
    labelled, others = order[: len(order) // 2], order[len(order) // 2 :][: arguments.capture]
    started = time.perf_counter()
    models, metadata = train_networks(images, labelled, arguments, seed)
    trained = time.perf_counter()
    population = dp.capture(
        models,
        images.read(images.training[others]),
        folder / "population.zarr",
        metadata=metadata,
        targets=images.training_labels[others].numpy(),  # for scores only
        overwrite=arguments.overwrite,
        progress=False,
    )
    scores = metadata.groupby("group", sort=False)[["accuracy", "training_accuracy"]].mean()
    print(scores.to_string(float_format="{:.3f}".format))
    print(f"trained in {trained - started:.0f} s, captured on {len(others)} images", flush=True)
    peers = pairwise_row(population)
    rows = []
    for hidden_loss in arguments.hidden_losses:
        for weight in arguments.output_weights:
            settings = {
                "family": "resnet",
                "family_options": {"depth": arguments.meta_depth, "width": arguments.meta_width},
                # Ridge regression minimises squares: under l1, maps are learned.
                "state_map_solver": "ridge" if hidden_loss == "l2" else "gradient",
                "steps": arguments.steps,
                "batch_size": arguments.batch_size,
                "seed": seed,
                "hidden_loss": hidden_loss,
                "output_weight": weight,
                **read_settings(arguments.set),
            }
            found, embedding = fitted_row(
                population,
                folder / f"{hidden_loss}-{weight:g}",
                overwrite=arguments.overwrite,
                **settings,
            )
            widths = list(embedding.meta_model.stage_units.values())
            limit = {"r2_shared": shared_channels_r2(population, widths)}
            names = {"seed": seed, "loss": hidden_loss, "lambda": weight}
            rows.append({**names, **found, **limit, **peers})
            print(json.dumps(rows[-1]), flush=True)
    return rows


@dataclass(frozen=True, slots=True)
class Images:
    """Decoded images in [0, 1], (sample, 3, 32, 32), and their labels, (sample,) int64."""

    training: Tensor
    training_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def read(self, images: Tensor) -> Tensor:
        """Return images as networks read them: every colour at mean 0 and deviation 1."""
        return (images - MEAN[:, None, None]) / DEVIATION[:, None, None]


def load_images(path: Path) -> Images:
    """Decode all images of a Parquet file."""
    table = pd.read_parquet(path, columns=["split", "label", "jpeg"])
    parts: list[Tensor] = []
    for split in ("train", "test"):
        rows = table[table["split"] == split]
        pixels = np.stack(
            [np.asarray(Image.open(io.BytesIO(code)).convert("RGB")) for code in rows["jpeg"]]
        )
        parts.append(torch.from_numpy(pixels).movedim(3, 1).float() / 255)
        parts.append(torch.tensor(rows["label"].to_numpy(), dtype=torch.int64))
    return Images(*parts)


def recipes(condition: str, weak: str) -> list[Recipe]:
    """Return the two groups of a condition; `weak` names the lighter augmentation."""
    if condition == "augmentation":
        return [Recipe("weak", weak, 1), Recipe("strong", "strong", 1)]
    if condition == "size":
        return [Recipe("few", weak, 0.25), Recipe("many", weak, 1)]
    return [Recipe("a", weak, 1), Recipe("b", weak, 1)]


def train_networks(
    images: Images, labelled: Tensor, arguments: argparse.Namespace, seed: int
) -> tuple[dict[str, SmallResNet], pd.DataFrame]:
    """Train the networks of both groups, one after the other; return them and their metadata.

    All make the same number of updates, and differ in their seeds, within and between groups.
    """
    models, rows = {}, {}
    test = images.read(images.test)
    made = [
        recipe
        for recipe in recipes(arguments.condition, arguments.weak)
        for _ in range(arguments.networks)
    ]
    for number, recipe in enumerate(made):
        own = 1000 * seed + number
        shuffled = labelled[
            torch.randperm(len(labelled), generator=torch.Generator().manual_seed(own))
        ]
        chosen = shuffled[: int(recipe.share * len(shuffled))]
        network = train_resnet(
            images.training[chosen],
            images.training_labels[chosen],
            augment=AUGMENTATIONS[recipe.augmentation],
            normalise=images.read,
            steps=arguments.network_steps,
            seed=own,
            depth=arguments.depth,
            width=arguments.width,
        )
        name = f"{recipe.group}-{number % arguments.networks}"
        seen = images.read(images.training[chosen[:2000]])
        models[name] = network
        rows[name] = {
            "group": recipe.group,
            "augmentation": recipe.augmentation,
            "images": len(chosen),
            "accuracy": accuracy(network, test, images.test_labels),
            "training_accuracy": accuracy(network, seen, images.training_labels[chosen[:2000]]),
        }
    return models, pd.DataFrame.from_dict(rows, orient="index")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="Parquet file of images")
    parser.add_argument("--output", type=Path, default=Path("cifar"), help="folder for results")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per seed")
    parser.add_argument(
        "--condition", choices=["augmentation", "size", "null"], default="augmentation"
    )
    parser.add_argument(
        "--weak", choices=list(AUGMENTATIONS), default="none", help="augmentation of the rest"
    )
    parser.add_argument("--networks", type=int, default=5, help="networks per group")
    parser.add_argument("--depth", type=int, default=8, help="layers of a network, 6 n + 2")
    parser.add_argument("--width", type=int, default=16, help="channels of its first stage")
    parser.add_argument("--network-steps", type=int, default=400, help="updates of a network")
    parser.add_argument("--capture", type=int, default=1000, help="images to capture on")
    parser.add_argument("--meta-depth", type=int, default=14, help="layers of the meta-model")
    parser.add_argument("--meta-width", type=int, default=32, help="channels of its first stage")
    parser.add_argument("--batch-size", type=int, default=16, help="images per update of it")
    parser.add_argument("--hidden-losses", nargs="+", default=["l2", "l1"])
    parser.add_argument("--output-weights", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--steps", type=int, default=300, help="updates of the meta-model")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="further settings of dp.fit"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


if __name__ == "__main__":
    main()
