"""A process that has imported everything, and forks one process per capture that a test asks for.

So that captures can be killed and run beside each other without paying for an import each time.
Requests are lines of JSON: keyword arguments of `capture` beside the fields below, answered by the
number of the process; or {"wait": number}, answered by its exit code.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dynamo_plugin.recording.batching
import dynamo_plugin.store._blocking
from dynamo_plugin.recording import capture
from dynamo_plugin.recording.reduction import Reduction
from dynamo_plugin.registry import get_registry

if __name__ in ("__main__", "__mp_main__"):  # also in processes that a capture starts
    dynamo_plugin.store._blocking.BLOCK_BYTES = 512
    dynamo_plugin.recording.batching.WINDOW_BYTES = 4000

LENGTHS = [3, 1, 6, 6, 2, 4, 1, 5, 6, 3, 8, 2, 7, 7, 1, 3, 5, 2, 9, 4] * 2


class Net(nn.Module):
    """A GRU with a readout of its last real step; it may be slow."""

    def __init__(self, units: int, outputs: int, seed: int, pause: float) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.gru = nn.GRU(3, units, num_layers=2, batch_first=True)
        self.readout = nn.Linear(units, outputs)
        self.pause = pause

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        time.sleep(self.pause)
        states = self.gru(x)[0]
        logits: Tensor = self.readout(states[torch.arange(len(x)), lengths - 1])
        return logits


def sequences(*, equal: bool) -> list[Tensor]:
    """Return ragged sequences, or all of one length."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5 if equal else n, 3, generator=generator) for n in LENGTHS]


def run(
    *,
    models: int = 3,
    outputs: int = 2,
    pause: float = 0.0,
    equal: bool = False,
    environment: dict[str, str] | None = None,
    file_size: int | None = None,
    **options: Any,
) -> None:
    """Capture some models with small blocks, batches and windows."""
    os.environ.update(environment or {})
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    factories = {
        f"net {n}": partial(Net, 4 + n, outputs if n == models - 1 else 2, n, pause)
        for n in range(models)
    }
    if "reduce" in options:
        options["reduce"] = {key: Reduction(**rule) for key, rule in options["reduce"].items()}
    if isinstance(options.get("share"), list):
        options["share"] = tuple(options["share"])
    capture(factories, sequences(equal=equal), **{"batch_size": 4, "progress": False, **options})


def main() -> None:
    """Answer requests until there are no more."""
    get_registry().names("adapter")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif answer := os.fork():
            pass
        else:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            report, code = Path(request.pop("report")), 0
            try:
                run(**request)
            except BaseException as error:
                report.write_text(f"{type(error).__name__}: {error}")
                code = 1
            os._exit(code)  # what a fork of a test should not do is to run the exits of the parent
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
