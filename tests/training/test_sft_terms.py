"""Label smoothing and auxiliary terms: values by hand, values and gradients against torch's own over full logits, and a
training whose loss is the NLL and its terms, each logged apart."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from dpo_diag import load_run
from dpo_diag.config import Config, DataConfig, ModelConfig, PromptsConfig, TrainerConfig
from dpo_diag.config_checks import check
from dpo_diag.config_sft import SftConfig
from dpo_diag.errors import DiagError
from dpo_diag.models.head_tiles import Shape
from dpo_diag.training import DiagSFTTrainer
from dpo_diag.training.sft_terms import (
    HeadTap,
    SftTerms,
    TargetLogits,
    infonce,
    row_means,
    smoothed_floor,
    smoothing_term,
    target_logits,
    z_loss,
)

from .test_sft import ROWS, arguments, parts, run_sft
from .tiny import make_model, make_tokenizer

N, WIDTH, V = 7, 5, 1500  # more than a tile of the vocabulary


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def head() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(N, WIDTH), torch.randn(V, WIDTH), torch.randn(V)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), torch.randint(0, V, (N,))


def full(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shape: Shape) -> torch.Tensor:
    return shape.apply(functional.linear(hidden, weight, bias))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [Shape(), Shape(0.5, None, 2.0), Shape(2.0, 3.0)], ids=["plain", "scaled", "capped"])
def test_smoothing_is_torchs_in_value_and_gradient(head: Any, shape: Shape, with_bias: bool) -> None:
    """Beside -log p(target) the term times 0.1 is cross_entropy(label_smoothing=0.1), whatever the head does."""
    hidden, weight, bias, targets = head
    bias = bias if with_bias else None
    inputs = [x for x in (hidden, weight, bias) if x is not None]
    z = full(hidden, weight, bias, shape)
    expected = functional.cross_entropy(z, targets, label_smoothing=0.1)
    wanted = torch.autograd.grad(expected, inputs)
    log_probs = functional.log_softmax(full(hidden, weight, bias, shape), 1).gather(1, targets[:, None])[:, 0]
    found = (-log_probs + 0.1 * smoothing_term(target_logits(hidden, weight, bias, targets, shape))).mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    for own, theirs in zip(torch.autograd.grad(found, inputs), wanted, strict=True):
        assert torch.allclose(own, theirs, atol=1e-5)


def test_z_loss_is_the_squared_normaliser(head: Any) -> None:
    """Over full logits logsumexp(z)^2, with its gradient; by hand, of logits 0 and ln 3 it is (ln 4)^2."""
    hidden, weight, bias, targets = head
    z = full(hidden, weight, bias, Shape())
    wanted = torch.autograd.grad(torch.logsumexp(z, 1).square().mean(), [hidden, weight, bias])
    log_probs = functional.log_softmax(full(hidden, weight, bias, Shape()), 1).gather(1, targets[:, None])[:, 0]
    found = z_loss(target_logits(hidden, weight, bias, targets, Shape()), log_probs).mean()
    for own, theirs in zip(torch.autograd.grad(found, [hidden, weight, bias]), wanted, strict=True):
        assert torch.allclose(own, theirs, rtol=1e-4, atol=1e-4)
    two = TargetLogits(torch.tensor([math.log(3)]), torch.tensor([math.log(3) / 2]))
    assert z_loss(two, torch.tensor([math.log(0.75)])).item() == pytest.approx(math.log(4) ** 2, rel=1e-6)


def test_infonce_by_hand() -> None:
    """Two orthogonal rows at temperature 1: each has e / (e + 1), so ln(1 + 1/e) = 0.3133. The gradient of the first
    query's cosines is softmax - [own]; one row alone has nothing to be told from: 0."""
    keys = torch.eye(2)
    queries = (2 * torch.eye(2)).requires_grad_()  # their length does not matter
    values = infonce(queries, keys, 1.0)
    assert values.tolist() == pytest.approx([math.log(1 + math.exp(-1))] * 2, rel=1e-6)
    # d/dq of cos(q, k) at q = 2 e1 is (k - (k·q̂) q̂) / 2: zero for k = e1, e2 / 2 for k = e2; times softmax 1 / (e + 1).
    (gradient,) = torch.autograd.grad(values[0], queries)
    assert gradient[0].tolist() == pytest.approx([0.0, 0.5 / (math.e + 1)], abs=1e-6)
    assert infonce(torch.randn(1, 3), torch.randn(1, 3), 0.05).tolist() == pytest.approx([0.0], abs=1e-5)
    means = row_means(torch.tensor([[[1.0], [3.0], [9.0]], [[2.0], [2.0], [2.0]]]),
                      torch.tensor([[True, True, False], [False, False, False]]))  # fmt: skip
    assert means.tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize("shape", [Shape(), Shape(2.0, 3.0)], ids=["plain", "capped"])
def test_terms_are_float32_under_autocast(head: Any, shape: Shape) -> None:
    """What a 16-bit training computes them in: cosines of 8 bits over a temperature of 0.05 are steps of 0.08 nats."""
    hidden, weight, bias, targets = head
    found = []
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            values = [*target_logits(hidden, weight, bias, targets, shape), infonce(hidden, hidden + 0.3, 0.05)]
        found.append([*values, *torch.autograd.grad(sum(v.sum() for v in values), [hidden, weight])])
    for plain, cast in zip(*found, strict=True):
        assert torch.equal(plain, cast)


def test_the_floor_is_reached_by_the_target_itself() -> None:
    """V = 4, epsilon = 0.2: the target is 0.85, 0.05, 0.05, 0.05; its entropy is 0.5875, which a model that says just
    that has, as torch counts; a uniform guess has ln 4 whatever epsilon is."""
    target = torch.tensor([[0.85, 0.05, 0.05, 0.05]])
    reached = functional.cross_entropy(target.log(), torch.tensor([0]), label_smoothing=0.2).item()
    assert smoothed_floor(0.2, 4) == pytest.approx(0.58750, abs=1e-5)
    assert smoothed_floor(0.2, 4) == pytest.approx(reached, abs=1e-6)
    uniform = functional.cross_entropy(torch.zeros(1, 4), torch.tensor([0]), label_smoothing=0.2).item()
    assert uniform == pytest.approx(math.log(4), abs=1e-6)


def test_what_cannot_be_is_refused() -> None:
    plain: Any = type("Arguments", (), {"label_smoothing_factor": 0.0, "loss_type": "nll"})
    theirs: Any = type("Arguments", (), {"label_smoothing_factor": 0.1, "loss_type": "nll"})
    dft: Any = type("Arguments", (), {"label_smoothing_factor": 0.0, "loss_type": "dft"})
    for smoothing, terms, args, what in [
        (1.0, {}, plain, "label smoothing cannot be"), (0.1, {}, theirs, "asked for twice"),
        (0.1, {}, dft, "of the negative"), (0.0, {"zloss": 1.0}, plain, "z_loss"),
    ]:  # fmt: skip
        with pytest.raises(DiagError, match=what):
            SftTerms.checked(smoothing, terms, 0.05, args)
    assert SftTerms.checked(0.0, {}, 0.05, theirs) == SftTerms(0.1, by_trl=True)
    assert not SftTerms.checked(0.0, {"z_loss": 0.0}, 0.05, plain).any


def test_values_of_labelled_positions_alone_find_their_places() -> None:
    """As TRL's head gives them with Triton; without it, of every position, those that are not labelled become zero."""
    mask = torch.tensor([[False, True, True], [True, False, False]])
    tap = HeadTap(SftTerms(0.1))
    assert tap.placed(mask) is None
    for own in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 1.0, 2.0, 3.0, 9.0, 9.0])):
        tap.logits = TargetLogits(own, 2 * own)
        placed = tap.placed(mask)
        assert placed is not None
        assert placed.target.tolist() == [[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]
        assert placed.mean.tolist() == [[0.0, 2.0, 4.0], [6.0, 0.0, 0.0]]
    tap.hidden = torch.tensor([[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]])
    states = tap.states(mask)
    assert states is not None
    assert states.tolist() == [[[0.0, 0.0], [1.0, 1.5], [2.0, 2.5]], [[3.0, 3.5], [0.0, 0.0], [0.0, 0.0]]]


def test_a_preference_training_has_no_supervised_terms(tmp_path: Path) -> None:
    """They would be left out without a word; supervised training takes them."""
    (tmp_path / "pairs.jsonl").write_text("{}")
    known: dict[str, Any] = {
        "model": ModelConfig(kind="hub", name="m"), "prompts": PromptsConfig(kind="none"),
        "data": DataConfig(kind="jsonl", path=str(tmp_path / "pairs.jsonl")), "sft": SftConfig(z_loss=1e-4),
    }  # fmt: skip
    check(Config(**known, trainer=TrainerConfig(method="sft")))
    with pytest.raises(DiagError, match=r"sft\.z_loss"):
        check(Config(**known))
    with pytest.raises(DiagError, match=r"sft\.label_smoothing"):
        check(Config(**known | {"sft": SftConfig(label_smoothing=1.0)}, trainer=TrainerConfig(method="sft")))


def rows_of(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of all rows, padded on the right, and labels: -100 but for the completion."""
    rows = [parts(tokenizer, row) for row in ROWS]
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([[i if m else -100 for i, m in zip(ids, mask, strict=True)] + [-100] * (width - len(ids))
                           for ids, mask in rows])  # fmt: skip
    return ids, labels


def evaluated(tmp_path: Path, tokenizer: Any, **options: Any) -> tuple[DiagSFTTrainer, dict[str, float]]:
    settings = options.pop("settings", {})
    trainer = DiagSFTTrainer(
        model=make_model(1), args=arguments(tmp_path, per_device_eval_batch_size=7, **settings),
        train_dataset=Dataset.from_list(ROWS), eval_dataset=Dataset.from_list(ROWS), processing_class=tokenizer,
        **options,
    )  # fmt: skip
    return trainer, {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}


def test_each_set_has_its_own_unigram(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets are made anew for each evaluation, at the address of the one before: of tokens 2, 2 the entropy is 0, of
    2, 3 it is ln 2."""
    monkeypatch.setattr("dpo_diag.training.sft.id", lambda _: 1, raising=False)
    trainer: Any = SimpleNamespace(_unigrams={}, _vocabulary=8)
    entropies = []
    for labels in ([0, 2, 2], [0, 2, 3]):
        found = DiagSFTTrainer._unigram(trainer, Dataset.from_dict({"labels": [labels], "x": [1]}).remove_columns("x"))
        assert found is not None
        entropies.append(found.entropy)
    assert entropies == pytest.approx([0.0, math.log(2)])


@pytest.mark.parametrize("has_prompt", [True, False])
def test_infonce_of_texts_without_a_prompt_is_said_to_add_nothing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, has_prompt: bool
) -> None:
    row = {"prompt": "cat:", "completion": " red"} if has_prompt else {"text": "cat: red"}
    DiagSFTTrainer(
        model=make_model(1), args=arguments(tmp_path, eval_strategy="no"), processing_class=tokenizer,
        train_dataset=Dataset.from_list([row] * 2), auxiliary={"infonce": 0.1},
    )  # fmt: skip
    said = "train dataset: InfoNCE adds nothing, its texts have no prompt to compare"
    assert (said in caplog.text) is not has_prompt


def test_infonce_is_refused_where_prompts_are_moved() -> None:
    peft = SimpleNamespace(active_peft_config=SimpleNamespace(is_prompt_learning=True))
    trainer = SimpleNamespace(
        args=SimpleNamespace(deepspeed_plugin=None, packing=False), padding_free=False, model=peft,
        accelerator=SimpleNamespace(parallelism_config=None), compute_loss_func=None,
    )  # fmt: skip
    with pytest.raises(DiagError, match="prompt learning"):
        SftTerms(weights={"infonce": 0.1}).check_trainer(trainer)
    SftTerms(weights={"z_loss": 0.1}).check_trainer(trainer)


@pytest.mark.parametrize("tiled", [False, True])
def test_a_smoothed_loss_beside_the_plain_one(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, tiled: bool) -> None:
    """The evaluation's loss is torch's smoothed one over full logits; NLL and perplexity are the plain ones."""
    _, values = evaluated(tmp_path, tokenizer, label_smoothing=0.2, tiled_head=tiled)
    ids, labels = rows_of(tokenizer)
    with torch.no_grad():
        z, at = (
            make_model(1)(input_ids=ids, attention_mask=(ids != 0).long()).logits[:, :-1].flatten(0, 1),
            labels[:, 1:],
        )
    smoothed = functional.cross_entropy(z, at.flatten(), label_smoothing=0.2).item()
    plain = functional.cross_entropy(z, at.flatten()).item()
    assert values["loss"] == pytest.approx(smoothed, rel=1e-5)
    assert values["nll_loss"] == pytest.approx(plain, rel=1e-5)
    assert values["ppl_token/response"] == pytest.approx(math.exp(plain), rel=1e-5)
    assert values["loss"] == pytest.approx(values["nll_loss"] + 0.2 * values["aux/label_smoothing"], rel=1e-6)
    assert values["loss_residual"] < 1e-5
    assert values["baseline/floor"] == pytest.approx(smoothed_floor(0.2, 300))
    assert values["baseline/uniform"] == pytest.approx(math.log(300))


@pytest.mark.filterwarnings("ignore:.label_smoothing_factor. is deprecated:FutureWarning")
def test_trls_own_factor_is_measured_likewise(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """TRL's second forward, and the terms of its first one: the same loss, no residual, the plain one beside it."""
    _, ours = evaluated(tmp_path, tokenizer, label_smoothing=0.2)
    _, theirs = evaluated(tmp_path, tokenizer, settings={"label_smoothing_factor": 0.2})
    for name in ("loss", "nll_loss", "aux/label_smoothing", "baseline/floor", "ppl_token/response"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-5), name
    assert theirs["loss_residual"] < 1e-5


def test_a_plain_run_says_nothing_of_terms(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    _, values = evaluated(tmp_path, tokenizer)
    assert not [name for name in values if name.startswith("aux/") or name in ("nll_loss", "baseline/floor")]
    assert values["bits_per_byte/response"] > 0


def test_auxiliary_terms_are_apart(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """All three at once: the loss is the NLL and each term times its weight; each term is that of the full logits and
    states; perplexity and the rest are those of a run without them."""
    weights = {"confidence_penalty": 0.3, "z_loss": 0.01, "infonce": 0.5}
    _, plain = evaluated(tmp_path, tokenizer)
    trainer, values = evaluated(tmp_path, tokenizer, auxiliary=weights, infonce_temperature=0.5, prompt_metrics=False)
    for name in ("ppl_token/response", "ce/response", "ce/prompt", "entropy", "top1/response"):
        assert values[name] == pytest.approx(plain[name], rel=1e-5), name
    assert values["nll_loss"] == pytest.approx(plain["loss"], rel=1e-5)
    total = values["nll_loss"] + sum(weight * values[f"aux/{name}"] for name, weight in weights.items())
    assert values["loss"] == pytest.approx(total, rel=1e-5)
    assert values["aux/confidence_penalty"] == pytest.approx(-values["entropy"], rel=1e-5)
    ids, labels = rows_of(tokenizer)
    real, answer = (ids != 0)[:, 1:], labels[:, 1:] != -100
    with torch.no_grad():
        out = make_model(1)(input_ids=ids, attention_mask=(ids != 0).long(), output_hidden_states=True)
    z = out.logits[:, :-1][answer]
    assert values["aux/z_loss"] == pytest.approx(torch.logsumexp(z, 1).square().mean().item(), rel=1e-5)
    states = out.hidden_states[-1][:, :-1]
    queries, keys = (row_means(states, where) for where in (real & ~answer, answer))
    assert values["aux/infonce"] == pytest.approx(infonce(queries, keys, 0.5).mean().item(), rel=1e-4)
    assert trainer.describe()["training"]["loss_terms"] == weights


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.label_smoothing_factor. is deprecated:FutureWarning")
def test_training_with_smoothing_is_trls(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Two accumulated steps by both ways: the same losses and weights but for rounding."""
    runs = [
        run_sft(tmp_path / str(i), tokenizer, ROWS, recorder=tmp_path / str(i) / "run", model=make_model(1),
                options={"gradient_accumulation_steps": 2, **settings}, **options)
        for i, (settings, options) in enumerate([({}, {"label_smoothing": 0.2}), ({"label_smoothing_factor": 0.2}, {})])
    ]  # fmt: skip
    for ours, theirs in zip(*(run.state.log_history for run in runs), strict=True):
        for name in ours.keys() & {"loss", "nll_loss", "grad_norm", "eval_loss"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    for p, q in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.allclose(p, q, atol=1e-4)
    history = load_run(tmp_path / "0" / "run").history
    first = history[(history["split"] == "train") & history["name"].str.startswith("baseline/")]
    assert set(first["step"]) == {1}
    assert {"baseline/uniform", "baseline/unigram", "baseline/floor", "baseline/unseen"} == set(first["name"])


def test_what_a_loss_is_measured_against_stands_once_in_a_training_that_resumes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Rows at steps 1, 2 and, resumed from checkpoint-1, again 2: beside the first alone."""
    for go_on in (None, str(tmp_path / "out" / "checkpoint-1")):
        trainer = DiagSFTTrainer(
            model=make_model(1), processing_class=tokenizer, train_dataset=Dataset.from_list(ROWS),
            recorder=tmp_path / "run",
            args=arguments(tmp_path / "out", max_steps=2, eval_strategy="no", save_strategy="steps", save_steps=1),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=go_on)
    history = load_run(tmp_path / "run").history
    assert history.loc[history["name"] == "baseline/uniform", ["split", "step"]].to_numpy().tolist() == [["train", 1]]
    assert history.loc[history["name"] == "ce/response", "step"].tolist() == [1, 2]
