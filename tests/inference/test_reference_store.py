"""A reference's rows are computed once, by scoring or by a probe for either; what does not fit is not taken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from dpo_diag import load_run
from dpo_diag.errors import DiagError
from dpo_diag.inference import scoring
from dpo_diag.inference.reference_store import ReferenceStore, reference_key, unlike_parts
from dpo_diag.inference.score_run import score_checkpoints
from dpo_diag.training import probe
from dpo_diag.training.probe import Probe

from .conftest import make_model

PAIRS = [
    {"prompt": f"question {i}: ", "chosen": f"answer {i}" + "!" * i, "rejected": "no " * (i + 1)} for i in range(4)
]


def adapted(seed: int = 1) -> Any:
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(make_model(seed), lora)


@pytest.fixture
def models(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Path]:
    """base, and an adapter on it."""
    base = make_model(1)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = adapted()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "checkpoint-3")
    return {"base": tmp_path / "base", "adapter": tmp_path / "checkpoint-3", "store": tmp_path / "store"}


def counted(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[str]:
    """Roles that a model was asked for."""
    roles: list[str] = []
    real = scoring.score_pairs

    def score(*args: Any, role: str, **options: Any) -> Any:
        roles.append(role)
        return real(*args, role=role, **options)

    monkeypatch.setattr(module, "score_pairs", score)
    return roles


def rows_of(folder: Path, role: str = "ref") -> Any:
    frame = load_run(folder).read("pairs", roles=[role])
    return frame.set_index(["pair_id", "side"]).sort_index()


def test_kl_is_taken_from_the_model_under_the_adapter_or_from_the_one_named(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base that the adapter lies on gives the same numbers as a copy of it that is loaded beside; a run that was
    scored without KL gets it, and one that has it is not scored again. Without a reference there is none to take."""
    asked = counted(monkeypatch, scoring)
    copied = shutil.copytree(models["base"], tmp_path / "copy")
    options: dict[str, Any] = {"max_length": 64, "progress": False}
    score_checkpoints([models["adapter"]], PAIRS, tmp_path / "under", **options)
    for _ in range(2):
        score_checkpoints([models["adapter"]], PAIRS, tmp_path / "under", kl=True, **options)
    score_checkpoints([models["adapter"]], PAIRS, tmp_path / "beside", reference=copied, kl=True, **options)
    assert asked == ["ref", "policy", "policy", "ref", "policy"]
    under, beside = (rows_of(tmp_path / name, "policy") for name in ("under", "beside"))
    assert (under["kl_reverse_sum"] > 1e-3).all()
    for name in ("kl_reverse_sum", "kl_forward_sum"):
        np.testing.assert_allclose(under[name], beside[name], rtol=1e-5)
    history = load_run(tmp_path / "under").history.set_index("name")["value"]
    chosen = under.xs("chosen", level="side")
    expected = chosen["kl_forward_sum"].sum() / chosen["n_tokens"].sum()
    assert history["kl_forward/chosen"] == pytest.approx(expected)
    assert rows_of(tmp_path / "under")["kl_reverse_sum"].isna().all()
    with pytest.raises(DiagError, match="no reference to take the KL from"):
        score_checkpoints([models["base"]], PAIRS, tmp_path / "none", kl=True, **options)
    assert not (tmp_path / "none").exists()


def test_scored_once_for_scoring_and_the_callback(
    tmp_path: Path, models: dict[str, Path], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dpo-score computes the model under an adapter; a probe of a model that trains an adapter on the same base takes
    the rows and asks no reference, for those pairs and for some of them. One more pair: all are computed, and kept."""
    asked = counted(monkeypatch, scoring)
    score_checkpoints(
        [models["adapter"]], PAIRS[:3], tmp_path / "scored", reference_store=models["store"], max_length=64,
        progress=False,
    )  # fmt: skip
    assert asked == ["ref", "policy"]
    expected = rows_of(tmp_path / "scored")
    lines: list[str] = []
    score_checkpoints(
        [models["adapter"]], PAIRS[:3], tmp_path / "again", reference_store=models["store"], max_length=64,
        progress=False, say=lines.append,
    )  # fmt: skip
    assert asked == ["ref", "policy", "policy"]
    assert any("the reference is taken from" in line for line in lines)
    np.testing.assert_array_equal(rows_of(tmp_path / "again")["sum_logp"], expected["sum_logp"])
    history = [load_run(tmp_path / name).history[["name", "value"]] for name in ("scored", "again")]
    assert history[0].equals(history[1])

    asked = counted(monkeypatch, probe)
    model = adapted()
    own_ids = [row | {"pair_id": f"own-{i}"} for i, row in enumerate(PAIRS)]
    for name, pairs, roles in (("three", own_ids[:3], 0), ("four", own_ids, 1), ("two", PAIRS[2:], 0)):
        asked.clear()
        lines.clear()
        own = Probe(
            pairs, out=tmp_path / name, prompts=[{"id": "a", "prompt": "question 1: "}], max_length=64,
            reference_store=models["store"], decoding={"max_new_tokens": 3}, say=lines.append,
        )  # fmt: skip
        own.score(model, tokenizer, 0)
        assert asked == ["policy"] + ["ref"] * roles, (name, lines)
        found = rows_of(tmp_path / name)["sum_logp"]
        assert len(found) == 2 * len(pairs)
        assert set(load_run(tmp_path / name).outputs["model"]) == {"policy", "ref"}
        if name == "three":
            np.testing.assert_allclose(
                found.to_numpy(), expected["sum_logp"].loc[_in_order(pairs, PAIRS)].to_numpy(), atol=1e-9
            )
        if name == "four":
            assert any("it lacks pairs" in line and "3 of 4" in line for line in lines)


def _in_order(own: Any, content: Any) -> list[tuple[str, str]]:
    from dpo_diag.records.pair_id import pair_id_of

    ids = sorted((row["pair_id"], pair_id_of(known)) for row, known in zip(own, content, strict=False))
    return [(pair_id, side) for _, pair_id in ids for side in ("chosen", "rejected")]


def test_what_does_not_fit_is_not_taken_and_said(
    tmp_path: Path, models: dict[str, Path], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted(monkeypatch, probe)

    def lines_of(name: str, model: Any, own: Any = tokenizer, **options: Any) -> str:
        lines: list[str] = []
        asked.clear()
        known = {"reference_store": models["store"], "max_length": 64, "say": lines.append}
        Probe(PAIRS, out=tmp_path / name, **(known | options)).score(model, own, 0)
        return " ".join(lines)

    model = adapted()
    assert "is empty" in lines_of("first", model)
    assert asked == ["policy", "ref"]
    assert "max_length is 32 here and 64 there" in lines_of("cut", model, max_length=32)
    assert asked == ["policy", "ref"]
    assert "the model's weights differ" in lines_of("other", adapted(2))
    import copy

    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{{ messages }}"
    said = lines_of("template", model, chat)
    assert "the chat template differs" in said and "tokenizer" not in said
    assert "taken from" in lines_of("same", model)
    assert asked == ["policy"]


def test_rows_without_tokens_do_for_whoever_wants_none(
    tmp_path: Path, models: dict[str, Path], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe keeps the tokens of one of four pairs. Scoring with tokens computes the reference, and the store has all
    from then on; scoring without tokens takes the rows."""
    asked, lines = counted(monkeypatch, scoring), list[str]()
    known = {"reference_store": models["store"], "max_length": 64, "say": lines.append}
    probe_model = adapted()
    Probe(PAIRS, out=tmp_path / "probe", record_tokens=1, **known).score(probe_model, tokenizer, 0)  # type: ignore[arg-type]
    for name, tokens in (("none", False), ("all", True), ("again", True)):
        asked.clear()
        score_checkpoints([models["adapter"]], PAIRS, tmp_path / name, tokens=tokens, progress=False, **known)  # type: ignore[arg-type]
        assert asked == (["ref"] if name == "all" else []) + ["policy"]
        found = load_run(tmp_path / name).read("tokens", roles=["ref"])["pair_id"].nunique()
        assert found == (4 if tokens else 0)
    assert any("lacks the tokens of 3 of 4 pairs" in line for line in lines)


def test_keys(tokenizer: PreTrainedTokenizerFast) -> None:
    """The model under an adapter has the key of the bare model; with the adapter, another; a step of training, too."""
    bare = reference_key(make_model(1), tokenizer, 64, "keep_start")
    model = adapted()
    assert reference_key(model, tokenizer, 64, "keep_start", adapter_off=True) == bare
    on = reference_key(model, tokenizer, 64, "keep_start")
    assert on.model == bare.model and on.adapter is not None
    assert unlike_parts(bare, on) == ["the adapter differs"]
    assert unlike_parts(bare, reference_key(make_model(2), tokenizer, None, "keep_end")) == [
        "the model's weights differ", "max_length is 64 here and None there",
        "truncation_mode is keep_start here and keep_end there",
    ]  # fmt: skip
    model.peft_config["default"].lora_alpha = 99
    assert unlike_parts(on, reference_key(model, tokenizer, 64, "keep_start")) == ["the adapter differs"]
    turned = make_model(1)
    turned.config.rope_parameters = {"rope_type": "default", "rope_theta": 5.0}
    assert unlike_parts(bare, reference_key(turned, tokenizer, 64, "keep_start")) == [
        "the model's configuration differs"
    ]
    turned = make_model(1)
    turned.config.use_cache, turned.config.pad_token_id = False, 0  # as trainers set them
    assert reference_key(turned, tokenizer, 64, "keep_start") == bare
    assert ReferenceStore(Path("x")).entry(bare) == ReferenceStore(Path("x")).entry(bare)
