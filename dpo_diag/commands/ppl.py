"""`dpo-diag ppl 2.3 --vocab-size 49152`: a loss as perplexity, on the vocabulary's scale."""

from __future__ import annotations

from dpo_diag.command_lines import say_next
from dpo_diag.diagnosis.decompose.loss_level import compare_levels, loss_level
from dpo_diag.next_steps import after_ppl
from dpo_diag.styled import fitted
from dpo_diag.text import arrow, table, to_json


def ppl(loss: float, /, *losses: float, vocab_size: int | None = None, json: bool = False) -> int:
    """What a loss means as perplexity.

    Args:
        loss: a cross-entropy in nats per token.
        losses: more of them, to compare.
        vocab_size: tokens of the vocabulary: gives the uniform guess as scale.
        json: one JSON document on standard output.
    """
    values = [loss, *losses]
    levels = [loss_level(value, vocab_size) for value in values]
    changes = compare_levels(values)
    if json:
        document = levels[0] if len(levels) == 1 else {"levels": levels, "changes": changes}
        print(to_json({**document, "next": after_ppl()}))
        return 0
    names = ["loss", "perplexity", "bits_per_token", "uniform_loss", "share_of_uniform"]
    header = ["loss", "perplexity", "bits/token", "uniform loss", "of uniform"]
    print(table(header, [[level[n] for n in names] for level in levels]))
    for level in levels:
        print(f"\nloss {level['loss']:g} means:")
        print(fitted("\n".join(f"  {text}" for text in level["means"])))
    for change in changes:
        print(f"\n{change['from']:g} → {change['to']:g} is perplexity {arrow(change['ppl_from'], change['ppl_to'])}"
              f" (times {change['ppl_ratio']:.3g})")  # fmt: skip
    print("\nand it does not mean:")
    print(fitted("\n".join(f"  {text}" for text in levels[0]["does_not_mean"])))
    say_next(after_ppl())
    return 0
