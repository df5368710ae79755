"""Settings of a fit: ranges, misspellings, round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dynamo_plugin.errors import InvalidConfig
from dynamo_plugin.training import FitConfig


def test_round_trip_through_json() -> None:
    config = FitConfig(
        family_options={"units": 12},
        sites=("rnn",),
        output_loss={"digits": "kl"},
        models_per_step=3,
        theta_learning_rate=0.1,
    )
    assert FitConfig.from_options(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, or 'auto', got 0"),
        ({"steps": -1}, "steps must be at least 1"),
        ({"held_out": 1.0}, "held_out must be between 0 and 1"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"hidden_scale": "std"}, "hidden_scale must be 'variance' or 'none', got 'std'"),
        ({"models_per_step": 0}, "models_per_step must be at least 1, or None"),
        ({"output_weight": float("nan")}, "output_weight must be at least 0, got nan"),
        ({"embeding_dim": 3}, "Unknown setting 'embeding_dim'. Did you mean 'embedding_dim'"),
        ({"steps": "many"}, "wrong type"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        FitConfig.from_options(options)


def test_later_changes_to_the_callers_mapping_change_nothing() -> None:
    options: dict[str, Any] = {"units": 12}
    config = FitConfig(family_options=options)
    options["units"] = 13
    assert config.family_options == {"units": 12}
