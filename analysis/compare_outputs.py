"""What did the checkpoints write? A page of pandas over a run's records, as a model for your own questions.

    python analysis/compare_outputs.py runs/example

Prints which prompts changed and when, what became of the words, the scores by tag, and the phrases that the model took
up; saves compare_outputs.csv beside the run. Needs no torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from dpo_diag import load_run
from dpo_diag.outputs.diff import marked, word_diff
from dpo_diag.outputs.phrases import Inflation
from dpo_diag.stats import proportion
from dpo_diag.text import frame_for_csv, safe


def main(folder: str) -> None:
    run = load_run(folder)
    # One row per (step, model, prompt, sample); sample 0 is the greedy answer.
    answers = run.outputs.query("sample == 0")
    if answers.empty:
        sys.exit(f"{folder} holds no answers to fixed prompts")
    if answers["decoding_hash"].nunique(dropna=False) > 1:
        sys.exit("the answers were written under different decoding settings: they cannot be compared")
    policy = answers[answers["model"] == "policy"].sort_values("step")

    # 1. One column per step; a prompt changed wherever a column differs from the one before.
    wide = policy.pivot(index="prompt_id", columns="step", values="text")
    changed = wide.ne(wide.shift(axis=1)).iloc[:, 1:] & wide.notna().iloc[:, 1:]
    print("answers changed since the step before:")
    print(changed.sum().to_frame("changed").assign(prompts=len(wide)).to_string(), "\n")

    # 2. The most changed prompts, word by word. Model text is made safe before it reaches the terminal.
    first, last = wide.columns[0], wide.columns[-1]
    for prompt_id in changed.sum(axis=1).sort_values(ascending=False).index[:5]:
        old, new = (safe(wide.loc[prompt_id, step], max_chars=300) for step in (first, last))
        print(f"{prompt_id}: {marked(word_diff(old, new), context=40)}")
    print()

    # 3. Share of right answers by tag and step, with Wilson's interval and n.
    scored = policy.dropna(subset=["correct"]).explode("tags")
    if len(scored):
        table = scored.groupby(["tags", "step"])["correct"].agg(["sum", "count"])
        table["share"] = table["sum"] / table["count"]
        bounds = [proportion(s, n).bounds for s, n in zip(table["sum"], table["count"], strict=True)]
        table[["low", "high"]] = pd.DataFrame(bounds, index=table.index)
        print("right answers by tag:")
        print(table[["share", "low", "high", "count"]].round(3).to_string(), "\n")

    # 4. Phrases that more answers hold than before, and how often they stand in the training answers.
    baseline = next((m for m in ("sft", "ref") if (answers["model"] == m).any()), None)
    before = answers[answers["model"] == baseline].set_index("prompt_id")["text"] if baseline else wide[first]
    earlier, later = ({str(k): str(v) for k, v in column.dropna().items()} for column in (before, wide[last]))
    phrases = Inflation(earlier, later, run.texts).risen()
    print(f"phrases that grew since {baseline or f'step {first}'}:")
    columns = ["phrase", "before", "after", "n", "log_odds", "q", "in_chosen", "in_rejected"]
    shown = phrases[columns].assign(phrase=phrases["phrase"].map(lambda p: safe(p, one_line=True)))
    print(shown.to_string(index=False) if len(shown) else "none beyond chance")

    out = Path(folder) / "compare_outputs.csv"
    frame_for_csv(wide.reset_index()).to_csv(out, index=False)
    print(f"\nwrote {out}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
