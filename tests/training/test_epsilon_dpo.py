"""ε-DPO: each pair's own beta, by hand, against its authors' formula on whole logits, and in a training's records."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl.kernels import ChunkedLogProbFunction

from dpo_diag import load_run
from dpo_diag.diagnosis.causes import causes
from dpo_diag.diagnosis.explanation import explain
from dpo_diag.errors import DiagError
from dpo_diag.training import DiagDPOTrainer
from dpo_diag.training.epsilon_dpo import RunningBeta, pair_betas
from dpo_diag.training.guards.guards import Raised
from dpo_diag.training.kept_head import KeptHead

from .tiny import arguments, make_model, make_pairs

EPSILON = 0.2


def trainer_of(folder: Path, tokenizer: Any, noise: float = 0.05, shared_prefix: str = "off", **options: Any) -> Any:
    evaluation = {"eval_strategy": "steps", "eval_steps": 2} if options.get("recorder") else {}
    recorder = options.pop("recorder", None)
    return DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(1, noise=noise), processing_class=tokenizer, recorder=recorder,
        args=arguments(folder / "out", loss_type="epsilon_dpo", beta=0.3, **evaluation, **options),
        train_dataset=Dataset.from_list(make_pairs(12)), eval_dataset=Dataset.from_list(make_pairs(6, seed=1)),
        loss_coefficients={"epsilon": EPSILON}, shared_prefix=shared_prefix,
    )  # fmt: skip


def test_a_pairs_beta_by_hand() -> None:
    """Two words, answers of one token, chosen the first word and rejected the second, each in a context of its own
    where the policy's logits are (u, 0) and the reference's (v, 0): under the share s the chosen one has
    log sigmoid(u + s (u - v)), the rejected one log sigmoid(-(u + s (u - v))). With epsilon 0.5 and beta 0.3:

    - chosen and rejected u 1, v 0: r = log sigmoid(1 + s) - log sigmoid(-1 - s) = 1 + s rises: 0.3 / 1.5 = 0.2;
    - both u 0, v 1: r = -s falls: 0.3 / 0.5 = 0.6;
    - chosen u 0, v -1, rejected u 2, v 2.5: r = log sigmoid(s) - log sigmoid(-2 + s / 2) is 1.376130, 1.433781 and
      1.436147 at the shares -1/2, 0 and 1/2: rises; with v 2.6 it is 1.421468, 1.433781 and 1.393709: neither;
    - policy and reference alike: neither.
    """
    # (chosen u, v, rejected u, v) of each pair
    pairs = [(1, 0, 1, 0), (0, 1, 0, 1), (0, -1, 2, 2.5), (0, -1, 2, 2.6), (0.7, 0.7, -3, -3)]
    ours = torch.tensor([p[0] for p in pairs] + [p[2] for p in pairs], dtype=torch.float32)
    theirs = torch.tensor([p[1] for p in pairs] + [p[3] for p in pairs], dtype=torch.float32)
    kept = KeptHead(ChunkedLogProbFunction)
    targets = torch.tensor([0] * 5 + [1] * 5)
    for first in (ours, theirs):
        weight = torch.stack([first, torch.zeros(10)])
        kept.apply(torch.eye(10), weight, None, targets, 1.0, 32768, None, 1.0, ("log_probs",))
    found = pair_betas(kept, torch.ones(10, 1, dtype=torch.bool), 0.3, 0.5)
    assert found.tolist() == pytest.approx([0.2, 0.6, 0.2, 0.3, 0.3], abs=1e-12)
    with pytest.raises(RuntimeError, match="policy and reference"):
        pair_betas(KeptHead(ChunkedLogProbFunction), torch.ones(10, 1, dtype=torch.bool), 0.3, 0.5)


def betas_of_whole_logits(trainer: Any, inputs: dict[str, Any]) -> np.ndarray:
    """The authors' formula (oddqueue/e-dpo, `concatenated_forward` and `dpo_loss`), in float64."""
    labels, mask = inputs["input_ids"][:, 1:], inputs["completion_mask"][:, 1:]
    asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        policy, reference = (
            (m.model(**asked).last_hidden_state @ m.lm_head.weight.T).double()[:, :-1]
            for m in (trainer.model, trainer.ref_model)
        )

    def ratios(logits: torch.Tensor) -> torch.Tensor:
        logps = logits.log_softmax(-1).gather(2, labels.unsqueeze(2)).squeeze(2)
        chosen, rejected = (logps * mask).sum(-1).chunk(2)
        return chosen - rejected

    now = ratios(policy)
    up = ratios((1 + EPSILON) * policy - EPSILON * reference)
    down = ratios((1 - EPSILON) * policy + EPSILON * reference)
    steps = 1 * ((up > now) & (now > down)) - 1 * ((down > now) & (now > up))
    return (0.3 / (1 + EPSILON * steps)).numpy()


@pytest.mark.parametrize("shared_prefix", ["off", "on"])
def test_the_betas_are_those_of_whole_logits(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, shared_prefix: str
) -> None:
    trainer = trainer_of(tmp_path, tokenizer, noise=0.2, shared_prefix=shared_prefix, per_device_train_batch_size=12)
    seen: list[Any] = []
    trainer.observe, trainer.is_in_train = seen.append, True
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer._compute_loss(trainer.model.train(), dict(inputs), False)
    expected = betas_of_whole_logits(trainer, inputs)
    assert set(expected.round(6)) == {0.25, 0.375}  # both ways; a pair in between is rare
    np.testing.assert_allclose(seen[0].of_row["beta"], expected, rtol=1e-6)
    a, b = seen[0].policy["sum_logp"] - seen[0].reference["sum_logp"]
    plain = np.logaddexp(0, -expected * (a - b)).mean()
    assert float(loss.detach()) == pytest.approx(plain, rel=1e-5)
    assert trainer.shared_prefix.way == ("packed" if shared_prefix == "on" else "plain")


def test_they_are_recorded_and_explain_splits_the_loss(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The policy starts at its reference: every beta is 0.3 then, and the loss ln 2. Afterwards each pair's row holds
    its own, the recomputed loss is the trained one, and what the betas did is a part of the change of its own."""
    trainer = trainer_of(tmp_path, tokenizer, noise=0.0, recorder=tmp_path / "run", learning_rate=0.02)
    trainer.train()
    logged = [r for r in trainer.state.log_history if "loss_residual" in r or "eval_loss_residual" in r]
    assert max(r.get("loss_residual", r.get("eval_loss_residual")) for r in logged) < 1e-5
    run = load_run(tmp_path / "run")
    rows = run.pairs.query("split == 'eval' and role == 'policy'").astype({"step": int})
    assert rows.query("step == 0")["beta"].tolist() == [0.3] * 12
    last = rows.query("step == 4").pivot(index="pair_id", columns="side", values="beta")
    row = next(r for r in reversed(logged) if "eval_loss" in r)
    base = row["eval_base_beta"]  # no longer 0.3
    assert (last["chosen"] == last["rejected"]).all() and base != 0.3
    assert set((base / last["chosen"]).round(6)) <= {1.2, 1.0, 0.8}
    assert row["eval_pair_beta"] == pytest.approx(last["chosen"].mean())
    for start in (0, None):  # the first step, and the reference
        document = explain(run, from_step=start)
        loss = document["loss"]
        assert loss["from"] == pytest.approx(np.log(2), abs=1e-6) and loss["to"] == pytest.approx(row["eval_loss"])
        assert loss["pair_beta"] == pytest.approx([0.3, last["chosen"].mean()])
        parts = loss["chosen_part"] + loss["rejected_part"] + loss["coefficient_part"]
        assert parts == pytest.approx(loss["delta"], abs=1e-12) and loss["coefficient_part"] != 0
        along = document["along_the_run"]["loss_along_the_run"]
        assert abs(along["residual"]) < 1e-12 and along["delta"] == pytest.approx(loss["delta"])
        assert any("each pair's own beta: mean 0.3" in sentence.text for sentence in causes(document))


def test_where_it_cannot_be(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DiagError, match="asks for the reference's distributions"):
        trainer_of(tmp_path, tokenizer, precompute_ref_log_probs=True)


def test_beta_moves_with_the_mean_of_its_pairs_steps() -> None:
    """Epsilon 0.5. Two micro-batches of a step: betas 0.2, 0.2 (up: 0.3 / 1.5) and 0.6 (down), 0.3: s is 1/4, and beta
    becomes 0.3 / (1 + 0.5 / 4) = 0.3 / 1.125. A step that is left out, or had no pair, moves nothing."""
    running, alone = RunningBeta(), SimpleNamespace(num_processes=1)
    for of_pairs in ([0.2, 0.2], [0.6, 0.3]):
        running.see(0.3, torch.tensor(of_pairs, dtype=torch.float64))
    assert running.after_update(1.0, alone, dropped=False) == pytest.approx(1 / 1.125, abs=1e-12)
    running.see(0.3, torch.tensor([0.2], dtype=torch.float64))
    assert running.after_update(0.7, alone, dropped=True) == 0.7
    assert running.after_update(0.7, alone, dropped=False) == 0.7


def test_beta_moves_with_each_update_and_goes_on_where_a_checkpoint_left_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Two micro-batches of 2 pairs a step, a row each 2 steps, stopped behind step 3, inside a window: the betas behind
    each step are the last one's by the mean over its 4 pairs, and those of the resumed training go on to the same."""

    class Watch(TrainerCallback):
        def __init__(self, last: int) -> None:
            self.last, self.betas = last, dict[int, float]()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.betas[state.global_step] = trainer.base_beta
            control.should_training_stop = state.global_step == self.last

    expected = {0: 0.3}
    options = {
        "max_steps": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 2,
        "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.02,
    }  # fmt: skip
    found = {}
    for name, parts in (("whole", [4]), ("parted", [3, 4])):
        for i, last in enumerate(parts):
            trainer = trainer_of(tmp_path / name, tokenizer, noise=0.2, **options)
            trainer.add_callback(watch := Watch(last))
            if name == "whole":
                seen, observe = [], trainer.observe
                trainer.observe = lambda batch, seen=seen, observe=observe: (seen.append(batch), observe(batch))[1]
            trainer.train(resume_from_checkpoint=True if i else None)
            found.setdefault(name, {}).update(watch.betas)
    assert len(seen) == 8
    for step in range(4):
        own = np.concatenate([batch.of_row["beta"] for batch in seen[2 * step : 2 * step + 2]])
        ratios = expected[step] / own
        assert set(ratios.round(6)) <= {1.2, 1.0, 0.8}
        expected[step + 1] = expected[step] / ratios.mean()
    assert found["whole"] == pytest.approx({step: expected[step] for step in (1, 2, 3, 4)}, rel=1e-12)
    assert found["whole"][4] != 0.3 and found["parted"] == found["whole"]
    assert trainer.state.log_history[-2]["base_beta"] == found["whole"][4]


def test_beta_stays_where_a_gradient_scaler_left_the_update_out_and_comes_back_with_a_checkpoint(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Step 2 overflows under fp16, as accelerate says it. Behind step 4 the checkpoint of step 1 is restored, and with
    it the beta that its policy had come to."""

    class Overflow(TrainerCallback):
        def __init__(self) -> None:
            self.betas = dict[int, float]()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.optimizer._is_overflow = state.global_step == 1

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.betas[state.global_step] = trainer.base_beta

    trainer = trainer_of(
        tmp_path, tokenizer, noise=0.2, max_steps=4, save_strategy="steps", save_steps=1, learning_rate=0.02
    )
    trainer.add_callback(seen := Overflow())
    trainer.train()
    betas = seen.betas
    assert betas[2] == betas[1] != 0.3 and len({betas[1], betas[3], betas[4]}) == 3
    for name in (2, 3, 4):
        shutil.rmtree(tmp_path / "out" / f"checkpoint-{name}")
    trainer._restore(Raised("loss_spike", "restore", 4, "", {}))
    assert trainer.base_beta == betas[1]
