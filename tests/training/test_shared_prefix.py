"""Prompts computed once while training: loss, gradient and records are TRL's padded batch's, or it is not done."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_diag import load_run
from dpo_diag.errors import DiagError
from dpo_diag.records import RunWriter
from dpo_diag.records.run_info import SharedPrefixInfo
from dpo_diag.training import DiagDPOTrainer, FixedPromptCallback, shared_prefix, shared_proof
from dpo_diag.training.packed_batch import packed_batch
from tests.models.packed.architectures import RIGHT, VOCABULARY, WRONG, make

from .test_distributed import finished, launch
from .tiny import arguments, copies, make_model, make_pairs

LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}


class Gradients(TrainerCallback):
    """The gradient of every step's update."""

    def __init__(self) -> None:
        self.of_step: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.of_step.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def trainer_of(
    folder: Path, tokenizer: Any, way: str, *, policy: Any = None, reference: Any = None, pairs: Any = None,
    adapter: Any = None, keywords: dict[str, Any] | None = None, **options: Any,
) -> DiagDPOTrainer:  # fmt: skip
    """A trainer whose first gradients are not clipped; of a policy that is not its reference."""
    torch.manual_seed(3)
    known: dict[str, Any] = {"max_steps": 1, "max_grad_norm": 0.0} | options
    return DiagDPOTrainer(
        model=copies(policy) if policy is not None else make_model(1),
        ref_model=None if adapter is not None else copies(reference) if reference is not None else make_model(2),
        args=arguments(folder / "out", **known), processing_class=tokenizer, peft_config=adapter,
        train_dataset=Dataset.from_list(make_pairs(11) if pairs is None else pairs), shared_prefix=way,
        **(keywords or {}),
    )  # fmt: skip


def trained(folder: Path, tokenizer: Any, way: str, **options: Any) -> tuple[DiagDPOTrainer, Gradients]:
    trainer = trainer_of(folder / way, tokenizer, way, **options)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    return trainer, gradients


def assert_same_step(
    folder: Path, tokenizer: Any, loss: float = 1e-6, gradient: float = 1e-5, way: str = "on", **options: Any
) -> DiagDPOTrainer:
    """The first step's loss (absolute, of a loss beyond 1 relative) and gradient (of its largest element)."""
    (off, theirs), (on, ours) = (trained(folder, tokenizer, w, **options) for w in ("off", way))
    assert on.shared_prefix is not None
    assert on.shared_prefix.way == "packed"
    a, b = (t.state.log_history[0]["loss"] for t in (off, on))
    assert abs(a - b) <= loss * max(1.0, abs(a))
    assert theirs.of_step[0].keys() == ours.of_step[0].keys()
    largest = max(float(g.abs().max()) for g in theirs.of_step[0].values())
    assert largest > 0
    for name, g in theirs.of_step[0].items():
        assert float((g - ours.of_step[0][name]).abs().max()) <= gradient * largest, name
    return on


def numbers_tokenizer() -> PreTrainedTokenizerFast:
    """Words are numbers: the vocabulary of the tiny architectures."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    words = {"<pad>": 0, "<eos>": 1} | {str(i): i for i in range(2, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def numbered_pairs() -> list[dict[str, str]]:
    """Prompts of 3 to 14 words, so that windows of 8 tokens show."""
    draw = np.random.default_rng(0)

    def text(low: int, high: int) -> str:
        return " ".join(str(i) for i in draw.integers(2, VOCABULARY, draw.integers(low, high)))

    return [{"prompt": text(3, 15) + " ", "chosen": text(2, 12), "rejected": text(2, 12)} for _ in range(8)]


# ---- the same step ----

SETTINGS: dict[str, dict[str, Any]] = {
    "reference model": {},
    "precomputed": {"precompute_ref_log_probs": True},
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "old checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "accumulation": {"gradient_accumulation_steps": 3},
    "LD-DPO": {"ld_alpha": 0.5},
    "with SFT": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]},
    "WPO": {"use_weighting": True},
    "coupled": {"loss_type": "aot"},
    "cut at the end": {"max_length": 14},
    "cut at the beginning": {"max_length": 14, "truncation_mode": "keep_end"},
}


@pytest.mark.filterwarnings("ignore:.*keep_end.*:FutureWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_step(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    assert_same_step(tmp_path, tokenizer, way="auto", **SETTINGS[name])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_same_step_with_an_adapter(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, checkpointing: bool) -> None:
    """Policy and reference are one module, with its adapter and without; each forward is packed."""
    on = assert_same_step(
        tmp_path, tokenizer, way="auto", adapter=LoraConfig(**LORA), gradient_checkpointing=checkpointing
    )
    assert on.ref_model is None


@pytest.mark.slow
def test_the_same_step_with_an_adapter_that_was_trained(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(5)
    policy = get_peft_model(make_model(1), LoraConfig(**LORA))
    trainers = [
        DiagDPOTrainer(
            model=copy.deepcopy(policy), args=arguments(tmp_path / w, max_steps=3), processing_class=tokenizer,
            train_dataset=Dataset.from_list(make_pairs(11)), shared_prefix=w,
        )
        for w in ("off", "auto")
    ]  # fmt: skip
    for trainer in trainers:
        trainer.train()
    assert trainers[1].shared_prefix is not None
    assert trainers[1].shared_prefix.way == "packed"
    for a, b in zip(*(t.state.log_history[:3] for t in trainers), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)


EVERY_LOSS: list[dict[str, Any]] = [
    {"loss_type": "sigmoid", "label_smoothing": 0.1}, {"loss_type": "hinge"}, {"loss_type": "ipo"},
    {"loss_type": "exo_pair", "label_smoothing": 1e-3}, {"loss_type": "nca_pair"},
    {"loss_type": "robust", "label_smoothing": 0.1}, {"loss_type": "bco_pair"}, {"loss_type": "sppo_hard"},
    {"loss_type": "aot"}, {"loss_type": "aot_unpaired"}, {"loss_type": "apo_zero"}, {"loss_type": "apo_down"},
    {"loss_type": "discopop"}, {"loss_type": "sigmoid_norm"}, {"loss_type": ["sigmoid", "sft"]},
    {"loss_type": "cdpo", "label_smoothing": 0.1}, {"loss_type": "sigmoid", "f_divergence_type": "forward_kl"},
    {"loss_type": "sigmoid", "f_divergence_type": "js_divergence"},
    {"loss_type": "sigmoid", "f_divergence_type": "alpha_divergence"},
]  # fmt: skip
MODES: dict[str, dict[str, Any]] = {
    "full": {}, "adapter": {"adapter": LoraConfig(**LORA)}, "precomputed": {"precompute_ref_log_probs": True},
    "checkpointing": {"gradient_checkpointing": True}, "accumulation": {"gradient_accumulation_steps": 2},
    "LD-DPO": {"ld_alpha": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("options", [o for o in EVERY_LOSS if o["loss_type"] in ("cdpo", "ipo")], ids=str)
def test_the_same_step_of_another_loss(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, options: dict[str, Any]
) -> None:
    assert_same_step(tmp_path, tokenizer, **options)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", EVERY_LOSS, ids=str)
def test_the_same_step_of_every_loss(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, options: dict[str, Any], mode: str
) -> None:
    try:
        assert_same_step(tmp_path, tokenizer, **(MODES[mode] | options))
    except ValueError as error:
        if "f_divergence" in str(error) or "ld_alpha" in str(error):
            pytest.skip(str(error))
        raise


def test_the_same_step_in_bfloat16(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Proved in float32, where nothing differs; the step itself is rounded to 8 bits, once in another order: 2 % of a
    loss of about 1, and of the gradient's largest element 5 %."""
    on = assert_same_step(tmp_path, tokenizer, loss=2e-2, gradient=5e-2, way="auto", bf16=True)
    found = on.shared_prefix
    assert found is not None
    assert found.max_loss_diff is not None and found.max_loss_diff <= 1e-6
    assert found.max_grad_diff is not None and found.max_grad_diff <= 1e-5


def test_half_weights_are_proved_in_float32_and_left_as_they_are(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    policy, reference = make_model(1).bfloat16(), make_model(2).bfloat16()
    on = assert_same_step(
        tmp_path, tokenizer, loss=5e-2, gradient=0.1, way="auto", policy=policy, reference=reference,
        learning_rate=0.0,
    )  # fmt: skip
    found = on.shared_prefix
    assert found is not None
    assert found.max_grad_diff is not None and found.max_grad_diff <= 1e-5
    for a, b in zip(policy.parameters(), on.model.parameters(), strict=True):
        assert b.dtype == torch.bfloat16
        assert torch.equal(a, b)


# ---- architectures ----


def without_dropout(model: Any) -> Any:
    """OPT's dropout is no layer, which TRL's `disable_dropout` could switch off."""
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def of_architecture(folder: Path, name: str, adapter: bool, way: str = "auto") -> DiagDPOTrainer:
    model = without_dropout(make(name))
    reference = copies(model)
    with torch.no_grad():
        torch.manual_seed(0)
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    trainer = trainer_of(
        folder, numbers_tokenizer(), way, policy=model, reference=reference, pairs=numbered_pairs(),
        adapter=LoraConfig(**LORA) if adapter else None, per_device_train_batch_size=4,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", RIGHT)
def test_right_architectures(tmp_path: Path, name: str) -> None:
    """Windows of 8 tokens, soft caps, sinks, routers with their balancing loss, scaled logits."""
    assert_right(of_architecture(tmp_path, name, adapter=False))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning", "ignore:The following:RuntimeWarning")
@pytest.mark.parametrize("name", RIGHT)
def test_right_architectures_with_an_adapter(tmp_path: Path, name: str) -> None:
    assert_right(of_architecture(tmp_path, name, adapter=True))


def assert_right(trainer: DiagDPOTrainer) -> None:
    found = trainer.shared_prefix
    assert found is not None
    assert found.way == "packed", found.reason
    assert found.max_loss_diff is not None and found.max_loss_diff <= 1e-6
    assert found.max_grad_diff is not None and found.max_grad_diff <= 1e-5
    assert trainer.state.log_history[0]["loss_residual"] < 1e-5


@pytest.mark.parametrize("name", ["BLOOM", "Mamba", "Qwen3-Next"])
def test_wrong_architectures_train_as_ever(tmp_path: Path, name: str) -> None:
    assert_as_ever(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WRONG.keys() - {"BLOOM", "Mamba", "Qwen3-Next"}))
def test_other_wrong_architectures_train_as_ever(tmp_path: Path, name: str) -> None:
    assert_as_ever(tmp_path, name)


def assert_as_ever(folder: Path, name: str) -> None:
    """Plain, with the reason; bit for bit the run without any attempt."""
    auto, off = (of_architecture(folder / way, name, adapter=False, way=way) for way in ("auto", "off"))
    assert auto.shared_prefix is not None
    assert auto.shared_prefix.way == "plain"
    assert "own" in str(auto.shared_prefix.reason) or "is not right here" in str(auto.shared_prefix.reason)
    assert all(torch.equal(a, b) for a, b in zip(auto.model.parameters(), off.model.parameters(), strict=True))


# ---- no trace ----


def test_weights_that_are_not_finite_are_no_fault_of_the_packing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """One NaN in the policy: there is nothing to compare with, and it is said so, not that the packing is wrong; the
    guard says what is, and ends the run."""
    policy = make_model(1)
    with torch.no_grad():
        policy.lm_head.weight[5, 3] = float("nan")
    trainer = trainer_of(
        tmp_path, tokenizer, "auto", policy=policy, keywords={"stop_on": ["non_finite_loss"]}, max_steps=3
    )
    trainer.train()
    assert trainer.shared_prefix is not None
    assert (trainer.shared_prefix.way, trainer.state.global_step) == ("plain", 1)
    assert "loss or gradient is not finite the usual way: there is nothing to compare with" in caplog.text
    assert "is not right here" not in caplog.text
    assert "non_finite_loss: loss is nan in step 1; 3 of 3 rows have non-finite log-probs" in caplog.text


def test_a_proof_that_fails_changes_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """No difference is small enough: weights, logs and records of four steps with accumulation and evaluations are bit
    for bit those of "off". The gradient of a second micro-batch is added to the first's, random orders go on."""
    monkeypatch.setattr(shared_proof, "GRADIENT_TOLERANCE", -1.0)
    runs = {}
    for way in ("off", "auto"):
        trainer = trainer_of(
            tmp_path / way, tokenizer, way, max_steps=4, gradient_accumulation_steps=2, eval_strategy="steps",
            eval_steps=2, max_grad_norm=1.0, keywords={
                "recorder": tmp_path / way / "run", "extra_metrics": ("top5", "greedy_logp"),
                "eval_dataset": Dataset.from_list(make_pairs(5, seed=1)),
            },
        )  # fmt: skip
        trainer.train()
        runs[way] = trainer
    off, auto = runs["off"], runs["auto"]
    assert auto.shared_prefix is not None
    assert auto.shared_prefix.way == "plain"
    assert sum("shared prefix: off" in r.message for r in caplog.records) == 1
    assert all(torch.equal(a, b) for a, b in zip(off.model.parameters(), auto.model.parameters(), strict=True))
    timing = ("runtime", "per_second")

    def told(trainer: DiagDPOTrainer) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if not any(t in k for t in timing)} for r in trainer.state.log_history]

    assert told(off) == told(auto)
    ours, theirs = (load_run(tmp_path / way / "run") for way in ("auto", "off"))
    for table in ("pairs", "tokens"):
        assert ours.read(table).equals(theirs.read(table)), table
    assert ours.info.training.shared_prefix == auto.shared_prefix
    assert theirs.info.training.shared_prefix is not None
    assert theirs.info.training.shared_prefix.reason == "off"


def test_the_proof_leaves_random_states_gradients_and_counts(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    trainer = trainer_of(tmp_path, tokenizer, "auto", reference=make_model(1, noise=0.05))
    batch = {k: v for k, v in next(iter(trainer.get_train_dataloader())).items() if k in shared_proof.KNOWN}
    for p in trainer.model.parameters():
        p.grad = torch.ones_like(p)
    trainer.model.eval()
    state, tokens = torch.get_rng_state(), trainer._total_train_tokens
    trainer._shared.decide(batch, trainer._loss_and_sums)
    assert trainer.shared_prefix is not None
    assert trainer.shared_prefix.way == "packed"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in trainer.model.parameters())
    assert not trainer.model.training
    assert trainer._total_train_tokens == tokens
    assert not trainer._metrics["train"]
    assert "gather" not in vars(trainer.accelerator)
    assert trainer.model.config._attn_implementation == "sdpa"


# ---- the records ----


def test_records_are_those_without(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Pair rows, token rows, history of two steps and an evaluation before the first: sums, top-1 and top-5 hits,
    greedy log-probs, entropies, bytes, ids."""
    for way in ("off", "on"):
        trainer_of(
            tmp_path / way, tokenizer, way, max_steps=2, eval_strategy="steps", eval_steps=2, learning_rate=1e-5,
            keywords={
                "recorder": tmp_path / way / "run", "extra_metrics": ("top5", "greedy_logp"),
                "eval_dataset": Dataset.from_list(make_pairs(10, seed=1)),
            },
        ).train()  # fmt: skip
    off, on = (load_run(tmp_path / way / "run") for way in ("off", "on"))
    assert on.info.training.shared_prefix is not None
    assert on.info.training.shared_prefix.way == "packed"
    for table, key in (
        ("pairs", ["step", "split", "role", "pair_id", "side"]),
        ("tokens", ["step", "split", "role", "pair_id", "side", "position"]),
        ("history", ["step", "split", "name"]),
    ):
        a, b = (r.read(table).set_index(key).sort_index() for r in (off, on))
        if table == "history":
            kept = ~a.index.get_level_values("name").str.contains("runtime|per_second|residual|trl/")
            a = a[kept]
        assert len(a) and a.index.isin(b.index).all()
        b = b.loc[a.index]
        for column in a:
            if a[column].dtype.kind in "fib":
                np.testing.assert_allclose(
                    b[column].astype(float), a[column].astype(float), rtol=2e-5, atol=2e-5, err_msg=f"{table} {column}"
                )
            else:
                different = (a[column].astype(str) != b[column].astype(str)) & ~(a[column].isna() & b[column].isna())
                assert not different.any(), (table, column, a[column][different], b[column][different])


# ---- the reference, before the training ----

REFERENCES: dict[str, dict[str, Any]] = {
    "a model": {}, "the model under the adapter": {"adapter": LoraConfig(**LORA)}, "bfloat16": {"bf16": True},
    "LD-DPO": {"ld_alpha": 0.5},
}  # fmt: skip


def precomputed(folder: Path, tokenizer: Any, way: str, **options: Any) -> tuple[DiagDPOTrainer, np.ndarray]:
    """A trainer, and the reference's log-probs that it made, (2, pairs)."""
    trainer = trainer_of(folder / way, tokenizer, way, precompute_ref_log_probs=True, **options)
    columns = [trainer.train_dataset[name] for name in ("ref_chosen_logps", "ref_rejected_logps")]
    return trainer, np.array([list(map(float, column)) for column in columns])


@pytest.mark.parametrize("name", REFERENCES)
def test_the_reference_beforehand(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """TRL's own numbers but for rounding (in bfloat16 a hundredth of a sum), made from packed rows; `off` after it
    takes none of them from the cache."""
    options = {"max_steps": 2, **REFERENCES[name]}
    auto, ours = precomputed(tmp_path, tokenizer, "auto", **options)
    off, theirs = precomputed(tmp_path, tokenizer, "off", **options)
    found = auto._shared_reference.info
    assert found is not None and found.way == "packed" and found.max_loss_diff is not None
    assert found.max_loss_diff <= 1e-4 and found.max_grad_diff is None
    assert np.allclose(ours, theirs, rtol=2e-2 if name == "bfloat16" else 1e-5)
    assert (ours != theirs).any()
    for trainer, way in ((auto, "packed"), (off, None)):
        writer = RunWriter(tmp_path / str(way) / "run")
        writer.update(**trainer.describe())
        prefix = load_run(writer.path).info.reference.shared_prefix
        assert (prefix and prefix.way) == way


def test_a_reference_that_cannot_be_packed_is_computed_as_ever(tmp_path: Path) -> None:
    options = {"policy": without_dropout(make("BLOOM")), "reference": make("BLOOM"), "pairs": numbered_pairs()}
    auto, ours = precomputed(tmp_path, numbers_tokenizer(), "auto", **options)
    _, theirs = precomputed(tmp_path, numbers_tokenizer(), "off", **options)
    assert (ours == theirs).all()
    found = auto._shared_reference.info
    assert found is not None and found.way == "plain"
    with pytest.raises(DiagError, match="shared_prefix=on is not possible"):
        precomputed(tmp_path, numbers_tokenizer(), "on", **options)


# ---- when it is not done ----


def test_dropout(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Packed rows would draw other numbers: auto does not; on does, proved without dropout."""
    adapter = LoraConfig(**(LORA | {"lora_dropout": 0.3}))
    auto, _ = trained(tmp_path, tokenizer, "auto", adapter=adapter, disable_dropout=False)
    assert auto.shared_prefix is not None
    assert auto.shared_prefix.way == "plain"
    assert "dropout" in str(auto.shared_prefix.reason)
    on, _ = trained(tmp_path, tokenizer, "on", adapter=adapter, disable_dropout=False)
    assert on.shared_prefix is not None
    assert (on.shared_prefix.way, on.shared_prefix.reason) == ("packed", "with dropout: compared without")


def test_virtual_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    prefix = PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    auto, _ = trained(tmp_path, tokenizer, "auto", adapter=prefix)
    assert auto.shared_prefix is not None
    assert "virtual tokens" in str(auto.shared_prefix.reason)
    with pytest.raises(DiagError, match=r"shared_prefix=on is not possible; got the adapter adds virtual tokens"):
        trained(tmp_path, tokenizer, "on", adapter=prefix)


def test_a_compiled_model(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    trainer = trainer_of(tmp_path, tokenizer, "auto")
    assert shared_proof.obstacle(trainer) is None
    trainer.args.torch_compile = True
    assert shared_proof.obstacle(trainer) == "the model is compiled"
    trainer.args.torch_compile, trainer.args.use_liger_kernel = False, True
    assert "Liger" in str(shared_proof.obstacle(trainer))
    trainer.args.use_liger_kernel, trainer._is_vision_dataset = False, True
    assert shared_proof.obstacle(trainer) == "images are in the data"


@pytest.mark.parametrize("stage", [1, 3])
def test_under_deepspeed_what_is_not_done_is_said(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, stage: int, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """An accelerator that says DeepSpeed: prompts go TRL's way at every stage, and fixed prompts are not answered where
    the weights are sharded (stage 3); a line each."""
    answers = FixedPromptCallback(lambda *a, **k: [{"prompt_id": "p", "sample": 0, "text": "x"}], ["p"])
    trainer = trainer_of(tmp_path, tokenizer, "auto", keywords={"callbacks": [answers]})
    batch = {k: v for k, v in next(iter(trainer.get_train_dataloader())).items() if k in shared_proof.KNOWN}
    with monkeypatch.context() as patch:
        deepspeed = property(lambda self: DistributedType.DEEPSPEED)
        patch.setattr(type(trainer.accelerator), "distributed_type", deepspeed)
        trainer._shared.decide(batch, trainer._loss_and_sums)
    plugin = SimpleNamespace(zero_stage=stage)
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", plugin, raising=False)
    assert trainer.shared_prefix == SharedPrefixInfo("plain", "the model or its sequences are sharded")
    assert bool(answers.answer(1)) == (stage < 3)
    said = [r.message for r in caplog.records]
    assert sum("shared prefix: off, the usual way is taken: the model or its sequences are sharded" in m for m in said)
    assert any("fixed prompts are not answered" in m for m in said) == (stage == 3)


def test_an_unknown_mode(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DiagError, match=r"unknown shared_prefix; got onn; expected one of auto, on, off"):
        trainer_of(tmp_path, tokenizer, "onn")


def test_batches_that_cannot_be_packed_go_the_usual_way(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Packed and proved, then a collator that pads on the left in its second batch: that batch is TRL's."""

    class Sometimes(DataCollatorForPreference):
        calls = 0

        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = super().torch_call(examples)
            Sometimes.calls += 1
            if Sometimes.calls == 2:
                batch = {k: v.flip(1) if v.dim() == 2 else v for k, v in batch.items()}
            return batch

    losses = []
    for way in ("off", "on"):
        Sometimes.calls = 0
        trainer, _ = trained(
            tmp_path, tokenizer, way, max_steps=3, keywords={"data_collator": Sometimes(pad_token_id=0)}
        )
        losses.append([r["loss"] for r in trainer.state.log_history[:3]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_longer_than_a_window_is_proved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Mistral with a window of 8: two short pairs first, then two beyond it. An attention that forgets the window is
    right on the first batch, and found on the second."""
    pairs = [{"prompt": "5 6 ", "chosen": "7", "rejected": "8 9"}] * 2 + numbered_pairs()[:4]
    calls: list[int] = []

    def counted(trainer: Any, models: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(int(inputs["attention_mask"].sum(1).max()))
        return shared_proof.prove(trainer, models, inputs, *args, **kwargs)

    monkeypatch.setattr(shared_prefix, "prove", counted)

    def run(folder: str) -> DiagDPOTrainer:
        trainer = trainer_of(
            tmp_path / folder, numbers_tokenizer(), "auto", policy=make("Mistral"), reference=make("Mistral"),
            pairs=pairs, max_steps=3, per_device_train_batch_size=2, train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer.train()
        return trainer

    trainer = run("right")
    assert len(calls) == 2
    assert calls[0] <= 8 < calls[1]
    assert trainer.shared_prefix is not None
    assert trainer.shared_prefix.way == "packed"

    from transformers import AttentionInterface

    from dpo_diag.models.packed import attention

    def forgets(*args: Any, **kwargs: Any) -> Any:
        return attention._attend(*args, **(kwargs | {"sliding_window": None}))

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.IMPLEMENTATION, forgets)
    trainer = run("wrong")
    assert trainer.shared_prefix is not None
    assert trainer.shared_prefix.way == "plain"
    assert "is not right here" in str(trainer.shared_prefix.reason)


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_every_rank_hears_of_a_later_refusal(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks, of which this one's batches stay within the window of 99 tokens: it asks at each batch whether the
    other one's does, proves nothing itself, and goes the usual way, or ends, when the other one refuses."""
    trainer = trainer_of(tmp_path, tokenizer, mode)
    batch = {k: v for k, v in next(iter(trainer.get_train_dataloader())).items() if k in shared_proof.KNOWN}
    trainer.model.config.sliding_window = 99
    shared, asked, told = trainer._shared, [0.0, 1.0, 1.0], [[(None, 120)], [(SharedPrefixInfo("plain", "no"), 130)]]
    shared.decide(batch, trainer._loss_and_sums)
    assert shared.info is not None and shared.info.way == "packed"
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda self: 2))
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda own, how: own + asked.pop(0))
    monkeypatch.setattr(shared_prefix, "gather_object", lambda own: own + told.pop(0))
    monkeypatch.setattr(shared_prefix, "prove", None)
    shared.decide(batch, trainer._loss_and_sums)
    assert (len(asked), len(told)) == (2, 2)
    shared.decide(batch, trainer._loss_and_sums)  # the other one could not compare its batch
    assert shared.info.way == "packed"
    if mode == "on":
        with pytest.raises(DiagError, match="shared_prefix=on is not possible; got no"):
            shared.decide(batch, trainer._loss_and_sums)
        return
    shared.decide(batch, trainer._loss_and_sums)
    assert (shared.info.way, shared.info.reason) == ("plain", "no")
    shared.decide(batch, trainer._loss_and_sums)  # nobody asks any more
    assert asked == [] and told == []


BEYOND = """
import json, sys
sys.path.insert(0, {tests!r})
sys.path.insert(0, {tests!r} + "/..")
from pathlib import Path
import pytest
from transformers import AttentionInterface
from dpo_diag.models.packed import attention
from tests.models.packed.architectures import make
from training.test_shared_prefix import numbered_pairs, numbers_tokenizer, trainer_of

def forgets(*args, **kwargs):
    return attention._attend(*args, **(kwargs | dict(sliding_window=None)))

AttentionInterface._global_mapping[attention.IMPLEMENTATION] = forgets
folder, mode = Path(sys.argv[1]), "on" if sys.argv[2] == "1" else "auto"
short = dict(prompt="5 6 ", chosen="7", rejected="8 9")
# Each rank takes every second pair: in step 2 rank 1 alone has one beyond the window of 8.
trainer = trainer_of(
    folder, numbers_tokenizer(), mode, policy=make("Mistral"), reference=make("Mistral"), max_steps=3,
    pairs=[short] * 3 + [numbered_pairs()[0]] + [short] * 4, per_device_train_batch_size=1,
    train_sampling_strategy="sequential", keywords=dict(recorder=folder / "run"),
)
try:
    trainer.train()
    found = [[trainer.shared_prefix.way, trainer.state.global_step]]
except Exception as error:
    found = [[type(error).__name__, trainer.state.global_step]]
(folder / f"rank{{trainer.args.process_index}}.json").write_text(json.dumps(found))
if trainer.args.process_index == 0:
    (folder / "log.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "on"])
def test_two_processes_one_of_which_refuses_later(tmp_path: Path, mode: str) -> None:
    """An attention that forgets the window is found by rank 1 in step 2: both go the usual way from there, which
    stands in run.json; with `on` both end."""
    folder = tmp_path / mode
    finished(launch(folder, 2, int(mode == "on"), BEYOND), folder)
    for rank in (0, 1):
        found = json.loads((folder / f"rank{rank}.json").read_text())
        assert found == [["plain", 3] if mode == "auto" else ["DiagError", 1]]
    recorded = load_run(folder / "run").info.training.shared_prefix
    assert recorded is not None
    assert recorded.way == ("plain" if mode == "auto" else "packed")


# ---- one batch, packed ----


def test_a_packed_batch() -> None:
    """Two pairs: prompt 5 6, chosen 7 8, rejected 9; prompt 3, chosen 4, rejected 4 2. The second is longer in no way:
    rows lie as the longer segment comes first.

    Row 0: 5 6 7 8 | 9 | 3 4 | 4 2 at places 0..8, positions 0 1 2 3, 2, 0 1, 1 2. In the padded batch the scored
    tokens are, row after row, 7 8 (read at 1, 2), 4 (at 5), 9 (at 1), 4 2 (at 5, 7)."""
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [3, 4, 0, 0], [5, 6, 9, 0], [3, 4, 2, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]),
        "completion_mask": torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]]),
    }
    packed = packed_batch(batch)
    assert not isinstance(packed, str)
    assert packed.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 3, 4, 4, 2]]
    assert packed.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 2, 0, 1, 1, 2]]
    assert packed.targets.tolist() == [7, 8, 4, 9, 4, 2]
    assert packed.read.tolist() == [1, 2, 5, 1, 5, 7]
    assert packed.places is not None
    assert packed.places.tolist() == [0, 1, 2, 3, 5, 6, 0, 1, 4, 5, 7, 8]
    assert packed.longest == 4


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"token_type_ids": torch.zeros(2, 3)}, "the batch holds token_type_ids"),
        ({"attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}, "a row of the batch is not a prompt"),
        ({"completion_mask": torch.tensor([[0, 1, 0], [0, 0, 1]])}, "a row of the batch is not a prompt"),
        ({"completion_mask": torch.zeros(2, 3, dtype=torch.long)}, "no response of the batch has a scored token"),
    ],
)
def test_a_batch_that_cannot_be_packed(change: dict[str, torch.Tensor], why: str) -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [5, 6, 8]]), "attention_mask": torch.ones(2, 3, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 0, 1], [0, 0, 1]]),
    }  # fmt: skip
    assert not isinstance(packed_batch(batch), str)
    assert str(packed_batch(batch | change)).startswith(why)


def test_a_resumed_run_is_the_run_itself(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    whole = trainer_of(tmp_path / "whole", tokenizer, "auto", max_steps=4)
    whole.train()
    trainer_of(tmp_path / "part", tokenizer, "auto", max_steps=4, save_strategy="steps", save_steps=2).train()
    resumed = trainer_of(tmp_path / "part", tokenizer, "auto", max_steps=4, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "out" / "checkpoint-2"))
    assert resumed.shared_prefix is not None
    assert resumed.shared_prefix.way == "packed"
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
