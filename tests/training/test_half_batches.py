"""An evaluation that runs out of memory halves its batches once; its records are those of one that did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from dpo_diag import load_run
from dpo_diag.training import DiagDPOTrainer

from .tiny import arguments, make_model, make_pairs


@pytest.mark.slow
def test_records_of_half_batches_are_those_of_whole_ones(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """7 pairs in batches of 4, the second of which fails: all 7 are measured again in batches of 2."""
    sizes: list[int] = []

    def evaluated(name: str, fails: bool) -> Any:
        trainer = DiagDPOTrainer(
            model=make_model(1), ref_model=make_model(2), processing_class=tokenizer, recorder=tmp_path / name,
            args=arguments(tmp_path / "out"), train_dataset=Dataset.from_list(make_pairs(4)),
            eval_dataset={"a": Dataset.from_list(make_pairs(7, seed=1)), "b": Dataset.from_list(make_pairs(3, seed=2))},
        )  # fmt: skip
        step = trainer.prediction_step

        def limited(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            sizes.append(len(inputs["input_ids"]) // 2)
            if fails and len(sizes) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return step(model, inputs, *args, **kwargs)

        monkeypatch.setattr(trainer, "prediction_step", limited)
        metrics = trainer.evaluate()
        # TRL's own means are of batches, and stand there only where they differ.
        return {k: v for k, v in metrics.items() if not any(x in k for x in ("runtime", "per_second", "trl/"))}

    whole, sizes[:] = evaluated("whole", False), []
    half = evaluated("half", True)
    assert sizes == [4, 3, 2, 2, 2, 1, 2, 1]
    assert half == pytest.approx(whole, rel=1e-5, abs=1e-5)
    a, b = (load_run(tmp_path / name).pairs.set_index(["split", "pair_id", "side"]) for name in ("whole", "half"))
    assert len(a) == len(b) == 20
    assert (a["sum_logp"] - b["sum_logp"].reindex(a.index)).abs().max() < 1e-5
    (said,) = [r.message for r in caplog.records if "out of memory" in r.message]
    assert said.endswith("out of memory in an evaluation: its batches are halved, from 4 to 2")
