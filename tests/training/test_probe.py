"""The probe where something fails or begins again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dpo_diag import load_run
from dpo_diag.records import RunWriter
from dpo_diag.training import probe
from dpo_diag.training.probe import Probe
from dpo_diag.training.recorder import Recorder

from .tiny import make_model, make_pairs

PAIRS = make_pairs(3)


def test_rows_that_cannot_be_written_fail_on_every_process(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 alone writes. A full disk is told inside of `together`, where the others hear of it: outside, they would
    wait for ever for what rank 0 wrote. The reference was not recorded, so that the next step measures it."""
    failed: list[str] = []
    real = probe.together

    def told(work: Callable[[], Any]) -> Any:
        try:
            return real(work)
        except OSError as error:
            failed.append(str(error))
            raise

    def full(*args: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(probe, "together", told)
    measured = Probe(PAIRS, out=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(probe, "write_scores", full)
        with pytest.raises(OSError, match="no space left"):
            measured.score(make_model(1), tokenizer, 0)
    assert failed == ["no space left on device"]
    assert not measured.steps
    measured.score(make_model(1), tokenizer, 0)
    assert set(load_run(tmp_path / "run").read("pairs")["role"]) == {"policy", "ref"}


def test_a_loop_that_begins_again_keeps_what_was_before_it(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Resumed at step 5 and run again with a smaller batch from there: the rows up to 5 are those of the weights that
    it goes on from. At step 0 the weights may have been trained meanwhile: all is measured again."""
    first = Probe(PAIRS, out=tmp_path / "run")
    for step in (0, 5, 8):
        first.score(make_model(1), tokenizer, step)
    again = Probe(PAIRS, out=tmp_path / "run")
    again.open(5)
    again.close()
    again.open(5, again=True)
    assert again.steps == {0, 5}
    assert again.reference.known
    again.close()
    again.open(0, again=True)
    assert again.steps == set()


def test_another_training_is_cut_as_it_says(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """One probe for two trainings with one tokenizer, the second with a max_length of 10: what it lacks of each
    response was cut off."""
    one = Probe(PAIRS, out=tmp_path / "one", max_length=None)
    one.score(make_model(1), tokenizer, 0)
    one.close()
    one.out, one.max_length = tmp_path / "two", 10
    one.score(make_model(2), tokenizer, 0)
    whole, cut = (load_run(tmp_path / name).pairs.set_index(["pair_id", "side"]) for name in ("one", "two"))
    assert whole["n_truncated"].sum() == 0
    assert cut["n_truncated"].sum() > 0
    assert (cut["n_tokens"] + cut["n_truncated"]).to_dict() == whole["n_tokens"].to_dict()


def test_waiting_texts_are_dropped_where_a_loop_begins_again(tmp_path: Path) -> None:
    """The first loop runs out of memory before its texts are written; the second writes them once."""
    recorder = Recorder(RunWriter(tmp_path / "run"))
    text = {"pair_id": "a", "prompt": "p", "chosen": "c", "rejected": "r"}
    for _ in range(2):
        recorder.begin(0)
        recorder.texts("train", [text], 1)
    recorder.flush()
    assert load_run(tmp_path / "run").read("texts", ["pair_id"])["pair_id"].tolist() == ["a"]
