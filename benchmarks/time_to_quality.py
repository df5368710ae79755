"""How long until the quality of the paper's way?

    python benchmarks/time_to_quality.py --data DIR --folder DIR [--only imdb_size_small]

Fits a population of benchmarks/separation_populations.py as the paper has it (preset `paper`: 500
steps of 32 sequences), and then with default settings, steps of 8 sequences and more and more of
them, until both the held-out hidden R2 and the held-out agreement of outputs are at least those of
the first fit. Seconds of CPU time, in one run.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from separation_populations import POPULATIONS, open_or_make

import dynamo_plugin as dp
from dynamo_plugin.training import PRESETS

STEPS = (35, 50, 70, 140, 280, 400, 560, 800, 1120)

BATCH_SIZE = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with imdb.parquet and ag_news.parquet")
    parser.add_argument("--folder", type=Path, default=Path("separation"))
    parser.add_argument(
        "--only",
        nargs="+",
        choices=POPULATIONS,
        default=["imdb_size_small", "imdb_size", "pulse_architecture", "pulse_task"],
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="base populations")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    rows = []
    for name in arguments.only:
        for seed in arguments.seeds:
            population = open_or_make(name, seed, arguments.data, arguments.folder)
            paper = measure(population, PRESETS["paper"])
            rows.append({"population": name, "seed": seed, "way": "paper", **paper})
            print(json.dumps(rows[-1]), flush=True)
            for steps in STEPS:
                ours = measure(population, {"batch_size": BATCH_SIZE, "steps": steps})
                ratio = paper["cpu s"] / ours["cpu s"]
                rows.append(
                    {"population": name, "seed": seed, "way": "default", **ours, "less": ratio}
                )
                print(json.dumps(rows[-1]), flush=True)
                if all(ours[what] >= paper[what] for what in ("hidden R2", "agreement")):
                    break
    print(pd.DataFrame(rows).to_string(index=False, na_rep="", float_format="%.3f"))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def measure(population: dp.Population, settings: Any) -> dict[str, Any]:
    """Return what a fit takes and reaches."""
    started = time.process_time()
    embedding = dp.fit(population, **settings, progress=False)
    seconds = time.process_time() - started
    fidelity = dp.analyse("fidelity", embedding).to_dataframe()
    return {
        "steps": embedding.config.steps,
        "cpu s": seconds,
        "hidden R2": float(fidelity["hidden_r2"].mean()),
        "agreement": float(fidelity["output_agreement"].mean()),
    }


if __name__ == "__main__":
    main()
