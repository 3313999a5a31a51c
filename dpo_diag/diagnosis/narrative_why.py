"""The narrative's "Why": through which side, which term, which tokens; then the checks that speak."""

from __future__ import annotations

from typing import Any

from dpo_diag.diagnosis.wording import Sentence, escape_text, number, percent, say

ROLE_WORDS = {
    "shared_prefix": "in the beginning that both answers share",
    "first_difference": "at the first token that differs",
    "differing": "in later tokens that differ",
    "shared_after": "in what they share after the difference",
    "end": "at the end token",
}
LEAST_SHARE = 0.15
"""A role that carries less of the change than this is not named."""
LEAST_KEY_TOKENS = 20


def why(document: dict[str, Any]) -> list[Sentence]:
    """Sentences about causes; one that says so if there is none."""
    said = [*_loss(document), *_perplexity(document), *_tokens(document), *_destination(document), *_gained(document)]
    said += [*_prompt(document), *_similarity(document)]
    for check in document["checks"]:
        if check["outcome"] == "speaks":
            said.append(say(f"{check['code']} {check['title']}: {check['reason'].rstrip('.')}.", "checks"))
    return said or [say("The records do not tell why.", "loss", "perplexity")]


def _loss(document: dict[str, Any]) -> list[Sentence]:
    loss = document["loss"]
    if loss.get("chosen_part") is None or not loss["delta"]:
        return []
    text = (
        f"Of the loss's change {loss['delta']:+.4g}, {loss['chosen_part']:+.4g} came through the chosen answers and "
        f"{loss['rejected_part']:+.4g} through the rejected ones"
    )
    if loss["delta"] < 0 < loss["chosen_part"]:
        text += ": the rejected answers did it alone, against the chosen ones"
    return [say(f"{text}.", "loss.chosen_part", "loss.rejected_part")]


def _perplexity(document: dict[str, Any]) -> list[Sentence]:
    chosen, said = document["perplexity"].get("chosen", {}), []
    row = chosen.get("ppl_seq_mean")
    if row and row.get("dispersion") is not None:
        apart = "the answers moved apart" if row["dispersion"] > 0 else "the answers moved closer together"
        text = (
            f"Chosen log ppl_seq_mean moved {row['dlog']:+.3g}: {row['level']:+.3g} because answers became "
            f"{'less' if row['level'] > 0 else 'more'} likely on average, {row['dispersion']:+.3g} because {apart}."
        )
        said.append(say(text, "perplexity.chosen.ppl_seq_mean"))
    row = chosen.get("ppl_token")
    if row and row.get("length_weight") is not None and abs(row["length_weight"]) > 0.1 * abs(row["dlog"]) > 0:
        text = (
            f"Length matters: {row['length_weight']:+.3g} of log ppl_token's {row['dlog']:+.3g} comes from long "
            "answers moving otherwise than short ones."
        )
        said.append(say(text, "perplexity.chosen.ppl_token"))
    return said


def _tokens(document: dict[str, Any]) -> list[Sentence]:
    tokens = document.get("tokens") or {}
    roles = [r for r in tokens.get("by_role") or [] if r["side"] == "chosen" and r["share"] is not None]
    total = sum(r["delta"] for r in roles)
    count = sum(r["n_tokens"] for r in roles)
    if not roles or not total:
        return []
    named = sorted((r for r in roles if abs(r["share"]) >= LEAST_SHARE), key=lambda r: -r["share"])
    parts = [
        f"{percent(r['share'])} {ROLE_WORDS[r['role']]} ({percent(r['n_tokens'] / count)} of the tokens)" for r in named
    ]
    said = [
        say(f"Of the chosen answers' log-prob change of {number(total)} nats, {', '.join(parts)}.", "tokens.by_role")
    ]
    after = tokens["chosen_after_first_difference"]
    if total < 0:
        text = (
            f"DPOP expects the fall from the first difference on: {percent(after['share'])} of it is there, on "
            f"{percent(after['token_share'])} of the tokens."
        )
        said.append(say(text, "tokens.chosen_after_first_difference"))
    return said


def _destination(document: dict[str, Any]) -> list[Sentence]:
    found = document.get("destination") or {}
    return [
        say(f"{side.capitalize()}: {section['text']}", f"destination.{side}")
        for side, section in found.items()
        if isinstance(section, dict) and section.get("text")
    ]


def _gained(document: dict[str, Any]) -> list[Sentence]:
    """Which tokens took what chosen lost, and whether the single-token theory foretold it."""
    found = document.get("gained") or {}
    if "not_applicable" in found:
        return [say(f"Where the lost probability went cannot be told: {found['not_applicable']}.", "gained")]
    said = []
    for side in ("chosen", "rejected"):
        section = found.get(side)
        if not section or not section["gained"]:
            continue
        took = ", ".join(f"{_quoted(g['text'])} ({percent(g['share'])})" for g in section["gainers"][:3])
        went = section["went_to"]
        text = (
            f"At the {section['n_positions']} positions where {side} tokens lost most probability, the largest gainers "
            f"were {took}; of all that was gained {percent(went['other_answer'])} went to the other answer's token, "
            f"{percent(went['former_first_choice'])} to what was the model's first choice already."
        )
        said.append(say(text, f"gained.{side}"))
    theory = found.get("theory") or {}
    if "rho" in theory and theory["rho"]["mean"] is not None:
        text = (
            f"At {theory['n_positions']} first differences the single-token theory's ranking of tokens correlates "
            f"{theory['rho']['mean']:+.2f} with what happened; {theory['hits']:.1f} of the {theory['of']} largest "
            f"gainers were among its first {theory['of']} (by chance {theory['hits_by_chance']:.2g})."
        )
        said.append(say(text, "gained.theory"))
    return said


def _quoted(text: str) -> str:
    return f'"{escape_text(text, 40)}"'


def _prompt(document: dict[str, Any]) -> list[Sentence]:
    found = (document.get("prompt_dependence") or {}).get("chosen")
    if not found or found["n_key"] < LEAST_KEY_TOKENS:
        return []
    text = (
        f"On the {percent(found['key_share'])} of chosen tokens that the prompt makes likely, perplexity went "
        f"{number(found['ppl_key']['from'])} → {number(found['ppl_key']['to'])}, on the others "
        f"{number(found['ppl_other']['from'])} → {number(found['ppl_other']['to'])}."
    )
    return [say(text, "prompt_dependence.chosen")]


def _similarity(document: dict[str, Any]) -> list[Sentence]:
    """The one feature known before training that went along with the change most clearly, if any did."""
    entries = (document.get("similarity") or {}).get("correlations_with_chosen_change") or []
    clear = [e for e in entries if e["rho_given_length"] is not None and e["p_given_length"] < 0.01]
    clear = [e for e in clear if abs(e["rho_given_length"]) >= 0.2]
    if not clear:
        return []
    best = max(clear, key=lambda e: abs(float(e["rho_given_length"])))
    lost = "lower" if best["rho_given_length"] > 0 else "higher"
    text = (
        f"Chosen lost more where {best['feature']} was {lost} before training (rank correlation "
        f"{best['rho_given_length']:+.2f} with length taken out, n = {best['n']})."
    )
    return [say(text, "similarity.correlations_with_chosen_change")]
