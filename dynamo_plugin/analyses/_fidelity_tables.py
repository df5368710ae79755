"""Tables of emulations by model, by recorded site and by time step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dynamo_plugin.analyses._interpretation import Difference, interpret

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dynamo_plugin.analyses._emulation import Emulated
    from dynamo_plugin.embedding import ModelEmbedding
    from dynamo_plugin.training import Targets

__all__ = ["model_table", "site_table", "step_table"]


def model_table(
    embedding: ModelEmbedding,
    own: Emulated,
    baselines: Mapping[str, Emulated],
    read: set[str],
    decisions: Mapping[str, bool],
    threshold: float,
) -> pd.DataFrame:
    """Return agreement by model, and whether thetas say anything; see `FidelityResult`."""
    hidden = own.evaluation.hidden_r2.numpy()
    above = {name: Difference.between(own.errors, b.errors) for name, b in baselines.items()}
    reasons, notes = interpret(
        hidden,
        threshold,
        embedding.thetas.double().numpy(),
        embedding.output_groups,
        own.errors,
        baselines["mean_theta"].errors,
        above.get("untrained"),
    )
    logits = np.array([decisions[group] for group in embedding.output_groups])
    columns = {
        "model": embedding.ids,
        "hidden_r2": hidden,
        **{f"hidden_r2_{name}": b.evaluation.hidden_r2.numpy() for name, b in baselines.items()},
        "output_agreement": own.evaluation.output_agreement.numpy(),
        "output_kind": np.where(logits, "decisions", "r2"),
        "output_divergence": own.divergence,
        "divergence_kind": np.where(logits, "kl", "mse"),
        "output_group": embedding.output_groups,
        "interpretable": [not reason for reason in reasons],
        "reason": reasons,
        "note": notes,
    }
    for name, difference in above.items():
        columns[f"above_{name}"] = difference.values
        columns[f"above_{name}_error"] = difference.standard_errors
    for name in baselines:
        if name in read:
            columns[f"output_agreement_{name}"] = baselines[
                name
            ].evaluation.output_agreement.numpy()
            columns[f"output_divergence_{name}"] = baselines[name].divergence
    return pd.DataFrame(columns)


def site_table(targets: Targets, own: Emulated, baselines: Mapping[str, Emulated]) -> pd.DataFrame:
    """Return hidden R2 by model and site; see `FidelityResult.by_site`."""
    stages = targets.stages
    names = [
        [site.name for stage in stages for site in stage.sites[model]]
        for model in range(len(targets.ids))
    ]
    rows = np.repeat(np.arange(len(names)), [len(sites) for sites in names])
    columns = np.concatenate([np.arange(len(sites)) for sites in names])
    found: dict[str, Any] = {
        "model": np.array(targets.ids, dtype=object)[rows],
        "site": [site for sites in names for site in sites],
        "hidden_r2": own.sites[rows, columns],
        **{f"hidden_r2_{name}": b.sites[rows, columns] for name, b in baselines.items()},
    }
    missing = np.isnan(own.sites[rows, columns])
    return pd.DataFrame(found | {"note": np.where(missing, "the site never changes", "")})


def step_table(
    ids: Sequence[str], own: Emulated, baselines: Mapping[str, Emulated], read: set[str]
) -> pd.DataFrame:
    """Return agreement by model and time step; see `FidelityResult.by_step`.

    Parameters
    ----------
    ids
        The models.
    own, baselines
        Emulations at the thetas, and by the name of the baseline.
    read
        The baselines that have outputs.
    """
    every = {"": own, **{f"_{name}": baseline for name, baseline in baselines.items()}}
    steps = {suffix: emulated.steps for suffix, emulated in every.items()}
    mine = steps[""]
    if mine is None:
        return pd.DataFrame(columns=["model", "step", "samples", "hidden_r2", "hidden_error"])
    rows, numbers = np.nonzero(mine.samples)
    found: dict[str, Any] = {
        "model": np.array(ids, dtype=object)[rows],
        "step": numbers,
        "samples": mine.samples[rows, numbers],
    }
    outputs = not np.isnan(mine.output_divergence).all()
    for column in ("hidden_r2", "hidden_error", "output_agreement", "output_divergence"):
        for suffix, one in steps.items():
            if not column.startswith("output") or (outputs and suffix[1:] in {"", *read}):
                found[f"{column}{suffix}"] = getattr(one, column)[rows, numbers]
    return pd.DataFrame(found | {"note": _notes(found)})


def _notes(found: Mapping[str, NDArray[np.float64]]) -> NDArray[np.str_]:
    """Return why figures are missing."""
    parts = [np.where(np.isnan(found["hidden_r2"]), "states are alike in all samples", "")]
    if "output_divergence" in found:
        none = np.isnan(found["output_divergence"])
        alike = np.isnan(found["output_agreement"]) & ~none
        parts.append(
            np.select([none, alike], ["no output per step", "outputs are alike in all samples"], "")
        )
    joined = ["; ".join(filter(None, texts)) for texts in zip(*parts, strict=True)]
    return np.array(joined, dtype=object)
