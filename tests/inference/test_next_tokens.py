"""Two checkpoints at a few positions: against plain forwards, and from the command that explains a scored run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch

from dpo_diag.commands.diag import main
from dpo_diag.errors import DiagError
from dpo_diag.inference.next_tokens import compare_at, unembedding_scores
from dpo_diag.inference.score_run import score_checkpoints
from dpo_diag.models.checkpoints import Checkpoint, Loader
from dpo_diag.models.logps import next_token_logps
from dpo_diag.models.run_checkpoints import checkpoint_of
from dpo_diag.records import RunWriter, load_run

from .conftest import make_model, make_tokenizer
from .test_scoring import CHAT, PAIRS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Checkpoints of steps 10 and 20 and a reference, and runs that scored text and chat pairs with them."""
    folder = tmp_path_factory.mktemp("gained")
    for step in (10, 20):
        path = folder / "models" / f"checkpoint-{step}"
        make_model(seed=step).save_pretrained(path)
        tokenizer.save_pretrained(path)
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    make_model(seed=0).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for name, pairs in (("text", PAIRS), ("chat", CHAT)):
        score_checkpoints([folder / "models" / "*"], pairs, folder / name, reference=folder / "base",
                          loader=Loader(**CPU), progress=False)  # fmt: skip
    return folder


def test_log_probs_equal_a_plain_forward(model: LlamaForCausalLM) -> None:
    contexts = [[5, 6, 7], [9], [4, 4, 4, 4, 8], [9]]
    found = next_token_logps(model, contexts, batch_size=3)
    assert found.shape == (4, 258) and found.dtype == np.float32
    for context, row in zip(contexts, found, strict=True):
        with torch.no_grad():
            plain = model(torch.tensor([context])).logits[0, -1].double().log_softmax(-1)
        np.testing.assert_allclose(row, plain.numpy(), atol=2e-5)
    assert next_token_logps(model, []).shape == (0, 258)
    # The hook is gone: whole sequences have logits everywhere again.
    with torch.no_grad():
        assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 258)
    with pytest.raises(DiagError, match="nothing before it"):
        next_token_logps(model, [[]])


def test_scores_by_hand() -> None:
    """W rows (1,0) (0,1) (2,0): W (w_0 - w_1) = W (1,-1) = 1 -1 2."""
    head = torch.nn.Linear(2, 3, bias=False)
    head.weight.data = torch.tensor([[1.0, 0], [0, 1], [2, 0]])

    class Model:
        def get_output_embeddings(self) -> torch.nn.Linear:
            return head

    assert unembedding_scores(Model(), [0], [1]).tolist() == [[1.0, -1.0, 2.0]]  # type: ignore[arg-type]
    assert unembedding_scores(Model(), [], []).shape == (0, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["text", "chat"])
@pytest.mark.parametrize("start", ["10", "ref"])
def test_explain_with_destination(root: Path, name: str, start: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The loaded models give the recorded log-probs again, so contexts and checkpoints are the right ones."""
    options = ["--destination", "--from", start, "--to", "20", "--device", "cpu", "--json", "--no-write"]
    assert main(["explain", str(root / name), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    gained = document["gained"]
    assert gained["agreement"]["from"]["max"] < 1e-3 and gained["agreement"]["to"]["max"] < 1e-3
    assert gained["left_out"] == 0 and gained["to_checkpoint"].endswith("checkpoint-20")
    assert gained["from_checkpoint"].endswith("base" if start == "ref" else "checkpoint-10")
    side = gained["chosen"]
    assert sum(side["went_to"].values()) == pytest.approx(1)
    worst = side["positions"][0]
    assert worst["lost"] == pytest.approx(math.exp(worst["logp_from"]) - math.exp(worst["logp_to"]))
    assert gained["theory"]["n_positions"] == len(PAIRS if name == "text" else CHAT)
    why = next(s for s in document["narrative"] if s["heading"] == "Why")
    assert any("gained.chosen" in s["from"] for s in why["sentences"])


def test_a_wrong_checkpoint_is_noticed_and_other_mistakes_are_told(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(root / "text")
    wrong = ["--from", "10", "--checkpoint-from", str(root / "base"), "--device", "cpu", "--no-write", "--json"]
    assert main(["explain", run, "--destination", *wrong]) == 0
    assert "is not what the records measured" in json.loads(capsys.readouterr().out)["gained"]["not_applicable"]
    assert main(["explain", run, *wrong]) == 2
    assert main(["explain", run, "--destination", "--watch"]) == 2
    assert main(["explain", run, "--destination", "--checkpoint-to", str(root / "none"), "--no-write"]) == 1
    assert "no checkpoint found" in capsys.readouterr().err


def test_checkpoints_of_a_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(root / "text")
    assert Path(checkpoint_of(run, 10).path).name == "checkpoint-10"
    assert Path(checkpoint_of(run, "ref").path).name == "base"
    with pytest.raises(DiagError, match=r"step 15 found.*steps 10, 20.*--checkpoint-from"):
        checkpoint_of(run, 15, option="--checkpoint-from")
    writer = RunWriter(tmp_path / "bare")
    writer.update(reference={"name": "models/checkpoint-10"}, model={"name": "tiny (SFT)"})
    bare = load_run(tmp_path / "bare")
    with pytest.raises(DiagError, match="no checkpoint of step 0"):
        checkpoint_of(bare, 0)
    monkeypatch.chdir(root)
    assert checkpoint_of(bare, 0).path == str(root / "models" / "checkpoint-10")


def test_rows_without_a_fitting_text_are_left_out(root: Path) -> None:
    row = {"side": "chosen", "position": 0, "prefix": [], "theory": False, "rival": -1}
    tokens = make_tokenizer()("yes")["input_ids"]
    positions = pd.DataFrame([row | {"pair_id": p, "token_id": t} for p, t in (("a", tokens[0]), ("b", 7), ("c", 7))])
    texts = pd.DataFrame([{**PAIRS[0], "pair_id": p} for p in ("a", "b")])
    models = [Checkpoint(str(root / "models" / f"checkpoint-{s}")) for s in (10, 20)]
    found = compare_at(*models, positions, texts, loader=Loader(**CPU))
    assert found.kept == [0] and found.before.shape == (1, 258) and found.scores.shape == (0, 258)
    assert found.text_of(tokens[0]) == "y"
