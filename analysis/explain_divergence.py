"""Why did this run's loss and perplexity part? A page of pandas over the records: a model for your own scripts.

    python analysis/explain_divergence.py runs/example
    python analysis/explain_divergence.py RUN --from 0 --to 80 --out tables/

Prints a short table of each question and saves the full frames as CSV files in RUN/analysis (or --out).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

import dpo_diag
from dpo_diag.text import frame_for_csv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--from", dest="from_step", help="first step, or ref")
    parser.add_argument("--to", dest="to_step", type=int)
    parser.add_argument("--split")
    parser.add_argument("--out", type=Path, help="folder of the CSV files (default: RUN/analysis)")
    args = parser.parse_args()

    # 1. Which rows: the fixed set, the reference (or its first step) and its last step, the pairs that stand at both.
    run = dpo_diag.load_run(args.run)
    found = run.explain(args.from_step, args.to_step, args.split)
    if found.pairs.empty:
        sys.exit(f"{args.run} holds no pairs at two steps: dpo-diag explain {args.run} says what its log tells")
    print(f"{run.name}: {found['split']}, {found['from_step']} to {found['to_step']}, {found['n_pairs']} pairs\n")
    frames: dict[str, pd.DataFrame] = {}

    # 2. How the pairs' loss, margin and perplexity went on, step by step (means and quartiles over pairs).
    pairs = run.pairs_wide(splits=[found["split"]])
    values = ["loss", "margin", "chosen_ce", "rejected_ce"]
    frames["steps"] = pairs.groupby("step", observed=True)[values].describe(percentiles=[0.25, 0.5, 0.75])
    print(pairs.groupby("step", observed=True)[values].mean().round(4).to_string(), "\n")

    # 3. Through which side the loss moved (means over pairs; the two parts add up to the change).
    loss = found["loss"]
    if "not_applicable" in loss:
        print(f"loss: not applicable: {loss['not_applicable']}\n")
    else:
        parts = ["from", "to", "delta", "chosen_part", "rejected_part", "residual"]
        frames["loss"] = pd.DataFrame([{part: loss[part] for part in parts}])
        print(frames["loss"].T[0].round(5).to_string(), "\n")

    # 4. Why each perplexity moved, for each side, per token (or per byte where no tokens were counted).
    perplexity = found["perplexity"]
    if "not_applicable" in perplexity:
        print(f"perplexity: not applicable: {perplexity['not_applicable']}\n")
    else:
        rows = [
            {"side": side, "perplexity": name, **of[name]}
            for side, of in perplexity.items()
            for name in ("ppl_token", "ppl_seq_mean", "ppl_seq_geomean")
        ]
        names = ["side", "perplexity", "from", "to", "dlog", "level", "dispersion", "length_weight", "residual"]
        frames["perplexity"] = pd.DataFrame(rows)[names]
        print(frames["perplexity"].round(4).to_string(index=False), "\n")

    # 5. In which pairs: share_of_rise and its running sum (found.texts() has what they say).
    frames["pairs"] = found.pairs
    shown = ["pair_id", "share_of_rise", "cumulative_share", "chosen_ce_from", "chosen_ce_to"]
    print(found.pairs.reindex(columns=shown).head(10).round(4).to_string(index=False), "\n")

    # 6. In which tokens, by their role in the alignment of chosen and rejected.
    tokens = found["tokens"]
    if "not_applicable" in tokens:
        print(f"tokens: not applicable: {tokens['not_applicable']}\n")
    else:
        frames["tokens_by_role"] = pd.DataFrame(tokens["by_role"])
        print(frames["tokens_by_role"].round(4).to_string(index=False), "\n")

    out = args.out or args.run / "analysis"
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        frame_for_csv(frame).to_csv(out / f"{name}.csv", index=name == "steps")
    print(f"wrote {', '.join(f'{name}.csv' for name in frames)} to {out}")


if __name__ == "__main__":
    try:
        main()
    except dpo_diag.DiagError as error:
        sys.exit(str(error))
