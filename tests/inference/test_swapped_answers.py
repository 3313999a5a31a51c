"""The old answer under the new model, and the reverse: written as each model gives them, read by compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpo_diag.errors import DiagError
from dpo_diag.inference.generate_run import generate_checkpoints
from dpo_diag.inference.scoring import answer_logp
from dpo_diag.inference.swapped_answers import score_swapped
from dpo_diag.models.checkpoints import Loader
from dpo_diag.models.decoding import Decoding
from dpo_diag.outputs.compare import compare
from dpo_diag.records import load_run
from dpo_diag.records.schemas import ANSWER_LOGPS
from dpo_diag.records.side_tables import read_side_table

from .conftest import make_model, make_tokenizer

PROMPTS = [{"id": f"p{i}", "prompt": text} for i, text in enumerate(("some", "a b", "hi"))]


def test_old_answers_under_the_new_model_and_the_reverse(tmp_path: Path) -> None:
    names = []
    for seed, name in ((0, "ref=a"), (1, "policy@5=b")):
        folder = tmp_path / name.split("=")[1]
        make_model(seed=seed).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        names.append(f"{name.split('=')[0]}={folder}")
    out, loader = tmp_path / "run", Loader(device="cpu")
    generate_checkpoints(names, PROMPTS, out, decoding=Decoding(6), loader=loader, progress=False)
    assert compare(out)["across"] == []
    with pytest.raises(DiagError, match="no two checkpoints with answers"):
        score_swapped(names[:1], out, loader=loader, progress=False)
    score_swapped(names, out, loader=loader, progress=False)
    found = read_side_table(out, ANSWER_LOGPS)
    answers = load_run(out).outputs
    old = answers[answers["model"] == "ref"]
    under_new = answer_logp(make_model(seed=1), make_tokenizer(), old)
    told = found[(found["model"] == "policy") & (found["of_model"] == "ref")].set_index("prompt_id")["sum_logp"]
    assert np.allclose(told.loc[list(old["prompt_id"])], under_new, atol=1e-4)
    assert len(found) == 6  # three prompts, both ways

    lines: list[str] = []
    score_swapped(names, out, loader=loader, progress=False, say=lines.append)
    assert lines == [] and read_side_table(out, ANSWER_LOGPS).equals(found)  # nothing is scored twice

    first, second = compare(out)["across"]
    assert (first["of"], first["n"], second["of"]) == ("old", 3, "new")
    assert first["logp_before"] == pytest.approx(old["sum_logp"].mean())
    assert first["delta"] == pytest.approx(float(under_new.mean() - old["sum_logp"].mean()), abs=1e-4)
    new = answers[answers["model"] == "policy"]
    assert second["logp_after"] == pytest.approx(new["sum_logp"].mean())
