"""What an embedding and pairwise metrics cost as the number of networks grows; draws a figure.

    python benchmarks/cost.py [--models 10 20 50 100] [--figure docs/images/cost.svg]

CPU seconds on one thread, reading included, of random recurrent networks that were not trained
(tanh units whose weights are drawn): next to no cost depends on what they learned. Every network
has states of --samples sequences x 50 steps x --units units, in a store on disk. The embedding is a
fit with default settings but for --steps and the dimensions of theta, which are the same for every
N (--dims, of which 2 are leading); theta and functional distances come on top of it. Metrics
compare all pairs of N networks, with default options; RSA sees --rsa-rows rows, all pairs of which
it looks at, and DSA --trials sequences.

The slope is that of log seconds over log N, by least squares: 1 where cost grows with networks, 2
where it grows with their pairs. --quick is a trial run.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

import dynamo_plugin as dp
from dynamo_plugin.store import Population, PopulationInputs, PopulationWriter, open_population
from dynamo_plugin.types import InputSpec, OutputSpec, SiteSpec, TrajectorySpec

TIME, FEATURES = 50, 8

METRICS = ("svcca", "pwcca", "cka", "procrustes", "rsa", "dsa")

LABELS = {
    "fit": "DYNAMO, fit",
    "theta": "theta distance",
    "functional": "functional distance",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "cka": "CKA",
    "procrustes": "Procrustes",
    "rsa": "RSA",
    "dsa": "DSA",
}

COLOURS = {
    "fit": "#d1495b",
    "functional": "#e08e79",
    "svcca": "#1b6ca8",
    "pwcca": "#5fa8d3",
    "cka": "#2a9d8f",
    "procrustes": "#7a6c9d",
    "rsa": "#8d6e45",
    "dsa": "#444444",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--steps", type=int, default=500, help="of the fit")
    parser.add_argument("--dims", type=int, default=8)
    parser.add_argument("--rsa-rows", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=100, help="sequences that DSA sees")
    parser.add_argument("--only", nargs="+", choices=("fit", *METRICS), default=["fit", *METRICS])
    parser.add_argument("--quick", action="store_true", help="4 and 6 networks, 200 rows, 5 steps")
    parser.add_argument("--figure", type=Path, default=Path("docs/images/cost.svg"))
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--from-json", type=Path, help="draw these rows, and measure nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.samples, arguments.units = [4, 6], 20, 16
        arguments.steps, arguments.rsa_rows, arguments.trials = 5, 200, 10
    require_matplotlib()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, 1 thread, Python {platform.python_version()}, torch "
        f"{torch.__version__}, NumPy {np.__version__}; {arguments.samples * TIME:,} x "
        f"{arguments.units} states per network, fit of {arguments.steps} steps"
    )
    rows: list[dict[str, Any]] = []
    if arguments.from_json:
        rows = json.loads(arguments.from_json.read_text())
    else:
        with threadpool_limits(limits=1), tempfile.TemporaryDirectory() as folder:
            population = make(max(arguments.models), arguments, Path(folder) / "population.zarr")
            # What is done once per process belongs to none of the rows.
            warm = argparse.Namespace(**{**vars(arguments), "steps": 2})
            measure(population, 3, warm)
            for models in sorted(arguments.models):
                for row in measure(population, models, arguments):
                    rows.append(row)
                    print(json.dumps(row), flush=True)
                    if arguments.json:
                        arguments.json.write_text(json.dumps(rows, indent=2))
    print("\n" + markdown(rows))
    draw(rows, arguments.figure)
    print(f"\n{arguments.figure}")


def measure(
    population: Population, models: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the CPU seconds of every way to compare the first networks."""
    ids = population.ids[:models]
    rows = []
    if "fit" in arguments.only:
        first = only(population, ids)
        started = time.process_time()
        embedding = dp.fit(
            first,
            steps=arguments.steps,
            embedding_dim=arguments.dims,
            leading_dim=2,
            device="cpu",
            progress=False,
        )
        rows.append({"way": "fit", "models": models, "seconds": time.process_time() - started})
        for kind in ("theta", "functional"):
            started = time.process_time()
            dp.pairwise(embedding, kind, progress=False)
            rows.append({"way": kind, "models": models, "seconds": time.process_time() - started})
    for metric in METRICS:
        if metric not in arguments.only:
            continue
        options: dict[str, Any] = {}
        if metric == "rsa":
            options = {"rows": arguments.rsa_rows}
        if metric == "dsa":
            options = {"samples": np.arange(min(arguments.trials, arguments.samples))}
        # Opened anew, so that nothing that an earlier row read is still in memory.
        fresh = open_population(population.location)
        started = time.process_time()
        dp.pairwise(fresh, metric, models=ids, progress=False, **options)
        rows.append({"way": metric, "models": models, "seconds": time.process_time() - started})
    return rows


def only(population: Population, ids: tuple[str, ...]) -> Population:
    """Return a population of some of the networks, on disk beside the whole one."""
    place = f"{population.location}-{len(ids)}"
    if Path(place).exists():
        return open_population(place)
    writer = PopulationWriter.create(place, population.inputs, models=ids, config={})
    for index, name in enumerate(ids):
        block = writer.begin(
            name,
            population.spec(name),
            metadata={},
            model_hash=population.model_hash(name),
            index=index,
        )
        block.append_states("rnn", population.states(name))
        block.append_outputs(population.outputs(name))
        block.finish()
    return open_population(place)


def make(models: int, arguments: argparse.Namespace, place: Path) -> Population:
    """Return random recurrent networks on the same inputs, captured to disk."""
    rng = np.random.default_rng(0)
    samples, units = arguments.samples, arguments.units
    inputs = rng.normal(size=(samples, TIME, FEATURES)).astype(np.float32)
    given = PopulationInputs(
        values=inputs.reshape(-1, FEATURES),
        offsets=np.arange(samples + 1) * TIME,
        sample_ids=tuple(map(str, range(samples))),
        spec=InputSpec("features", FEATURES),
    )
    names = tuple(f"network-{index}" for index in range(models))
    writer = PopulationWriter.create(str(place), given, models=names, config={})
    spec = TrajectorySpec(
        adapter="none",
        sites=(SiteSpec("rnn", (units,), "float32"),),
        output=OutputSpec("output", (2,), "float32", "sample"),
    )
    for index, name in enumerate(names):
        weight = rng.normal(size=(units, units)).astype(np.float32) / units**0.5
        drive = inputs @ rng.normal(size=(FEATURES, units)).astype(np.float32)
        states = np.zeros((samples, TIME, units), np.float32)
        before = np.zeros((samples, units), np.float32)
        for step in range(TIME):
            before = np.tanh(drive[:, step] + before @ weight)
            states[:, step] = before
        block = writer.begin(name, spec, metadata={}, model_hash=f"{index:064x}", index=index)
        block.append_states("rnn", states.reshape(-1, units))
        block.append_outputs(states[:, -1] @ rng.normal(size=(units, 2)).astype(np.float32))
        block.finish()
    return open_population(str(place))


def slopes(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return way to the slope of log seconds over log N."""
    frame = pd.DataFrame(rows)
    return {
        str(way): float(np.polyfit(np.log(part["models"]), np.log(part["seconds"]), 1)[0])
        for way, part in frame.groupby("way")
        if len(part) > 1
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the seconds as a table, with those of the fit per network."""
    frame = pd.DataFrame(rows).pivot(index="way", columns="models", values="seconds")
    found = slopes(rows)
    lines = [
        "| CPU seconds | " + " | ".join(f"N = {n}" for n in frame.columns) + " | slope |",
        "|---" * (len(frame.columns) + 2) + "|",
    ]
    for way in [way for way in LABELS if way in frame.index]:
        cells = " | ".join(f"{seconds:.3g}" for seconds in frame.loc[way])
        slope = f"{found[way]:.2f}" if way in found else ""
        lines.append(f"| {LABELS[way]} | {cells} | {slope} |")
        if way == "fit":
            cells = " | ".join(f"{frame.loc[way, n] / n:.3g}" for n in frame.columns)
            lines.append(f"| the same per network | {cells} | |")
    return "\n".join(lines)


def require_matplotlib() -> None:
    """Leave, saying why, where there is nothing to draw with."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SystemExit("The figure needs matplotlib: pip install matplotlib.") from None


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds over N, both logarithmic, every line named at its end."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 11, "font.family": "DejaVu Sans", "svg.fonttype": "path"})
    mpl.rcParams["svg.hashsalt"] = "dynamo"
    import matplotlib.pyplot as plt

    frame = pd.DataFrame(rows).pivot(index="models", columns="way", values="seconds")
    found = slopes(rows)
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    ends: dict[str, float] = {}
    for way in [way for way in COLOURS if way in frame.columns]:
        bold = way == "fit"
        axes.plot(
            frame.index,
            frame[way],
            marker="o",
            markersize=5,
            color=COLOURS[way],
            linewidth=2.6 if bold else 1.6,
            linestyle="-" if way != "functional" else "--",
        )
        ends[way] = float(frame[way].iloc[-1])
    axes.set(xscale="log", yscale="log", xlabel="networks N", ylabel="CPU seconds, one thread")
    axes.set_xticks(list(frame.index), [str(n) for n in frame.index])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(frame.index[0] * 0.92, frame.index[-1] * 1.03)
    low, high = np.log10(axes.get_ylim())
    gap = (high - low) * 0.055
    places = spread({way: float(np.log10(end)) for way, end in ends.items()}, gap)
    for way, place in places.items():
        slope = f"  $N^{{{found[way]:.1f}}}$" if way in found else ""
        axes.annotate(
            f"{LABELS[way]}{slope}",
            xy=(1.0, (place - low) / (high - low)),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[way],
            fontweight="bold" if way == "fit" else "normal",
            annotation_clip=False,
        )
    axes.set_ylim(10**low, 10**high)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=130)
    plt.close(figure)


def spread(places: dict[str, float], gap: float) -> dict[str, float]:
    """Return places at least a gap apart, in the same order and close to where they were."""
    order = sorted(places, key=lambda way: places[way])
    found = np.array([places[way] for way in order])
    for _ in range(200):
        for i in range(1, len(found)):
            short = gap - (found[i] - found[i - 1])
            if short > 1e-9:
                found[i - 1] -= short / 2
                found[i] += short / 2
    return dict(zip(order, found.tolist(), strict=True))


if __name__ == "__main__":
    main()
