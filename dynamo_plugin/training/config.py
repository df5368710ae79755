"""Everything that decides a fit, beside the population."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from dynamo_plugin.errors import InvalidConfig, suggest
from dynamo_plugin.types import JSON

__all__ = ["PRESETS", "FitConfig"]

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "paper": {
        "leading_dim": None,
        "theta_init": "random",
        "state_map": "affine",
        "state_map_solver": "gradient",
        "alignment_weight": 0.0,
        "settle_readouts": False,
        "token_init": "random",
        "family_options": {"readout": "shared"},
    },
}
"""Settings that go together: `fit(population, **PRESETS["paper"])`.

- `paper`: the method as Cotler et al. 2023 (arXiv:2302.14078) have it: free affine maps that are
  learned with everything else from a random start, and a readout that does not see theta.
"""


@dataclass(frozen=True, slots=True)
class FitConfig:
    """The settings of one fit; with a population, it determines the result."""

    family: str = "gru"
    """Registered name of the meta-model family."""
    family_options: Mapping[str, JSON] = field(default_factory=dict)
    """Keyword arguments of the family, for example {"units": 256}."""
    embedding_dim: int | Literal["auto"] = 16
    """Length of theta. `auto`: the leading dimensions alone."""
    leading_dim: int | Literal["auto"] | None = "auto"
    """How many dimensions of theta say what distinguishes the networks. They come first, are
    learned first, with alignment, and then stay as they are; the others are learned after them, for
    what is private to each network, and are small. `auto`: as many as there are principal
    components of the networks' aligned states that stand out, see `dominant_components`. None: all
    dimensions are learned together, which is the paper's way."""
    leading_share: float = 0.4
    """Share of the steps in which the leading dimensions are learned, where there are others."""
    private_scale: float = 0.01
    """Unit of the other dimensions. They are learned like the leading ones and then written so much
    smaller, so that distances say what the leading dimensions say, and these break ties."""
    sites: tuple[str, ...] | None = None
    """Sites whose states are joined, unit by unit, into the hidden state; None for all."""
    state_map: str = "affine"
    """How the meta-model's states become those of a base model: `affine` (the paper), `linear`,
    `orthogonal`, `shared`, `mlp` or `amortised`; see `dynamo_plugin.metamodels.STATE_MAPS`."""
    state_map_solver: Literal["gradient", "ridge"] | None = None
    """`gradient`: state maps are learned with everything else. `ridge`: they are solved in closed
    form at every step, and in the end for all training samples. None: `ridge` for maps that have a
    closed form."""
    alignment_weight: float = 1.0
    """Adds this times the hidden loss of one amortised map for all models, on states that were
    aligned beforehand, while the leading dimensions are learned: what a free map per model can
    absorb, theta then has to carry."""
    hidden_loss: str = "l2"
    """Registered name of d_h."""
    hidden_scale: Literal["variance", "none"] = "variance"
    """`variance`: the hidden loss of a model is in units of the standard deviation of its states,
    so that every model counts alike whatever the size of its states. `none`: as recorded."""
    output_loss: str | Mapping[str, str] | None = None
    """Registered name of d_y, or one per output group; None: `kl` where a sequence has one output
    of at least two entries, taken as logits, and `mse` elsewhere."""
    settle_readouts: bool = True
    """Whether readouts, after the last step, are fitted to many outputs at once, all else held: a
    convex problem, see `dynamo_plugin.training.readings`."""
    output_weight: float = 1.0
    """The weight lambda of the output loss."""
    token_init: Literal["responses", "random"] = "responses"
    """Where the token embedding starts, if inputs are ids. `responses`: from what each token does
    to the states of the base models (see `embed_token_responses`). `random`: as the family draws
    it, which is the paper's way and takes several times as many steps."""
    steps: int = 500
    """Optimiser steps."""
    batch_size: int = 32
    """Sequences per step; every model of the step sees all of them."""
    length_buckets: int = 1
    """So many batches are drawn at once and cut anew in the order of the samples' lengths, which
    saves padding where lengths differ; 1: not at all."""
    models_per_step: int | None = None
    """Models per step, drawn without replacement; None for all."""
    learning_rate: float = 1e-2
    """Peak rate of Adam for the meta-model and the state maps."""
    theta_learning_rate: float | None = None
    """Peak rate for the thetas; None for learning_rate."""
    token_learning_rate: float | None = None
    """Peak rate for the token embedding; None for a tenth of learning_rate where it starts from
    responses, for Adam moves tokens that occur seldom as far as those that occur often, and for
    learning_rate elsewhere."""
    theta_decay: float = 0.1
    """Adds theta_decay / 2 |theta_n|^2 to the loss of model n, which starts near 1 where the
    hidden loss is normalised. Too little, and networks that are the same but for a permutation of
    their units are no longer neighbours."""
    theta_init: Literal["components", "random"] = "components"
    """Where thetas start. `components`: the leading dimensions along the principal components of
    the networks' aligned states, the others at zero. `random`: near zero."""
    theta_std: float = 0.01
    """Standard deviation of thetas that start at random. At 1 they keep their random places."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the learning rates do after the warm-up: fall to zero along a cosine, or stay."""
    warmup: int = 10
    """Steps of linear warm-up."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    patience: int | None = None
    """Stop where neither the held-out loss nor the thetas changed at so many looks, of which there
    are 25 in a fit, since all dimensions are learned; None: make all steps."""
    min_improvement: float = 0.005
    """Share by which the best held-out loss has to fall to count as a change."""
    min_theta_movement: float = 0.01
    """Share of their spread by which thetas have to move between two looks, likewise."""
    held_out: float = 0.2
    """Share of the samples kept aside; every reported figure is computed on them."""
    seed: int = 0
    """Decides the split, the initial values and the order of the batches."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "length_buckets"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("models_per_step", "patience"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "at least 1, or None")
        dim = self.embedding_dim
        fits = dim >= 1 if isinstance(dim, int) else dim == "auto"
        self._require("embedding_dim", fits, "at least 1, or 'auto'")
        leading = self.leading_dim
        fits = leading >= 1 if isinstance(leading, int) else leading in ("auto", None)
        self._require("leading_dim", fits, "at least 1, 'auto' or None")
        if isinstance(dim, int) and isinstance(leading, int):
            self._require("leading_dim", leading <= dim, f"at most embedding_dim ({dim})")
        for name in ("leading_share", "private_scale"):
            self._require(name, 0 < getattr(self, name) < 1, "between 0 and 1")
        for name in ("min_improvement", "min_theta_movement"):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        for name in ("learning_rate", "clip", "theta_std"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("output_weight", "theta_decay", "warmup", "alignment_weight"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("theta_learning_rate", "token_learning_rate"):
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "above 0, or None")
        self._require("schedule", self.schedule in ("cosine", "constant"), "'cosine' or 'constant'")
        self._require("held_out", 0 < self.held_out < 1, "between 0 and 1")
        self._require(
            "hidden_scale", self.hidden_scale in ("variance", "none"), "'variance' or 'none'"
        )
        self._require(
            "token_init", self.token_init in ("responses", "random"), "'responses' or 'random'"
        )
        self._require(
            "theta_init", self.theta_init in ("components", "random"), "'components' or 'random'"
        )
        # Copies, so that what the caller does to his own mappings later changes nothing here.
        object.__setattr__(self, "family_options", dict(self.family_options))
        if isinstance(self.output_loss, Mapping):
            object.__setattr__(self, "output_loss", dict(self.output_loss))
        if self.sites is not None:
            object.__setattr__(self, "sites", tuple(self.sites))

    def _require(self, name: str, holds: bool, expected: str) -> None:  # noqa: FBT001
        if not holds:
            raise InvalidConfig(f"{name} must be {expected}, got {getattr(self, name)!r}.")

    def to_json(self) -> dict[str, JSON]:
        """Return plain JSON values, one per field."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["family_options"] = dict(self.family_options)
        if isinstance(self.output_loss, Mapping):
            values["output_loss"] = dict(self.output_loss)
        if self.sites is not None:
            values["sites"] = list(self.sites)
        return values

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> FitConfig:
        """Build from keyword arguments; a misspelled name is an error that suggests.

        >>> FitConfig.from_options({"theta_dekay": 10})
        Traceback (most recent call last):
            ...
        dynamo_plugin.errors.InvalidConfig: Unknown setting 'theta_dekay'. Did you mean ...
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in options:
            if name not in known:
                raise InvalidConfig(f"Unknown setting {name!r}. {suggest(name, known)}")
        try:
            return cls(**options)
        except TypeError as error:
            raise InvalidConfig(f"A setting has the wrong type: {error}.") from error
