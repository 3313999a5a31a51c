"""The callback in the other trainers of TRL, whatever they train: pairs are scored and prompts answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from dpo_diag import load_run
from dpo_diag.diagnosis.explanation import explain
from dpo_diag.losses import LossSpec
from dpo_diag.training import DiagCallback

from .plain import assert_rows, score_pairs
from .tiny import make_model, make_pairs

PROBE = make_pairs(4, seed=1)
PAIRS = make_pairs(6)
COMMON: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [], "logging_steps": 1,
    "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-3, "max_steps": 2, "seed": 7,
    "per_device_train_batch_size": 2, "dataloader_pin_memory": False,
}  # fmt: skip
ANSWERS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
UNPAIRED = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS
    for side in ("chosen", "rejected")
]


def trainer_of(kind: str, folder: Path, **options: Any) -> Any:
    known = {"model": make_model(1), **options}
    if kind == "sft":
        return SFTTrainer(args=SFTConfig(str(folder), **COMMON), train_dataset=Dataset.from_list(ANSWERS), **known)
    if kind == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        args = ORPOConfig(str(folder), max_length=32, **COMMON)
        return ORPOTrainer(args=args, train_dataset=Dataset.from_list(PAIRS), **known)
    if kind == "cpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        args = CPOConfig(str(folder), loss_type="simpo", cpo_alpha=0.0, max_length=32, **COMMON)
        return CPOTrainer(args=args, train_dataset=Dataset.from_list(PAIRS), **known)
    if kind == "kto":
        from trl.experimental.kto import KTOConfig, KTOTrainer

        args = KTOConfig(str(folder), max_length=32, **COMMON)
        return KTOTrainer(args=args, train_dataset=Dataset.from_list(UNPAIRED), ref_model=make_model(1), **known)
    args = GRPOConfig(str(folder), num_generations=2, max_completion_length=4, **COMMON)
    return GRPOTrainer(
        reward_funcs=lambda completions, **_: [float(len(c)) for c in completions], args=args,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in PAIRS]), **known,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # those trainers' own
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("sft", ()), ("orpo", ("orpo",)),
        *(pytest.param(kind, names, marks=pytest.mark.slow)
          for kind, names in (("cpo", ()), ("kto", ("kto",)), ("grpo", ()))),
    ],
)  # fmt: skip
def test_any_objective(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    names: tuple[str, ...],
) -> None:
    """Steps 0 and 2: rows of the start are those of a plain loop; losses are those of a training without it."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    own = DiagCallback(
        PROBE, [{"id": "a", "prompt": "1 cat:"}], tmp_path / "run", decoding={"max_new_tokens": 3}, max_length=32
    )
    logged = []
    for callbacks in ([own], []):
        trainer = trainer_of(kind, tmp_path / "out", processing_class=tokenizer, callbacks=callbacks)
        trainer.train()
        logged.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert logged[0] == logged[1] and len(logged[0]) == 2
    run = load_run(tmp_path / "run")
    assert run.alerts["message"].tolist() == []
    assert sorted(set(run.pairs["step"])) == sorted(set(run.outputs.query("model == 'policy'")["step"])) == [0, 2]
    rows = run.pairs[run.pairs["step"] == 0]
    assert_rows(rows, score_pairs(make_model(1), tokenizer, PROBE, max_length=32), ("sum_logp", "n_tokens"), 1e-4)
    assert run.history.query("split == 'train' and name == 'loss'")["value"].tolist() == logged[0]
    assert run.info.loss_names == names
    if kind == "cpo":  # the trainer's own arguments tell all of it
        assert run.info.loss == LossSpec(types=("simpo",), beta=0.1, coefficients={"simpo_gamma": 0.5})
        assert run.info.reference_free and explain(run)["loss"]["max_pair_residual"] < 1e-9
    else:
        assert run.info.loss is None and run.info.loss_reason
