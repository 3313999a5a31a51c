"""Many checkpoints: found, skipped when done, refused when they cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dpo_diag.errors import DiagError
from dpo_diag.inference import scoring as inference
from dpo_diag.inference.generate_run import generate_checkpoints
from dpo_diag.inference.score_run import score_checkpoints
from dpo_diag.losses import LossSpec
from dpo_diag.models import checkpoints as module
from dpo_diag.models.checkpoints import Checkpoint, Loader, find_checkpoints
from dpo_diag.models.decoding import Decoding
from dpo_diag.models.packed.verify import architecture
from dpo_diag.records import load_run
from dpo_diag.records.run_info import SplitInfo
from dpo_diag.records.schemas import CHES
from dpo_diag.records.side_tables import read_side_table
from tests.declared import assert_declared
from tests.inference.conftest import make_model, make_tokenizer
from tests.inference.test_scoring import PAIRS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROMPTS = [{"id": f"p{i}", "prompt": f"question {i}", "tags": ["t"]} for i in range(5)]
CPU = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    for step in (10, 20):
        folder = root / f"checkpoint-{step}"
        make_model(seed=step).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    make_model(seed=0).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    (root / "notes.txt").write_text("not a checkpoint")
    return root


def test_finding(folders: Path) -> None:
    found = find_checkpoints([folders / "*"])
    assert [(c.model, c.step, Path(c.path).name) for c in found] == [
        ("policy", 0, "base"), ("policy", 10, "checkpoint-10"), ("policy", 20, "checkpoint-20")
    ]  # fmt: skip
    named = find_checkpoints([f"ref={folders / 'base'}", f"policy@7={folders / 'base'}", folders / "checkpoint-10"])
    assert [(c.model, c.step) for c in named] == [("ref", 0), ("policy", 7), ("policy", 10)]
    with pytest.raises(DiagError, match="no checkpoint found"):
        find_checkpoints([folders / "absent*"])
    with pytest.raises(DiagError, match="not a model folder"):
        find_checkpoints([folders])
    with pytest.raises(DiagError, match="two checkpoints are policy at step 10"):
        find_checkpoints([folders / "checkpoint-10", f"policy@10={folders / 'base'}"])


def test_checkpoints_with_the_same_tokenizer_files_share_one(folders: Path, tmp_path: Path) -> None:
    loader = Loader(**CPU)
    first, second = (loader.tokenizer_of(Checkpoint(str(folders / f"checkpoint-{step}"))) for step in (10, 20))
    assert first is second
    with (
        loader.open(Checkpoint(str(folders / "checkpoint-10"))) as (one, _),
        Loader(**CPU).open(Checkpoint(str(folders / "checkpoint-20"))) as (other, _),
    ):
        # What is proved of one holds for the other: the architecture is the same, the weights are not.
        assert architecture(one) == architecture(other) != architecture(make_model(num_hidden_layers=1))
    make_tokenizer(chat=False).save_pretrained(tmp_path)
    assert loader.tokenizer_of(Checkpoint(str(tmp_path))) is not first


def test_generate_resumes_without_repeating(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    entries = [f"ref={folders / 'base'}", folders / "checkpoint-*"]
    decoding = Decoding(5, n_samples=1)
    loads: list[str] = []
    original = Loader._plain

    def counting(self: Loader, name: str) -> Any:
        loads.append(Path(name).name)
        if len(loads) == 2 and loads.count("checkpoint-10") == 1 and "checkpoint-20" not in loads:
            raise KeyboardInterrupt
        return original(self, name)

    monkeypatch.setattr(Loader, "_plain", counting)
    options: dict[str, Any] = {"decoding": decoding, "loader": Loader(**CPU), "chunk": 2, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        generate_checkpoints(entries, PROMPTS, out, **options)
    assert len(load_run(out).outputs) == 10  # the reference's five prompts, two answers each
    generate_checkpoints(entries, PROMPTS[:3], out, **options)
    generate_checkpoints(entries, PROMPTS, out, **options)
    run = load_run(out)
    assert loads.count("base") == 1
    assert len(run.outputs) == 3 * 5 * 2
    assert not run.outputs.duplicated(["step", "model", "prompt_id", "sample"]).any()
    assert run.meta["status"] == "finished" and run.meta["kind"] == "scored"
    assert run.meta["decoding"]["hash"] == decoding.hash
    before = len(loads)
    generate_checkpoints(entries, PROMPTS, out, **options)
    assert len(loads) == before
    with pytest.raises(DiagError, match="other decoding settings"):
        generate_checkpoints(entries, PROMPTS, out, **options | {"decoding": Decoding(6)})


def test_a_trained_run_keeps_its_kind_and_status(folders: Path, tmp_path: Path) -> None:
    from dpo_diag.records import RunWriter

    RunWriter(tmp_path / "run", kind="trained").finish("interrupted")
    generate_checkpoints(
        [folders / "checkpoint-10"], PROMPTS[:1], tmp_path / "run", decoding=Decoding(2), loader=Loader(**CPU),
        progress=False,
    )  # fmt: skip
    meta = load_run(tmp_path / "run").meta
    assert (meta["kind"], meta["status"]) == ("trained", "interrupted")


def test_score_gives_a_run_with_its_reference(folders: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "run", []
    options: dict[str, Any] = {
        "reference": folders / "base", "loader": Loader(**CPU), "ches": True, "progress": False, "say": said.append,
        "facts": {"loss": {"types": ["sigmoid"]}},
    }  # fmt: skip
    score_checkpoints([folders / "checkpoint-*"], PAIRS, out, **options)
    run = load_run(out)
    assert_declared(run)
    assert len(run.pairs) == 2 * 3 * 2 and run.pairs["ref_sum_logp"].notna().all()
    assert sorted(run.pairs["step"].unique()) == [10, 20]
    assert run.tokens["ref_logp"].notna().all()
    assert len(run.texts) == 3 and run.texts["chosen"].isin([p["chosen"] for p in PAIRS]).all()
    assert run.info.splits["eval"] == SplitInfo(role="held_out", n_pairs=3)
    assert run.meta["loss"]["types"] == ["sigmoid"] and run.meta["reference"]["name"].endswith("base")
    names = set(run.history["name"])
    assert {"ce/chosen", "ppl_seq_mean/rejected", "bits_per_byte/chosen", "pairs/both_fell", "top5/chosen"} <= names
    at = run.history.set_index(["step", "name"])["value"]
    own = run.pairs[(run.pairs["step"] == 10) & (run.pairs["side"] == "chosen")]
    assert at[10, "ce/chosen"] == pytest.approx((-own["sum_logp"] / own["n_tokens"]).mean())
    assert len(read_side_table(out, CHES)) == 3
    said.clear()
    score_checkpoints([folders / "checkpoint-*"], PAIRS, out, **options)
    assert all("scored already" in line for line in said) and len(said) == 3
    with pytest.raises(DiagError, match="split eval of the run holds other pairs"):
        score_checkpoints([folders / "checkpoint-10"], PAIRS[:1], out, **options)


def test_the_reference_gets_the_policys_tokens(
    folders: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """As in training, where one tokenizer serves both: token counts agree though the reference has its own."""
    make_model(seed=3).save_pretrained(tmp_path / "ref")
    other = make_tokenizer(chat=False)
    other.add_tokens(["yes"])
    other.save_pretrained(tmp_path / "ref")
    said: list[str] = []
    out = score_checkpoints(
        [folders / "checkpoint-10"], PAIRS, tmp_path / "run", reference=tmp_path / "ref", loader=Loader(**CPU),
        progress=False, say=said.append, facts={"loss": LossSpec(beta=0.5)},
    )  # fmt: skip
    assert any("another tokenizer" in line for line in said)
    pairs = load_run(out).pairs
    assert (pairs["n_tokens"] == pairs["ref_n_tokens"]).all()
    # With a reference and a known loss history holds what a trained run logs: loss = mean log(1 + exp(-margin)).
    logged = load_run(out).history.set_index("name")["value"]
    reward = (0.5 * (pairs["sum_logp"] - pairs["ref_sum_logp"])).groupby([pairs["pair_id"], pairs["side"]]).first()
    margin = reward.xs("chosen", level=1) - reward.xs("rejected", level=1)
    assert logged["rewards/margins"] == pytest.approx(margin.mean(), abs=1e-12)
    assert logged["loss"] == pytest.approx(np.log1p(np.exp(-margin)).mean(), abs=1e-12)
    assert logged["rewards/accuracies"] == (margin > 0).mean()
    assert logged["logps/chosen"] == pytest.approx(pairs.loc[pairs["side"] == "chosen", "sum_logp"].mean())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_adapters_share_their_base_and_have_it_as_reference(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    for step in (1, 2):
        base = AutoModelForCausalLM.from_pretrained(folders / "base")
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.fill_(0.3 * step)
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    loaded: list[str] = []
    original, proved = Loader._plain, inference.proved_way
    monkeypatch.setattr(Loader, "_plain", lambda self, name: loaded.append("base") or original(self, name))
    monkeypatch.setattr(inference, "proved_way", lambda *args: loaded.append("proof") or proved(*args))
    monkeypatch.setattr(
        inference.PairTokens, "of", lambda *args, of=inference.PairTokens.of: loaded.append("tokens") or of(*args)
    )
    wrapped = PeftModel.from_pretrained
    monkeypatch.setattr(PeftModel, "from_pretrained", lambda *args: loaded.append("adapter") or wrapped(*args))
    out = score_checkpoints(
        [tmp_path / "checkpoint-*"], PAIRS, tmp_path / "run", loader=Loader(**CPU), tokens=False, progress=False
    )
    # The base is the reference too; the second adapter's weights go where the first one's were.
    assert loaded == ["base", "tokens", "proof", "adapter", "proof"]
    run = load_run(out)
    assert run.info.model.shared_prefix is not None and run.info.model.shared_prefix.way == "packed"
    assert run.pairs["ref_sum_logp"].notna().all()
    sums = run.pairs.groupby("step")["sum_logp"].sum()
    assert sums[1] != pytest.approx(sums[2]) and run.pairs["ref_sum_logp"].sum() / 2 != pytest.approx(sums[1])
    alone = score_checkpoints(
        [Checkpoint(str(tmp_path / "checkpoint-2"), "policy", 2)], PAIRS, tmp_path / "again", loader=Loader(**CPU),
        tokens=False, progress=False,
    )  # fmt: skip
    again = load_run(alone).pairs.set_index(["pair_id", "side"])["sum_logp"]
    first = run.pairs[run.pairs["step"] == 2].set_index(["pair_id", "side"])["sum_logp"]
    assert first.to_dict() == pytest.approx(again.to_dict(), abs=1e-6)
    # Another rank is another model: nothing is swapped.
    other = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folders / "base"),
        LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    other.save_pretrained(tmp_path / "other")
    loader = Loader(**CPU)
    for path, rank in ((tmp_path / "checkpoint-2", 2), (tmp_path / "other", 3), (tmp_path / "checkpoint-1", 2)):
        with loader.open(Checkpoint(str(path))) as (model, _):
            lora = [p for name, p in model.named_parameters() if "lora_A" in name]
            assert {len(p) for p in lora} == {rank}
    (tmp_path / "checkpoint-1" / "adapter_config.json").write_text("{}")
    with pytest.raises(DiagError, match="does not name its base"):
        module.adapter_base(Checkpoint(str(tmp_path / "checkpoint-1")))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("trained", [{"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}])
def test_the_model_under_an_adapter_is_itself_again(folders: Path, tmp_path: Path, trained: dict[str, Any]) -> None:
    """A trained copy of the head, which peft's `unload` keeps, and PiSSA's start, which takes the largest part of a
    weight away: neither stands in the base afterwards."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **trained)
    model = get_peft_model(base, config)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.add_(0.5)
    model.save_pretrained(tmp_path / "adapter")
    ids, loader = torch.tensor([[3, 4, 5, 6]]), Loader(**CPU)
    seen = []
    for path in (folders / "base", tmp_path / "adapter", folders / "base"):
        with loader.open(Checkpoint(str(path)), keep=True) as (opened, _), torch.no_grad():
            seen.append(opened(ids).logits)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_a_pickled_adapter_is_opened_where_asked_alone(folders: Path, tmp_path: Path) -> None:
    """The refusal names the option; with it the weights are those that were saved, and a broken pickle is one line."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="gaussian")
    get_peft_model(base, config).save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    saved = load_file(file)
    file.unlink()
    torch.save(saved, tmp_path / "a" / "adapter_model.bin")
    checkpoint = Checkpoint(str(tmp_path / "a"))
    with pytest.raises(DiagError, match=r"pickled weights only.*convert them.*loader\.allow_pickle=true"):
        Loader(**CPU)._with_adapter(checkpoint)
    with Loader(**CPU, allow_pickle=True).open(checkpoint) as (model, _):
        (own,) = [p for name, p in model.named_parameters() if "layers.0" in name and "lora_A" in name]
        (as_saved,) = [w for name, w in saved.items() if "layers.0" in name and "lora_A" in name]
        assert torch.equal(own, as_saved)
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"no pickle")
    with pytest.raises(DiagError, match="the adapter cannot be loaded"):
        Loader(**CPU, allow_pickle=True)._with_adapter(checkpoint)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning", "ignore:Found missing:UserWarning")
def test_an_adapter_that_does_not_fit_leaves_nothing_behind(folders: Path, tmp_path: Path) -> None:
    """Its file holds rank 3, its configuration says 2: the next adapter gets a base without traces of it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for rank in (2, 3):
        base = AutoModelForCausalLM.from_pretrained(folders / "base")
        config = LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(base, config).save_pretrained(tmp_path / str(rank))
    said = (tmp_path / "2" / "adapter_config.json").read_text()
    (tmp_path / "3" / "adapter_config.json").write_text(said)
    loader = Loader(**CPU)
    with pytest.raises(DiagError, match="size mismatch"), loader.open(Checkpoint(str(tmp_path / "3"))):
        pass
    with loader.open(Checkpoint(str(folders / "base"))) as (model, _):
        assert not any("lora" in name for name, _ in model.named_modules())
