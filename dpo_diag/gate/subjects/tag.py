"""`tag: NAME`: the mean score of the prompts with a tag, or with `of: gap` its gap to the other prompts."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from dpo_diag.diagnosis.measure import enough
from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import LIMITS, SUBJECTS, Missing, Quantity, Rule, Subject
from dpo_diag.outputs.answers import tags_of
from dpo_diag.outputs.behaviours import primary_score
from dpo_diag.paired import paired_change
from dpo_diag.stats import mean_difference, mean_interval


def _judge(judged: JudgedRun, rule: Rule) -> Quantity:
    c, tag = judged.comparison, str(rule["tag"])
    metric = primary_score(c.measured)
    if metric is None:
        raise Missing("no reference or checker gives the answers a score")
    before, after = (c.answers.values(c.measured, x, metric) for x in (c.baseline, c.target))
    scores = pd.DataFrame({"before": before, "after": after}).dropna()
    tags = c.answers.frame.drop_duplicates("prompt_id").set_index("prompt_id")["tags"].map(tags_of)
    tagged = tags.index[tags.map(lambda own: tag in own)]
    if tagged.empty:
        raise Missing(f"no prompt has the tag {tag}")
    inside, rest = scores[scores.index.isin(tagged)], scores[~scores.index.isin(tagged)]
    if inside.empty:
        raise Missing(f"the answers with tag {tag} have no score")
    if rule.get("of") != "gap":
        sources = c.answers.sources.reindex(inside.index).to_numpy(dtype=object)
        level = judged.limits["confidence_scores"]
        change = enough(paired_change(inside["before"], inside["after"], level, sources).delta, judged.limits)
        return Quantity(
            enough(mean_interval(inside["after"]), judged.limits), float(inside["before"].mean()), change
        )  # fmt: skip
    if rest.empty:
        raise Missing(f"all prompts have the tag {tag}: no gap to the rest")
    # Each prompt was answered twice, and the tagged and the other prompts are two samples: of the paired changes.
    change = mean_difference(rest["after"] - rest["before"], inside["after"] - inside["before"])
    gap_before = float(inside["before"].mean() - rest["before"].mean())
    gap = mean_difference(rest["after"], inside["after"])
    return Quantity(replace(gap, n=len(scores)), gap_before, change)


SUBJECTS.add(
    "tag",
    Subject(
        "NAME", "mean score of the prompts with that tag (`of: gap` for its gap to the rest)", _judge, limits=LIMITS,
        options={"of": ("score", "gap")},
    ),
)  # fmt: skip
