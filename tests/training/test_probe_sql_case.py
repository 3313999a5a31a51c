"""The embedded text-to-SQL case with the callback beside our own trainer: the same numbers from two roads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from dpo_diag import load_run
from dpo_diag.commands.hydra_app import register, to_config
from dpo_diag.config import Config, conf_dir
from dpo_diag.training import DiagCallback, job

KEY = ["step", "role", "pair_id", "side"]


@pytest.mark.slow
@pytest.mark.timeout(900)  # it trains the case's SFT model first
def test_the_callback_has_the_records_of_our_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The held-out pairs as the probe set, the case's prompts as its prompts: sums equal to 1e-5 of them at every
    step that both measured, answers equal token by token, perplexities and margins in history likewise."""
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        overrides = [
            "experiment=sql_dpo",
            "trainer.max_steps=12",
            "trainer.eval_steps=6",
            f"task.cache={tmp_path}/cache",
        ]
        config = to_config(compose("config", overrides=overrides), Config)
    real = job._trainer

    def with_callback(config: Any, folder: Path, inputs: Any, arguments: Any) -> Any:
        trainer = real(config, folder, inputs, arguments)
        decoding = {"max_new_tokens": config.prompts.max_new_tokens}
        trainer.add_callback(
            DiagCallback(inputs.evals[""], inputs.prompts, tmp_path / "probe", decoding=decoding, batch_size=32)
        )
        return trainer

    monkeypatch.setattr(job, "_trainer", with_callback)
    job.train(config, tmp_path / "own", lambda line: None)
    runs = load_run(tmp_path / "own"), load_run(tmp_path / "probe")
    own, probe = (
        run.read("pairs", splits=[split]).sort_values(KEY) for run, split in zip(runs, ("eval", "probe"), strict=True)
    )
    assert own[KEY].to_numpy().tolist() == probe[KEY].to_numpy().tolist()
    assert sorted(set(own["step"])) == [0, 6, 12]
    for name in ("sum_logp", "n_tokens", "n_bytes", "top1", "entropy_sum"):
        a, b = (frame[name].to_numpy(dtype=float) for frame in (own, probe))
        known = ~np.isnan(a)
        assert known[own["role"] == "policy"].all()
        np.testing.assert_allclose(a[known], b[known], rtol=1e-5, atol=1e-5, err_msg=name)
    histories = [
        run.history.query(f"split == '{split}'").set_index(["step", "name"])["value"]
        for run, split in zip(runs, ("eval", "probe"), strict=True)
    ]
    shared = histories[0].index.intersection(histories[1].index)
    assert {"loss", "rewards/margins", "ppl_seq_mean/chosen"} <= set(shared.get_level_values("name"))
    np.testing.assert_allclose(histories[0][shared], histories[1][shared], rtol=1e-5, atol=1e-5)
    answers = [run.outputs.set_index(["step", "model", "prompt_id"])["text"] for run in runs]
    common = answers[0].index.intersection(answers[1].index)
    assert len(common) >= 2 * len(runs[1].outputs["prompt_id"].unique())
    assert (answers[0][common] == answers[1][common]).all()
