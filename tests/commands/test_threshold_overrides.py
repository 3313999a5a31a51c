"""The thresholds as dpo-train and dpo-score compose them."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from dpo_diag.commands.hydra_app import register, to_config
from dpo_diag.config import Config, conf_dir
from dpo_diag.config_checkpoints import ScoreConfig
from dpo_diag.thresholds import defaults, load_thresholds


@pytest.mark.parametrize(("name", "schema"), [("config", Config), ("score", ScoreConfig)])
def test_an_override_reaches_the_thresholds(name: str, schema: type) -> None:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        overrides = ["checks.verdict.least_harm=0.25", "checks.spike_mads=9"]
        checks = to_config(compose(name, overrides=overrides), schema).checks  # type: ignore[type-var]
    assert load_thresholds(checks) == {**defaults(), "verdict.least_harm": 0.25, "spike_mads": 9.0}
