"""What is told of a fit while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from dynamo_plugin.errors import InvalidInput

if TYPE_CHECKING:
    from dynamo_plugin.training.trainer import Trainer

__all__ = ["Callback", "MLflowLogger", "ProgressBar", "TensorBoardLogger", "WandbLogger"]


class Callback:
    """Base of everything that watches a fit; every method does nothing until it is overridden.

    What they are given has `step`, `config`, `ids`, `thetas` ((model, embedding_dim), a copy),
    `history` and `stop(reason)`, which ends the fit after the step in hand. With several processes,
    only those of the first one are called, and see the thetas of the last look.
    """

    def begin(self, fit: Trainer) -> None:
        """Is called before the first step, or the first after a checkpoint."""

    def step(self, fit: Trainer) -> None:
        """Is called after every step."""

    def look(self, fit: Trainer, row: Mapping[str, float]) -> None:
        """Is called with every new row of the history."""

    def end(self, fit: Trainer) -> None:
        """Is called when there are no more steps, for whatever reason."""


class ProgressBar(Callback):
    """A bar on stderr."""

    def begin(self, fit: Trainer) -> None:
        """Show it."""
        self._bar = tqdm(desc="fit", unit="step", total=fit.config.steps, initial=fit.step)

    def step(self, fit: Trainer) -> None:
        """Advance it."""
        self._bar.update()

    def look(self, fit: Trainer, row: Mapping[str, float]) -> None:
        """Say how well held-out samples are emulated."""
        shown = {"hidden": row["hidden_loss"], "R2": row["held_out_hidden_r2"]}
        self._bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()}, refresh=False)

    def end(self, fit: Trainer) -> None:
        """Leave it as it is."""
        self._bar.close()


class TensorBoardLogger(Callback):
    """Writes the history as scalars, and the thetas at the end for the projector.

    Parameters
    ----------
    folder
        Where TensorBoard looks, `tensorboard --logdir folder`. Needs the package `tensorboard`.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InvalidInput(
                "TensorBoardLogger needs the package tensorboard: pip install tensorboard."
            ) from error
        self._writer: Any = SummaryWriter(str(folder))

    def look(self, fit: Trainer, row: Mapping[str, float]) -> None:
        """Write a row."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, fit.step)

    def end(self, fit: Trainer) -> None:
        """Write the thetas."""
        self._writer.add_embedding(
            fit.thetas, metadata=list(fit.ids), tag="theta", global_step=fit.step
        )
        self._writer.close()


class WandbLogger(Callback):
    """Logs the history to a run of Weights & Biases.

    Parameters
    ----------
    run
        What `wandb.init(...)` returned; its owner finishes it.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def begin(self, fit: Trainer) -> None:
        """Record the settings."""
        self._run.config.update({"fit": fit.config.to_json()})

    def look(self, fit: Trainer, row: Mapping[str, float]) -> None:
        """Log a row."""
        self._run.log({f"fit/{name}": value for name, value in row.items()})


class MLflowLogger(Callback):
    """Logs the history to a run of MLflow.

    Parameters
    ----------
    run_id
        The run; None for the active one. Needs the package `mlflow`.
    """

    def __init__(self, run_id: str | None = None) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise InvalidInput(
                "MLflowLogger needs the package mlflow: pip install mlflow."
            ) from error
        self._mlflow: Any = mlflow
        self._run_id = run_id

    def begin(self, fit: Trainer) -> None:
        """Record the settings."""
        settings = {f"fit.{name}": str(value) for name, value in fit.config.to_json().items()}
        self._mlflow.MlflowClient().log_batch(
            self._run(), params=[self._mlflow.entities.Param(k, v) for k, v in settings.items()]
        )

    def look(self, fit: Trainer, row: Mapping[str, float]) -> None:
        """Log a row."""
        self._mlflow.log_metrics(
            {f"fit.{k}": v for k, v in row.items()}, step=fit.step, run_id=self._run()
        )

    def _run(self) -> str:
        if self._run_id is not None:
            return self._run_id
        active = self._mlflow.active_run()
        if active is None:
            raise InvalidInput(
                "MLflowLogger has no run to log to: give run_id=, or fit within "
                "`with mlflow.start_run():`."
            )
        return str(active.info.run_id)
