"""The narrative's "Why": through which side, which term, which tokens; then the checks that speak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpo_diag.text import arrow, number, percent, plural, safe, signed

ROLE_WORDS = {
    "shared_prefix": "in the beginning that both answers share",
    "first_difference": "at the first token that differs",
    "differing": "in later tokens that differ",
    "shared_after": "in what they share after the difference",
    "end": "at the end token",
}
ROUNDING = 1e-9
"""A term below this is the rounding of a sum, not a cause."""
TOKEN_CHARS = 40


@dataclass(frozen=True)
class Sentence:
    """A sentence and the keys of the document that it rests on."""

    text: str
    keys: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """As the explanation holds it."""
        return {"text": self.text, "from": list(self.keys)}


def say(text: str, *keys: str) -> Sentence:
    """A sentence that rests on these keys."""
    return Sentence(text, keys)


def quoted(text: str, max_chars: int | None = None) -> str:
    """Foreign text in quotation marks, in one line, its control characters shown and not obeyed."""
    return f'"{safe(text, max_chars=max_chars, one_line=True)}"'


def causes(document: dict[str, Any]) -> list[Sentence]:
    """Sentences about causes; one that says so if there is none."""
    parts = (_loss, _perplexity, _tokens, _destination, gained_sentences, _prompt, _similarity)
    sentences = [sentence for part in parts for sentence in part(document)]
    for check in document["checks"]:
        if check["outcome"] == "speaks":
            sentences.append(say(f"{check['code']} {check['title']}: {check['reason'].rstrip('.')}.", "checks"))
    return sentences or [say("The records do not show why.", "loss", "perplexity")]


def _loss(document: dict[str, Any]) -> list[Sentence]:
    loss = document["loss"]
    if loss.get("chosen_part") is None or abs(loss["delta"]) < ROUNDING:
        return []
    text = (
        f"Of the loss's change {signed(loss['delta'], 4)}, {signed(loss['chosen_part'], 4)} came through the chosen "
        f"answers and {signed(loss['rejected_part'], 4)} through the rejected ones"
    )
    answers = loss["chosen_part"] + loss["rejected_part"]
    if answers < 0 < loss["chosen_part"]:
        text += ": the rejected answers alone lowered it, the chosen ones raised it"
    elif loss["rejected_part"] < 0 < answers:
        text += ": the chosen answers raised it by more than the rejected ones lowered it"
    sentences = [say(f"{text}.", "loss.chosen_part", "loss.rejected_part")]
    if "coefficient_part" in loss:
        moves = ", ".join(f"{name} {arrow(*values)}" for name, values in loss["coefficients"].items())
        which = [f"the coefficients that a schedule moved: {moves}"] * bool(moves)
        if "pair_beta" in loss:
            which.append(f"each pair's own beta: mean {arrow(*loss['pair_beta'])}")
        text = f"{signed(loss['coefficient_part'], 4)} of it came with {', and '.join(which)}."
        sentences.append(say(text, "loss.coefficient_part", "loss.coefficients"))
    if loss.get("least_at_margin") is not None:
        least, at = number(loss["floor"]), number(loss["least_at_margin"])
        text = f"With label smoothing this loss cannot fall below {least}, at a margin of {at}; beyond it, it rises."
        sentences.append(say(text, "loss.floor", "loss.least_at_margin"))
    return sentences


def _perplexity(document: dict[str, Any]) -> list[Sentence]:
    chosen = document["perplexity"].get("chosen", {})
    sentences = []
    row = chosen.get("ppl_seq_mean")
    if row and row.get("dispersion") is not None and row["level"] is not None:
        likely = f"answers became {'less' if row['level'] > 0 else 'more'} likely on average"
        apart = "the answers moved apart" if row["dispersion"] > 0 else "the answers moved closer together"
        terms = [
            f"{signed(term)} because {why}"
            for term, why in ((row["level"], likely), (row["dispersion"], apart))
            if abs(term) >= ROUNDING
        ]
        if terms:
            text = f"Chosen log ppl_seq_mean changed by {signed(row['dlog'])}: {', '.join(terms)}."
            sentences.append(say(text, "perplexity.chosen.ppl_seq_mean"))
    row = chosen.get("ppl_token")
    weight = row.get("length_weight") if row else None
    if (
        weight is not None
        and abs(weight) > document["thresholds"]["narrative.least_length_share"] * abs(row["dlog"]) > 0
    ):
        text = (
            f"Length matters: {signed(weight)} of the change {signed(row['dlog'])} of log ppl_token comes from long "
            "answers changing differently from short ones."
        )
        sentences.append(say(text, "perplexity.chosen.ppl_token"))
    return sentences


def _tokens(document: dict[str, Any]) -> list[Sentence]:
    tokens = document.get("tokens") or {}
    roles = [r for r in tokens.get("by_role") or [] if r["side"] == "chosen" and r["share"] is not None]
    total, count = sum(r["delta"] for r in roles), sum(r["n_tokens"] for r in roles)
    if not roles or not total:
        return []
    named = sorted(
        (r for r in roles if abs(r["share"]) >= document["thresholds"]["narrative.least_role_share"]),
        key=lambda r: -r["share"],
    )
    rest = total - sum(r["delta"] for r in named)
    # Shares of a sum whose parts cancel say nothing: those parts are told in nats.
    cancels = any(not 0 <= part / total <= 1 for part in [rest, *(r["delta"] for r in named)])
    parts = [
        f"{signed(r['delta'], 4)} {ROLE_WORDS[r['role']]} ({percent(r['n_tokens'] / count)} of the tokens)"
        if cancels
        else f"{percent(r['share'])} is {ROLE_WORDS[r['role']]} ({percent(r['n_tokens'] / count)} of the tokens)"
        for r in named
    ]
    if abs(rest) >= ROUNDING:
        parts.append(f"{signed(rest, 4) if cancels else percent(rest / total)} elsewhere")
    over = _token_pairs(tokens, document["n_pairs"])
    text = f"Of the chosen answers' log-prob change of {signed(total, 4)} nats{over}, {', '.join(parts)}."
    sentences = [say(text, "tokens.by_role")]
    after = tokens["chosen_after_first_difference"]
    if total < 0 and after["share"] is not None:
        there = f"{percent(after['share'])} of it is there"
        if after["share"] > 1:
            there = f"all of it and more is there ({percent(after['share'])}: the tokens before it rose)"
        elif after["share"] < 0:
            there = "none of it is there (those tokens rose)"
        text = (
            f"DPOP expects the fall from the first difference on: {there}, on {percent(after['token_share'])} of the "
            "tokens."
        )
        sentences.append(say(text, "tokens.chosen_after_first_difference"))
    return sentences


def _token_pairs(tokens: dict[str, Any], n_pairs: int | None) -> str:
    """ " (32 of 124 pairs have token records)" where tokens stand for a part of the pairs only."""
    used = (tokens.get("pairs_used") or {}).get("chosen")
    if used is None or not n_pairs or used >= n_pairs:
        return ""
    return f" ({used} of {plural(n_pairs, 'pair')} with token records at both steps)"


def _destination(document: dict[str, Any]) -> list[Sentence]:
    return [
        say(f"{side.capitalize()}: {section['text']}", f"destination.{side}")
        for side, section in (document.get("destination") or {}).items()
        if isinstance(section, dict) and section.get("text")
    ]


def gained_sentences(document: dict[str, Any]) -> list[Sentence]:
    """Which tokens took what chosen lost, and whether the single-token theory predicted it."""
    gained = document.get("gained") or {}
    if "not_applicable" in gained:
        return [say(f"Where the lost probability went was not computed: {gained['not_applicable']}.", "gained")]
    sentences = []
    for side in ("chosen", "rejected"):
        section = gained.get(side)
        if not section or not section["gained"]:
            continue
        took = ", ".join(f"{quoted(g['text'], TOKEN_CHARS)} ({percent(g['share'])})" for g in section["gainers"][:3])
        went = section["went_to"]
        text = (
            f"At the {plural(section['n_positions'], 'position')} where {side} tokens lost most probability, the "
            f"largest gainers were {took}; of all that was gained {percent(went['other_answer'])} went to the other "
            f"answer's token, {percent(went['former_first_choice'])} to what was already the model's first choice."
        )
        sentences.append(say(text, f"gained.{side}"))
    theory = gained.get("theory") or {}
    if "rho" in theory and theory["rho"]["mean"] is not None:
        text = (
            f"At {plural(theory['n_positions'], 'first difference')} the single-token theory's ranking of tokens "
            f"correlates {theory['rho']['mean']:+.2f} with what happened; {theory['hits']:.1f} of the {theory['of']} "
            f"largest gainers were among its first {theory['of']} (by chance {theory['hits_by_chance']:.2g})."
        )
        sentences.append(say(text, "gained.theory"))
    return sentences


def _prompt(document: dict[str, Any]) -> list[Sentence]:
    chosen = (document.get("prompt_dependence") or {}).get("chosen")
    if not chosen or chosen["n_key"] < document["thresholds"]["narrative.least_key_tokens"]:
        return []
    key, other = chosen["ppl_key"], chosen["ppl_other"]
    text = (
        f"On the {percent(chosen['key_share'])} of chosen tokens that the prompt makes likely, perplexity went "
        f"{arrow(key['from'], key['to'])}, on the others {arrow(other['from'], other['to'])}."
    )
    return [say(text, "prompt_dependence.chosen")]


def _similarity(document: dict[str, Any]) -> list[Sentence]:
    """The one feature known before training that correlates most clearly with the change, if any does."""
    limits = document["thresholds"]
    entries = (document.get("similarity") or {}).get("correlations_with_chosen_change") or []
    clear = [
        e for e in entries
        if e["rho_given_length"] is not None and e["p_given_length"] < limits["narrative.largest_p"]
        and abs(e["rho_given_length"]) >= limits["narrative.least_correlation"]
    ]  # fmt: skip
    if not clear:
        return []
    best = max(clear, key=lambda e: abs(float(e["rho_given_length"])))
    lower = "lower" if best["rho_given_length"] > 0 else "higher"
    text = (
        f"Chosen lost more where {best['feature']} was {lower} before training (rank correlation "
        f"{best['rho_given_length']:+.2f} with length taken out, n = {best['n']})."
    )
    return [say(text, "similarity.correlations_with_chosen_change")]
