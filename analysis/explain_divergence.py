"""Why did this run's loss and perplexity part? A page of pandas over the records: a model for your own scripts.

    python analysis/explain_divergence.py runs/example
    python analysis/explain_divergence.py RUN --from 0 --to 80 --out tables/

Prints a short table of each question and saves the full frames as CSV files in RUN/analysis (or --out).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from dpo_diag import load_run
from dpo_diag.diagnosis.aligned import align
from dpo_diag.diagnosis.decompose.loss import loss_spec, split_losses
from dpo_diag.diagnosis.decompose.perplexity import pair_contributions, rank_pairs, split_perplexity
from dpo_diag.diagnosis.decompose.tokens import by_role
from dpo_diag.diagnosis.pair_rows import step_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--from", dest="from_step", help="first step, or ref")
    parser.add_argument("--to", dest="to_step", type=int)
    parser.add_argument("--split")
    parser.add_argument("--out", type=Path, help="folder of the CSV files (default: RUN/analysis)")
    args = parser.parse_args()

    # 1. Which rows: the fixed set, the reference (or its first step) and its last step, the pairs that stand at both.
    run = load_run(args.run)
    aligned = align(run, args.from_step, args.to_step, args.split)
    pairs = aligned.pairs
    steps = f"{step_name(aligned.from_step)} to {step_name(aligned.to_step)}"
    print(f"{run.name}: {aligned.split}, {steps}, {len(pairs)} pairs\n")
    frames: dict[str, pd.DataFrame] = {}

    # 2. Through which side the loss moved (means over pairs; the two parts add up to the change).
    spec, why_not = loss_spec(run)
    if spec is None:
        print(f"loss: not applicable: {why_not}\n")
    else:
        frames["loss"] = split_losses(spec, pairs).assign(pair_id=pairs["pair_id"])
        print(frames["loss"].drop(columns="pair_id").mean().round(5).to_string(), "\n")

    # 3. Why each perplexity moved, for each side, per token (or per byte where no tokens were counted).
    sides = aligned.responses
    if "chosen" not in sides:
        raise SystemExit(f"perplexity: not applicable: {aligned.unit_and_note[1]}")
    splits = {(side, name): row for side, a in sides.items() for name, row in split_perplexity(*a.args).items()}
    frames["perplexity"] = pd.DataFrame(splits).T.rename_axis(["side", "perplexity"]).reset_index()
    print(frames["perplexity"].round(4).to_string(index=False), "\n")

    # 4. In which pairs: share_of_rise and its running sum.
    arrays = sides["chosen"]
    parts = pair_contributions(*arrays.args).assign(pair_id=pairs.loc[arrays.keep, "pair_id"].to_numpy())
    frames["pairs"] = rank_pairs(parts)
    columns = ["pair_id", "share_of_rise", "cumulative_share", "ce_from", "ce_to"]
    print(frames["pairs"][columns].head(10).round(4).to_string(index=False), "\n")

    # 5. In which tokens, by their role in the alignment of chosen and rejected.
    if aligned.tokens is not None:
        frames["tokens_by_role"] = by_role(aligned.tokens)
        print(frames["tokens_by_role"].round(4).to_string(index=False), "\n")

    out = args.out or args.run / "analysis"
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        frame.to_csv(out / f"{name}.csv", index=False)
    print(f"wrote {', '.join(f'{name}.csv' for name in frames)} to {out}")


if __name__ == "__main__":
    main()
