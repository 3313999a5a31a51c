"""The two contexts of LongPPL: windows by hand, a model whose log-probs can be written down, the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dpo_diag.commands.diag import main
from dpo_diag.diagnosis.decompose.prompt_dependence import longppl
from dpo_diag.errors import DiagError
from dpo_diag.inference.longppl import long_and_short, windows

from .conftest import make_model, make_tokenizer

VOCABULARY = 32
KEY = 3


class Remembers(torch.nn.Module):
    """Uniform over 32 tokens until token 3 was seen; from then on p(0) = .9 and .1 / 31 for each other token."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(1, VOCABULARY, bias=False)
        with torch.no_grad():
            self.head.weight.zero_()
            # softmax(x, 0, ..., 0) gives .9 where exp(x) / (exp(x) + 31) = .9: x = ln 279.
            self.head.weight[0] = math.log(279)
        self.config = SimpleNamespace(max_position_embeddings=64)

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        seen = ((input_ids == KEY) & (attention_mask > 0)).cumsum(1).clamp(max=1).float()
        return SimpleNamespace(logits=self.head(seen.unsqueeze(-1)))


def test_windows_by_hand() -> None:
    """9 tokens, truncation 4, window 2: tokens 4-5 from 0, 6-7 from 2, 8 from 4."""
    assert windows(9, 4, 2) == [(0, 4, 6), (2, 6, 8), (4, 8, 9)]
    assert windows(4, 4, 2) == [] and windows(5, 4, 100) == [(0, 4, 5)]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_model_with_a_memory(batch_size: int) -> None:
    """Text 3 1 1 1 1 0 0 1 0, truncation 4, window 2. The 3 stands in the short context of tokens 4 and 5 only.

    Long: ln .9 for each 0, ln(.1 / 31) for each 1. Short differs from token 6 on: ln(1 / 32) each. Keys: the zeros at
    6 and 8 (gain ln .9 + ln 32 = 3.36 > 2; the 1 at 7 lost); LongPPL = 1 / .9.
    """
    high, low, flat = math.log(0.9), math.log(0.1 / 31), -math.log(32)
    found = long_and_short(Remembers(), [3, 1, 1, 1, 1, 0, 0, 1, 0], truncation=4, window=2, batch_size=batch_size)
    np.testing.assert_allclose(found.long, [np.nan, low, low, low, low, high, high, low, high], rtol=1e-5)
    np.testing.assert_allclose(found.short, [np.nan, low, low, low, low, high, flat, flat, flat], rtol=1e-5)
    assert found.n_windows == 3
    result = longppl(found.long, found.short)
    assert (result.n_key, result.n_tokens) == (2, 8)
    assert result.longppl == pytest.approx(1 / 0.9, rel=1e-5)
    assert result.ppl == pytest.approx(math.exp(-(5 * low + 3 * high) / 8), rel=1e-5)


def test_every_short_log_prob_is_that_of_its_own_context() -> None:
    """Against one plain forward per token, float64 log-softmax, on a Llama."""
    model, ids = make_model(), [int(t) for t in np.random.default_rng(0).integers(2, 258, 23)]
    found = long_and_short(model, ids, truncation=8, window=3, batch_size=2)
    for t in range(1, 23):
        start = 0 if t < 8 else 3 * ((t - 8) // 3)
        for context, value in ((ids[:t], found.long[t]), (ids[start:t], found.short[t])):
            with torch.no_grad():
                logits = model(torch.tensor([context])).logits[0, -1].double()
            assert value == pytest.approx(float(logits.log_softmax(-1)[ids[t]]), abs=2e-5)


@pytest.mark.parametrize(
    ("n", "options", "said"),
    [
        (4, {"truncation": 4, "window": 2}, "no longer than the short context"),
        (65, {"truncation": 4, "window": 2}, "longer than the model's context"),
        (9, {"truncation": 4, "window": 0}, "at least 1"),
    ],
)
def test_refusals(n: int, options: dict[str, int], said: str) -> None:
    with pytest.raises(DiagError, match=said):
        long_and_short(Remembers(), [1] * n, **options)


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, text = tmp_path / "model", tmp_path / "text.txt"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    text.write_text("a text of some length, in which little is to be remembered", encoding="utf-8")
    capsys.readouterr()
    options = ["--truncation", "8", "--window", "4", "--device", "cpu"]
    out = tmp_path / "tokens.csv"
    assert main(["longppl", str(folder), str(text), "key_tokens.gain=0.01", "key_tokens.floor=-99", "--json",
                 "--out", str(out), *options]) == 0  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    n = len(text.read_bytes())
    assert (document["n_tokens"], document["n_compared"]) == (n - 1, n - 8)
    assert document["n_windows"] == math.ceil((n - 8) / 4)
    assert document["n_key"] == len(document["key_tokens"]) > 0 and document["gain"] == 0.01
    assert all(k["long"] - k["short"] > 0.01 and k["position"] >= 8 for k in document["key_tokens"])
    mean = np.mean([k["long"] for k in document["key_tokens"]])
    assert document["longppl"] == pytest.approx(math.exp(-mean), rel=1e-9)
    assert len(out.read_text().splitlines()) == n + 1
    # Judged by itself through --evaluator: the same keys.
    assert main(["longppl", str(folder), str(text), "key_tokens.gain=0.01", "key_tokens.floor=-99", "--json",
                 "--evaluator", str(folder), *options]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["longppl"] == document["longppl"]
    assert main(["longppl", str(folder), str(text), *options]) == 0
    assert "LongPPL" in capsys.readouterr().out
    assert main(["longppl", str(folder), str(text), "--truncation", "8", "--device", "cpu"]) == 0
    assert "no token can be key" in capsys.readouterr().out
    assert main(["longppl", str(folder), str(tmp_path / "none.txt")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main(["longppl", str(folder), str(text), "spike_mads=3", *options]) == 2


@pytest.mark.slow
def test_smollm2_recalls_what_the_window_cut() -> None:
    """A number told once, 500 tokens of filler, the number again: its repetition is key, the filler is not."""
    from dpo_diag.models.checkpoints import Checkpoint, Loader
    from dpo_diag.models.smollm2 import smollm2_folder

    try:
        folder = smollm2_folder()
    except DiagError as error:
        pytest.skip(str(error))
    filler = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. " * 22
    code = "The secret code of the lighthouse is 739152846."
    with Loader(device="cpu").open(Checkpoint(str(folder))) as (model, tokenizer):
        ids = tokenizer(f"{code} {filler}{code}")["input_ids"]
        found = long_and_short(model, ids, truncation=128, window=64, batch_size=2)
        digits = [i for i in range(len(ids) - 20, len(ids)) if tokenizer.decode([ids[i]]).isdigit()]
    result = longppl(found.long, found.short)
    gain = found.long - found.short
    assert len(digits) == 9 and np.mean(gain[digits]) > 1.5
    assert abs(np.mean(gain[200 : len(ids) - 25])) < 0.2
    assert 5 <= result.n_key < 40 and result.longppl < 2
