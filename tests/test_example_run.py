"""runs/example is whole and tells the story; tests/docs runs every command that the pages print on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dpo_diag.commands.diag import main
from dpo_diag.records import load_run

EXAMPLE = Path(__file__).resolve().parents[1] / "runs" / "example"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("runs") / "example"
    shutil.copytree(EXAMPLE, copy)
    return copy


def test_it_is_small_and_whole() -> None:
    files = [p for p in EXAMPLE.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 1_000_000
    run = load_run(EXAMPLE)
    assert run.meta["status"] == "finished"
    assert sorted(set(run.pairs.query("split == 'eval'")["step"])) == [0, 20, 40, 60, 80]
    assert run.pairs.query("split == 'eval' and step == 0")["pair_id"].nunique() == 124
    assert run.outputs.groupby(["step", "model"]).size().eq(300).all()
    assert run.history.query("name == 'loss_residual'")["value"].max() < 1e-4


def test_it_tells_the_story(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss falls, chosen perplexity rises, fewer answers are right: the numbers of this very run."""
    assert main(["explain", str(example), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["loss"]["from"] == pytest.approx(0.693147, abs=1e-5)
    assert told["loss"]["to"] == pytest.approx(0.5608, abs=1e-3)
    assert told["loss"]["chosen_part"] + told["loss"]["rejected_part"] == pytest.approx(told["loss"]["delta"], rel=1e-9)
    ppl = told["perplexity"]["chosen"]["ppl_seq_mean"]
    assert (ppl["from"], ppl["to"]) == (pytest.approx(1.4275, abs=1e-3), pytest.approx(1.739, abs=1e-2))
    assert told["verdict"]["harm"] == "harmful"
    assert (example / "findings.json").is_file()

    # The pages tell the same numbers; the picture shows the perplexity of explain's table.
    root, loss, ppl = EXAMPLE.parents[1], told["loss"], told["perplexity"]["chosen"]["ppl_token"]
    assert (ppl["from"], ppl["to"]) == (pytest.approx(1.3271, abs=1e-3), pytest.approx(1.610, abs=1e-2))
    picture = f"The loss fell {loss['from']:.3f} to {loss['to']:.3f} while chosen perplexity rose {ppl['from']:.2f} to"
    assert f"{picture} {ppl['to']:.2f}" in (root / "README.md").read_text(encoding="utf-8")
    handbook = " ".join((root / "docs" / "handbook" / "divergence.md").read_text(encoding="utf-8").split())
    parts = f"lowered it by {-loss['rejected_part']:.3f}, the chosen ones *raised* it by {loss['chosen_part']:.3f}"
    assert f"the loss fell by {-loss['delta']:.3f}: the rejected answers {parts}" in handbook
