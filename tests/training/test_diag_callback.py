"""The callback in other people's trainers: what it writes is what a plain loop finds, and it leaves no trace."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOTrainer

import dpo_diag
from dpo_diag import load_run
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec
from dpo_diag.models.decoding import Decoding
from dpo_diag.training import DiagCallback, DiagDPOTrainer, probe
from dpo_diag.training.loss_of_arguments import loss_facts

from .plain import assert_rows, score_pairs
from .tiny import arguments, copies, make_model, make_pairs

PROBE = make_pairs(5, seed=1)
PROMPTS = [{"id": "a", "prompt": "1 cat:"}, {"id": "b", "prompt": "2 dog dog dog:"}]
SHORT = Decoding(max_new_tokens=4)
SUMS = ("sum_logp", "n_tokens", "top1", "top5", "entropy_sum", "greedy_logp_sum", "n_bytes", "n_truncated")


def callback(out: Path, **options: Any) -> DiagCallback:
    return DiagCallback(**({"pairs": PROBE, "prompts": PROMPTS, "out": out, "decoding": SHORT} | options))


def dpo(folder: Path, tokenizer: Any, callbacks: Any = (), model: Any = None, **options: Any) -> DPOTrainer:
    """TRL's own trainer."""
    own = {k: options.pop(k) for k in ("peft_config", "ref_model") if k in options}
    known = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    return DPOTrainer(
        model=model or make_model(1), processing_class=tokenizer, callbacks=list(callbacks),
        args=arguments(folder, **(known | options)), train_dataset=Dataset.from_list(make_pairs(11)),
        eval_dataset=Dataset.from_list(make_pairs(3)),
        **(own or {"ref_model": make_model(2)}),
    )  # fmt: skip


class Seen(TrainerCallback):
    """Weights, modes and random states as every step finds them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.states: list[Any] = []

    def _look(self, state: Any, model: Any) -> None:
        self.weights[state.global_step] = {k: v.clone() for k, v in model.state_dict().items()}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._look(state, model)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        numpy_state = np.random.get_state()  # noqa: NPY002
        modes = [(name, m.training, getattr(m, "gradient_checkpointing", None)) for name, m in model.named_modules()]
        gradients = [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()]
        self.states.append(
            (random.getstate(), numpy_state[1].tolist(), torch.get_rng_state().tolist(), modes, gradients,
             model.config.use_cache, self.tokenizer.padding_side, self.tokenizer.truncation_side)
        )  # fmt: skip

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._look(state, model)


def losses(trainer: Any) -> list[dict[str, float]]:
    names = ("loss", "grad_norm", "eval_loss")
    return [{k: row[k] for k in names if k in row} for row in trainer.state.log_history if set(names) & set(row)]


def model_at(seen: Seen, step: int, **options: Any) -> Any:
    model = make_model(1, **options)
    model.load_state_dict(seen.weights[step])
    return model


@pytest.mark.parametrize(
    "kind", ["lora", *(pytest.param(k, marks=pytest.mark.slow) for k in ("dropout", "checkpointing"))]
)
def test_no_trace_in_training(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    """With dropout every loss hangs on the random state. With and without the callback losses and gradient norms are
    the same to the last bit, and so is what every step finds: random states, modes, which weights take gradients."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3, task_type="CAUSAL_LM")
    options: dict[str, Any] = {
        "dropout": {"disable_dropout": False},
        "checkpointing": {"disable_dropout": False, "gradient_checkpointing": True},
        "lora": {"disable_dropout": False, "peft_config": lora},
    }[kind]
    found = []
    for name in ("with", "without"):
        seen, random_state = Seen(tokenizer), random.getstate()
        own = [callback(tmp_path / "run")] if name == "with" else []
        trainer = dpo(tmp_path / name, tokenizer, [*own, seen], make_model(1, attention_dropout=0.2), **options)
        if kind == "lora":  # frozen by hand: PEFT would make it train again where it switches the adapter on
            next(p for n, p in trainer.model.named_parameters() if "lora_A" in n).requires_grad_(False)
        trainer.train()
        found.append((losses(trainer), seen.states))
        random.setstate(random_state)
    assert len(found[0][0]) == 5
    assert found[0] == found[1]
    run = load_run(tmp_path / "run")
    assert sorted(run.pairs["step"].unique()) == [0, 2, 3]
    assert run.info.status == "finished"


def test_rows_are_those_of_a_plain_loop(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Pairs, tokens, answers, the reference at step 0, history, loss and arguments; steps 0, 2 (evaluation), 3 (end).

    At step 0 the policy is its reference, so every margin is 0 and the sigmoid loss ln 2.
    """
    seen = Seen(tokenizer)
    trainer = dpo(tmp_path / "out", tokenizer, [callback(tmp_path / "run"), seen], max_length=10, beta=0.3)
    trainer.train()
    run = load_run(tmp_path / "run")
    start = score_pairs(model_at(seen, 0), tokenizer, PROBE, max_length=10)
    for step in (0, 2, 3):
        rows = run.pairs[run.pairs["step"] == step]
        assert_rows(rows, score_pairs(model_at(seen, step), tokenizer, PROBE, max_length=10), SUMS, 1e-4)
        assert_rows(rows, start, ("sum_logp",), 1e-4, prefix="ref_")
        tokens = run.tokens[run.tokens["step"] == step].groupby(["pair_id", "side"], observed=True)["logp"].sum()
        assert tokens.to_numpy() == pytest.approx(rows.set_index(["pair_id", "side"])["sum_logp"][tokens.index], 1e-5)
    assert run.outputs.groupby("model")["step"].unique().map(list).to_dict() == {"policy": [0, 2, 3], "ref": [0]}
    assert run.texts["chosen"].tolist() == [row["chosen"] for row in PROBE]
    history = run.history.set_index(["split", "step", "name"])["value"]
    assert history["probe", 0, "loss"] == pytest.approx(np.log(2), abs=1e-6)
    logged = {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}
    assert {step: history["train", step, "loss"] for step in (1, 2, 3)} == logged
    assert history["eval", 2, "loss"] == next(r["eval_loss"] for r in trainer.state.log_history if "eval_loss" in r)
    info = run.info
    assert (info.loss.beta, info.training.max_length, info.training.learning_rate) == (0.3, 10, 1e-3)  # type: ignore[union-attr]
    assert (info.reference.kind, info.splits["probe"].role) == ("the policy before the first step", "held_out")
    assert run.files("alerts") == []


def test_equals_the_records_of_our_own_trainer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The evaluation set as the probe set beside DiagDPOTrainer, which reads TRL's own forward: sums to 1e-5 at every
    shared step, and the history that is made of them."""
    held = make_pairs(6, seed=1)
    trainer = DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(1), processing_class=tokenizer, recorder=tmp_path / "own",
        callbacks=[callback(tmp_path / "run", pairs=held)], extra_metrics=("top5", "greedy_logp"),
        args=arguments(tmp_path / "out", max_steps=4, eval_strategy="steps", eval_steps=2, max_length=12),
        train_dataset=Dataset.from_list(make_pairs(11)), eval_dataset=Dataset.from_list(held),
    )  # fmt: skip
    trainer.train()
    key = ["step", "role", "pair_id", "side"]
    own, theirs = (
        load_run(tmp_path / name).read("pairs", splits=[split]).sort_values(key)
        for name, split in (("own", "eval"), ("run", "probe"))
    )
    assert own[key].to_numpy().tolist() == theirs[key].to_numpy().tolist()
    assert sorted(set(own["step"])) == [0, 2, 4]
    for name in SUMS:  # what a TRL batch does not tell of the reference is not known there
        a, b = (frame[name].to_numpy(dtype=float) for frame in (own, theirs))
        assert not np.isnan(a[own["role"] == "policy"]).any()
        np.testing.assert_allclose(a, np.where(np.isnan(a), np.nan, b), rtol=1e-5, atol=1e-5, err_msg=name)
    histories = [
        load_run(tmp_path / name).history.query(f"split == '{split}'").set_index(["step", "name"])["value"]
        for name, split in (("own", "eval"), ("run", "probe"))
    ]
    shared = histories[0].index.intersection(histories[1].index)
    assert {"loss", "rewards/margins", "ppl_seq_mean/chosen"} <= set(shared.get_level_values("name"))
    np.testing.assert_allclose(histories[0][shared], histories[1][shared], rtol=1e-5, atol=1e-5)


class TestReference:
    """Where log-ratios come from; the values are those of a plain loop over that model."""

    def ref_rows(self, folder: Path) -> Any:
        frame = load_run(folder).read("pairs", roles=["ref"])
        assert set(frame["step"]) == {0}
        return frame

    def test_the_adapter_switched_off(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        dpo(tmp_path / "out", tokenizer, [callback(tmp_path / "run")], peft_config=lora, max_steps=1).train()
        assert_rows(self.ref_rows(tmp_path / "run"), score_pairs(make_model(1), tokenizer, PROBE), SUMS, 1e-4)
        assert load_run(tmp_path / "run").info.reference.kind == "adapter switched off"

    def test_a_named_model_then_its_records(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """The second training takes the rows that the first one's run holds, and loads no model."""
        make_model(5).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        own = callback(tmp_path / "first", reference=tmp_path / "model")
        dpo(tmp_path / "out", tokenizer, [own], max_steps=1).train()
        expected = score_pairs(make_model(5), tokenizer, PROBE)
        assert_rows(self.ref_rows(tmp_path / "first"), expected, SUMS, 1e-4)
        (tmp_path / "model" / "config.json").unlink()
        own = callback(tmp_path / "second", reference=tmp_path / "first", pairs=PROBE[:3])
        dpo(tmp_path / "out", tokenizer, [own], max_steps=1).train()
        few = {
            key: row for key, row in expected.items() if key[0] in set(load_run(tmp_path / "second").texts["pair_id"])
        }
        assert len(few) == 6
        assert_rows(self.ref_rows(tmp_path / "second"), few, SUMS, 1e-4)
        assert load_run(tmp_path / "second").info.reference.source == str(tmp_path / "first")

    @pytest.mark.parametrize("unlike", ["max_length", "pairs", "tokenizer"])
    def test_records_that_do_not_fit_are_refused(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, unlike: str
    ) -> None:
        probe.Probe(PROBE[:4], out=tmp_path / "first").score(make_model(5), tokenizer, 0)
        options: dict[str, Any] = {"pairs": PROBE[:4]} | (
            {"max_length": 9} if unlike == "max_length" else {"pairs": PROBE} if unlike == "pairs" else {}
        )
        other = tokenizer
        if unlike == "tokenizer":
            other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="<eos>")
            other.chat_template = "{{ messages }}"
        own = probe.Probe(out=tmp_path / "second", reference=tmp_path / "first", **options)
        why = {"max_length": "was cut elsewhere", "pairs": "it lacks pairs; .*4 of 5", "tokenizer": "another tokenizer"}
        with pytest.raises(DiagError, match=f"does not fit: .*{why[unlike]}"):
            own.score(make_model(1), other, 0)

    def test_none_and_a_start_that_was_not_seen(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = make_model(1)
        own = probe.Probe(PROBE, out=tmp_path / "none", reference=False, loss={"beta": 0.3})
        assert "rewards/margins" not in own.score(model, tokenizer, 0)
        lines: list[str] = []
        own = probe.Probe(PROBE, out=tmp_path / "late", loss={"beta": 0.3}, say=lines.append)
        assert "rewards/margins" not in own.score(model, tokenizer, 7)
        assert own.score(model, tokenizer, 9)["logps/chosen"] < 0
        assert lines == ["no reference: it is the model at step 0, and the first step that was seen is 7"]
        with pytest.raises(DiagError, match="no adapter to switch off"):
            probe.Probe(PROBE, out=tmp_path / "off", reference="adapter").score(model, tokenizer, 0)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, float]]:
    """Losses of a training without the callback."""
    trainer = dpo(tmp_path_factory.mktemp("silent"), tokenizer)
    trainer.train()
    return losses(trainer)


class TestFailures:
    """A failure warns once and stops nothing; losses are those of a training without the callback."""

    def test_out_of_memory_in_scoring(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture, silent: list[dict[str, float]],
    ) -> None:  # fmt: skip
        real = probe.score_pairs

        def full(*args: Any, step: int, **options: Any) -> Any:
            if step in (1, 2):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore")
            return real(*args, step=step, **options)

        monkeypatch.setattr(probe, "score_pairs", full)
        asked = dpo(tmp_path / "b", tokenizer, [callback(tmp_path / "run", every=1)])
        with caplog.at_level(logging.WARNING, "dpo_diag"):
            asked.train()
        assert losses(asked) == silent
        said = [r.message for r in caplog.records if "DiagCallback" in r.message]
        assert len(said) == 1 and "could not measure step 1: OutOfMemoryError: CUDA out of memory" in said[0]
        run = load_run(tmp_path / "run")
        assert sorted(run.pairs["step"].unique()) == [0, 3]
        assert run.alerts[["step", "code"]].values.tolist() == [[1, "probe_failed"], [2, "probe_failed"]]
        assert run.info.status == "finished"

    def test_files_that_break_while_it_trains(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture,
        silent: list[dict[str, float]],
    ) -> None:  # fmt: skip
        """The pairs are read before training, so that a file overwritten later changes nothing; a record that is
        spoilt in the middle ends the recording, not the training. A file that is broken at the start is an error."""
        file = tmp_path / "probe.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in PROBE))

        class Spoil(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 1:
                    file.write_text('{"prompt": "a", "cho')
                elif state.global_step == 2:
                    next((tmp_path / "run" / "pairs").glob("*.parquet")).write_bytes(b"PAR1 nonsense")

        asked = dpo(tmp_path / "b", tokenizer, [callback(tmp_path / "run", pairs=file), Spoil()])
        with caplog.at_level(logging.WARNING, "dpo_diag"):
            asked.train()
        assert losses(asked) == silent
        said = [r.message for r in caplog.records if "DiagCallback" in r.message]
        assert len(said) == 1 and "could not measure step 3: DamagedFile: a record file cannot be read" in said[0]
        with pytest.raises(DiagError, match="no usable preference pair"):
            callback(tmp_path / "run", pairs=file)

    def test_prompts_that_do_not_fit_leave_the_pairs(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        own = probe.Probe(PROBE, prompts=PROMPTS, out=tmp_path / "run", decoding={"max_new_tokens": 200})
        with pytest.raises(DiagError, match=r"prompts were not answered; .*do not fit the model"):
            own.score(make_model(1), tokenizer, 0)
        assert len(load_run(tmp_path / "run").pairs) == 2 * len(PROBE)

    @pytest.mark.slow
    def test_a_training_that_dies(self, tmp_path: Path) -> None:
        """The process ends with an error: the run says failed, and with what; the rows until then are there."""
        script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from datasets import Dataset
from transformers import TrainerCallback
from training.test_diag_callback import callback, dpo
from training.tiny import make_tokenizer
from pathlib import Path
class Die(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise RuntimeError("the node is gone")
dpo(Path({str(tmp_path / "out")!r}), make_tokenizer(), [callback(Path({str(tmp_path / "run")!r})), Die()]).train()
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert "the node is gone" in done.stderr
        run = load_run(tmp_path / "run")
        assert (run.info.status, run.info.error) == ("failed", "RuntimeError: the node is gone")
        assert run.history.query("split == 'train' and name == 'loss'")["step"].tolist() == [1]


def test_resuming_continues_the_run_and_a_new_one_gets_a_number(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoint at 2 of 4; resumed, the rows are those of the training that was never interrupted. A new one gets a
    number, and goes on under it when it is resumed."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    dpo(tmp_path / "whole", tokenizer, [callback(tmp_path / "whole" / "run")], max_steps=4, **options).train()
    dpo(tmp_path / "out", tokenizer, [callback(tmp_path / "run")], max_steps=3, **options).train()
    assert sorted(load_run(tmp_path / "run").pairs["step"].unique()) == [0, 2, 3]
    resumed = dpo(tmp_path / "out", tokenizer, [callback(tmp_path / "run")], max_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    one, two = (load_run(folder).read("pairs") for folder in (tmp_path / "whole" / "run", tmp_path / "run"))
    key = ["step", "role", "pair_id", "side"]
    assert not two.duplicated(key).any()
    merged = one.merge(two, on=key, how="outer", indicator=True)
    assert (merged["_merge"] == "both").all()
    np.testing.assert_allclose(merged["sum_logp_x"], merged["sum_logp_y"], atol=1e-5)
    assert load_run(tmp_path / "run").info.status == "finished"

    options |= {"save_steps": 1, "learning_rate": 1e-2}
    dpo(tmp_path / "again", tokenizer, [callback(tmp_path / "run")], max_steps=1, **options).train()
    assert sorted(load_run(tmp_path / "run-2").pairs["step"].unique()) == [0, 1]
    again = dpo(tmp_path / "again", tokenizer, [callback(tmp_path / "run")], max_steps=2, **options)
    again.train(resume_from_checkpoint=True)
    assert sorted(load_run(tmp_path / "run-2").pairs["step"].unique()) == [0, 1, 2]
    assert sorted(load_run(tmp_path / "run").pairs["step"].unique()) == [0, 2, 4]
    assert f"next: dpo-diag explain {tmp_path / 'run-2'}" in capsys.readouterr().err


def test_a_plain_trainer_every_step_and_a_probe_in_a_loop(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """transformers' Trainer on texts; the probe in a loop of one's own, at the weights of those steps, writes the same
    rows. No loss is named, so there are no rewards."""
    texts = [tokenizer(row["prompt"] + row["chosen"]) for row in make_pairs(8)]
    seen = Seen(tokenizer)
    known = arguments(tmp_path / "out")
    kept = ("use_cpu", "report_to", "logging_steps", "save_strategy", "disable_tqdm", "learning_rate", "max_steps")
    trainer = Trainer(
        make_model(1, attention_dropout=0.1), processing_class=tokenizer, train_dataset=texts,  # type: ignore[arg-type]
        args=TrainingArguments(str(tmp_path / "out"), **{name: getattr(known, name) for name in kept}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[callback(tmp_path / "run", every=3), seen],
    )  # fmt: skip
    trainer.train()
    own = dpo_diag.Probe(PROBE, prompts=PROMPTS, out=tmp_path / "loop", decoding=SHORT)
    for step in (0, 3, 4):
        metrics = own.score(model_at(seen, step).train(), tokenizer, step)
        assert metrics["ce/chosen"] > 0 and "rewards/margins" not in metrics
        assert own.score(model_at(seen, step), tokenizer, step) == {}
    own.finish()
    a, b = (load_run(tmp_path / name) for name in ("run", "loop"))
    for table, key in (("pairs", ["step", "role", "pair_id", "side"]), ("outputs", ["step", "model", "prompt_id"])):
        x, y = (run.read(table).sort_values(key, ignore_index=True) for run in (a, b))
        assert sorted(set(x["step"])) == [0, 3, 4]
        assert x.drop(columns="sum_logp").equals(y.drop(columns="sum_logp")) or table == "pairs"
        np.testing.assert_allclose(x["sum_logp"], y["sum_logp"], atol=1e-5)
    assert a.info.loss is None and a.info.loss_reason == "TrainingArguments names no preference loss"
    assert b.info.status == "finished"
    assert json.loads((tmp_path / "loop" / "vocab.json").read_text())["1"] == "<eos>"


@pytest.mark.slow
def test_wrapped_and_compiled_models_are_found(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """torch.compile around DataParallel around the model; the compiled graph is not run, nor another one made."""
    from torch._dynamo.testing import CompileCounter

    model, counter = make_model(1), CompileCounter()
    compiled = torch.compile(torch.nn.DataParallel(model), backend=counter)
    compiled.train()
    own = dpo_diag.Probe(PROBE, prompts=PROMPTS, out=tmp_path / "run", decoding=SHORT)
    own.score(compiled, tokenizer, 0)
    assert counter.frame_count == 0 and compiled.training and model.training
    assert_rows(load_run(tmp_path / "run").pairs, score_pairs(copies(model), tokenizer, PROBE), SUMS, 1e-4)


def test_what_arguments_tell_of_the_loss() -> None:
    """TRL's configurations of several versions, by their classes' names; others say that they tell nothing."""

    def made(kind: str, base: type = object, **values: Any) -> Any:
        return type(kind, (base,), values)()

    old = made("DPOConfig", loss_type="sigmoid", beta=0.2, label_smoothing=0.1, rpo_alpha=0.5)
    spec = loss_facts(old)["loss"]
    assert (spec.types, spec.weights, spec.beta, spec.label_smoothing) == (("sigmoid", "sft"), (1.0, 0.5), 0.2, 0.1)
    new = arguments("out", loss_type=["hinge", "sft"], loss_weights=[1.0, 2.0], beta=0.3)
    inherited = object.__new__(type("SwiftConfig", (type(new),), {}))
    vars(inherited).update(vars(new))
    assert loss_facts(inherited) == loss_facts(new)
    assert loss_facts(new)["loss"].term_weights == (1.0, 2.0)
    assert loss_facts(made("DPOConfig", loss_type="unheard", beta=0.1)) == {
        "loss_reason": "unknown loss type: ['unheard']", "beta": 0.1,
    }  # fmt: skip
    assert loss_facts(made("GRPOConfig", beta=0.04)) == {"loss_reason": "GRPOConfig names no preference loss"}


def test_what_trls_experimental_configurations_tell_of_the_loss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CPO and SimPO by their trainer's own defaults (cpo_alpha 1, simpo_gamma 0.5) and smoothing; ORPO's NLL counts the
    prompt, so it keeps its name alone, as does what CPO's trainer computes from no plain log-probs."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    def facts(kind: type, **values: Any) -> dict[str, Any]:
        return loss_facts(kind(str(tmp_path), use_cpu=True, bf16=False, **values))

    assert facts(CPOConfig, beta=0.2, label_smoothing=0.1) == {
        "loss": LossSpec(types=("cpo", "sft"), weights=(1.0, 1.0), beta=0.2, label_smoothing=0.1),
        "reference_free": True,
    }
    simpo = LossSpec(types=("simpo",), beta=2.0, coefficients={"simpo_gamma": 0.5})
    assert facts(CPOConfig, beta=2.0, loss_type="simpo", cpo_alpha=0.0)["loss"] == simpo
    assert facts(CPOConfig, beta=2.0, loss_type="simpo", cpo_alpha=0.5)["loss"].weights == (1.0, 0.5)
    assert facts(CPOConfig, loss_type="hinge")["loss_names"] == ("cpo",)
    assert facts(CPOConfig, loss_type="alphapo", alpha=0.1)["loss_names"] == ("alphapo",)
    orpo = facts(ORPOConfig, beta=0.1)
    assert orpo["loss_names"] == ("orpo",) and "prompt's tokens" in orpo["loss_reason"] and orpo["reference_free"]


def test_an_argument_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(DiagError, match="every counts optimizer steps"):
        callback(tmp_path, every=0)
    with pytest.raises(DiagError, match="no pair to score"):
        callback(tmp_path, pairs=[])
    with pytest.raises(DiagError, match="not a reference"):
        callback(tmp_path, reference=3)
