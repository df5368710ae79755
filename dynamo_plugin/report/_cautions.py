"""What a reader must know before he believes a model embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo_plugin.analyses import FidelityResult

if TYPE_CHECKING:
    import pandas as pd

    from dynamo_plugin.embedding import ModelEmbedding

__all__ = ["find_cautions"]

FEW_SAMPLES = 20
"""Below this many held-out samples, every figure is coarse."""

LAST_PART = 0.2
"""Share of the training that counts as its end."""

STILL_RISING = 0.02
"""Gain of held-out R2 over the end of the training from which more steps seem worthwhile."""

STILL_MOVING = 0.1
"""Path of the thetas over the end of the training, as a share of their length, above which they
had not settled."""

POOR_AGREEMENT = 0.7
"""Mean agreement of outputs below which emulations do something else."""

LITTLE_GAIN = 0.005
"""Gain of hidden R2 over the mean theta below which thetas carry next to nothing."""


def find_cautions(embedding: ModelEmbedding, fidelity: FidelityResult) -> list[str]:
    """Return sentences, the gravest first; none if there is nothing to warn of."""
    table, cautions = fidelity.table, []
    if embedding.stopped not in (None, "settled"):
        cautions.append(
            f"The fit ended before its {embedding.config.steps} steps were made "
            f"({embedding.stopped}); going on with it would change everything below."
        )
    low = fidelity.below_threshold
    if low:
        shown = ", ".join(low[:5]) + (f" and {len(low) - 5} more" if len(low) > 5 else "")
        cautions.append(
            f"{len(low)} of {len(table)} models are emulated with a hidden R² below "
            f"{fidelity.threshold:g}: {shown}. Their thetas say little about them. More steps, "
            "or a wider meta-model, may help."
        )
    others = [model for model in fidelity.not_interpretable if model not in low]
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        cautions.append(
            f"The thetas of {len(others)} more of {len(table)} models should not be interpreted: "
            f"{shown}. The table of fidelity says why of each."
        )
    for kind, agreement in table.groupby("output_kind")["output_agreement"]:
        if agreement.mean() < POOR_AGREEMENT:
            what = "decisions agree in" if kind == "decisions" else "outputs have an R² of"
            cautions.append(
                f"The emulated {what} {agreement.mean():.2f} on average: the emulations do not do "
                "what the networks do. A larger output_weight or more steps may help."
            )
    gain = float((table["hidden_r2"] - table["hidden_r2_mean_theta"]).mean())
    if gain < LITTLE_GAIN:
        cautions.append(
            f"Networks run at their own theta are emulated no better than at the mean theta "
            f"(hidden R² {gain:+.3f}): the state maps carry the differences, thetas hardly any. "
            "Distances between thetas mean little here."
        )
    cautions += _unsettled(embedding.history)
    if fidelity.sample_count < FEW_SAMPLES:
        cautions.append(
            f"Only {fidelity.sample_count} samples were kept aside; all figures are coarse."
        )
    return cautions


def _unsettled(history: pd.DataFrame) -> list[str]:
    if len(history) < 2:
        return ["The fit is too short for training curves; it has hardly begun to settle."]
    end = history["step"] > (1 - LAST_PART) * history["step"].iloc[-1]
    before, after = history[~end], history[end]
    if before.empty:
        return []
    found = []
    path = float(after["theta_movement"].sum() / max(history["theta_norm"].iloc[-1], 1e-12))
    if path > STILL_MOVING:
        found.append(
            f"Thetas were still moving at the end: over the last {LAST_PART:.0%} of the steps they "
            f"went {path:.0%} of their length. More steps would change the embedding."
        )
    rise = float(after["held_out_hidden_r2"].iloc[-1] - before["held_out_hidden_r2"].iloc[-1])
    if rise > STILL_RISING:
        found.append(
            f"Held-out hidden R² still rose by {rise:.3f} over the last {LAST_PART:.0%} of the "
            "steps. More steps would emulate the networks better."
        )
    return found
