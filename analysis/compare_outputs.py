"""What did the checkpoints write? A page of pandas over a run's records, as a model for your own questions.

    python analysis/compare_outputs.py runs/example

Prints which prompts changed and when, what became of the words, the scores by tag, and the phrases that the model took
up; saves compare_outputs.jsonl beside the run. Needs no torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import dpo_diag


def main(folder: str) -> None:
    run = dpo_diag.load_run(folder)
    compared = run.compare_outputs()
    print(compared.sentence, "\n")

    # 1. One column per step; a prompt changed wherever a column differs from the one before. Sample 0 is greedy.
    answers = run.outputs.query("sample == 0 and model == 'policy'")
    wide = answers.pivot(index="prompt_id", columns="step", values="text")
    changed = wide.ne(wide.shift(axis=1)).iloc[:, 1:] & wide.notna().iloc[:, 1:]
    print("answers changed since the step before:")
    print(changed.sum().to_frame("changed").assign(prompts=len(wide)).to_string(), "\n")

    # 2. The most changed prompts. Model text is hostile input to a terminal: repr shows its control characters.
    first, last = wide.columns[0], wide.columns[-1]
    for prompt_id in changed.sum(axis=1).sort_values(ascending=False).index[:5]:
        for step in (first, last):
            print(f"{prompt_id} at {step}: {str(wide.loc[prompt_id, step])[:200]!r}")
    print()

    # 3. Share of right answers by tag and step, with its interval and n; from right to wrong and from wrong to right.
    tags = compared.at_target(compared.tags)
    print(f"by tag, {compared.target.label} (complement: answers without the tag):")
    print(tags.round(3).to_string(index=False) if len(tags) else "no answer has a tag", "\n")
    scored = answers.dropna(subset=["correct"]).pivot(index="prompt_id", columns="step", values="correct")
    if {first, last} <= set(scored):
        lost = int(((scored[first] == 1) & (scored[last] == 0)).sum())
        won = int(((scored[first] == 0) & (scored[last] == 1)).sum())
        print(f"{lost} answers went from right to wrong and {won} from wrong to right\n")
    else:
        print("right or wrong: the run holds no checker's verdicts\n")

    # 4. Phrases that more answers hold than before, and how often they stand in the training answers.
    print(f"phrases that grew since {compared.baseline.label}:")
    columns = ["phrase", "before", "after", "n", "log_odds", "q", "in_chosen", "in_rejected"]
    shown = compared.phrases.reindex(columns=columns).assign(phrase=compared.phrases["phrase"].map(repr))
    print(shown.to_string(index=False) if len(shown) else "none beyond chance")

    # As JSON: in a spreadsheet, an answer that begins with = would be a formula.
    out = Path(folder) / "compare_outputs.jsonl"
    wide.reset_index().to_json(out, orient="records", lines=True)
    print(f"\nwrote {out}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except dpo_diag.DiagError as error:
        sys.exit(str(error))
