"""The explanation as text for a terminal: the narrative and compact tables."""

from __future__ import annotations

from typing import Any

from dpo_diag.diagnosis.causes import ROUNDING
from dpo_diag.styled import hanging
from dpo_diag.text import arrow, table
from dpo_diag.translated import Catalogue, catalogue

WIDTH = 160
"""Cells of a table's line: a perplexity's seven numbers beside its name need more than 100."""


def render_document(
    document: dict[str, Any], top: int = 10, width: int | None = None, say: Catalogue | None = None
) -> str:
    """Narrative first, then loss, perplexities, pairs and checks as tables.

    Args:
        width: cells of a terminal to wrap at; None for a file: sentences stay whole, tables take up to `WIDTH`.
        say: the language of the narrative; None for English.
    """
    text = _document(document, top, width or WIDTH, say or catalogue("en"))
    if width is None:
        return text
    return "\n".join(part for line in text.splitlines() for part in hanging(line, width))


def _document(document: dict[str, Any], top: int, room: int, say: Catalogue) -> str:
    blocks = [f"{document['run']} ({say(document['kind'])})", _narrative(document["narrative"], say)]
    loss = document["loss"]
    if loss.get("chosen_part") is not None:
        names = ["from", "to", "delta", "chosen_part", "rejected_part"]
        names += ["residual"] * (abs(loss.get("residual") or 0.0) > ROUNDING)
        blocks.append(table(["loss", *names], [["mean", *[loss[n] for n in names]]], room))
    rows = []
    for side, section in document["perplexity"].items():
        if not isinstance(section, dict):
            continue
        for name, row in section.items():
            if name == "excluded":
                continue
            rows.append([f"{name} {side}", row["from"], row["to"], row["dlog"], row["level"], row.get("dispersion"),
                         row.get("length_weight"), row["residual"]])  # fmt: skip
    if rows:
        unit = f"perplexity per {document['unit']}" if document.get("unit") else "perplexity"
        header = [unit, "from", "to", "dlog", "level", "dispersion", "length", "residual"]
        # The parts add up exactly; what is left is a sum's rounding, and no column of its own.
        exact = all(abs(row[-1] or 0.0) <= ROUNDING for row in rows)
        blocks.append(table(header[:-1] if exact else header, [row[:-1] if exact else row for row in rows], room))
    values = document.get("means", {}).get("values", {})
    if values:
        rows = [[name, e["from"], e["to"], e["delta"]] for name, e in values.items()]
        blocks.append(table(["mean", "from", "to", "delta"], rows, room))
    roles = (document.get("tokens") or {}).get("by_role")
    if roles:
        names = ["n_tokens", "delta", "share", "mean_delta"]
        blocks.append(
            table(["tokens", *names], [[f"{r['side']} {r['role']}", *[r[n] for n in names]] for r in roles], room)
        )
    if document["pairs"] and top > 0:
        names = ["share_of_rise", "cumulative_share", "chosen_ce_from", "chosen_ce_to", "chosen_delta_logp",
                 "rejected_delta_logp", "loss_delta"]  # fmt: skip
        shown = document["pairs"][:top]
        if room < WIDTH:  # no room for all: the text names the pair
            names = ["share_of_rise", "chosen_ce_from", "chosen_ce_to"]
            rows = [[p.get("chosen_text") or p["pair_id"], *[p.get(n) for n in names]] for p in shown]
            blocks.append(table(["pair", *names], rows, room))
        else:
            rows = [[p["pair_id"], *[p.get(n) for n in names], p.get("chosen_text") or ""] for p in shown]
            blocks.append(table(["pair", *names, "chosen"], rows, room))
    if document["checks"]:
        order = {"speaks": 0, "silent": 1, "not_applicable": 2}
        listed = sorted(document["checks"], key=lambda c: (order[c["outcome"]], c["code"]))
        silent = [c["code"] for c in listed if c["outcome"] == "silent"]
        speaks = [f"{c['code']} ({c['severity']})" for c in listed if c["outcome"] == "speaks"]
        lines = [f"speak, see Why: {', '.join(speaks) or 'none'}", f"silent: {', '.join(silent) or 'none'}"]
        lines += [f"{c['code']} not applicable: {say(c['reason'])}" for c in listed if c["outcome"] == "not_applicable"]
        blocks.append("checks\n" + "\n".join(f"  {line}" for line in lines))
    return "\n\n".join(blocks)


def _narrative(narrative: list[dict[str, Any]], say: Catalogue) -> str:
    parts = ([say(s["heading"]), *(f"  {say(x['text'])}" for x in s["sentences"])] for s in narrative)
    return "\n\n".join("\n".join(part) for part in parts)


def render_change(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """What a new look at a growing run says, one line a change; the first look says where it stands."""
    loss, chosen = now["loss"], now["perplexity"].get("chosen", {})
    state = [f"{now['step_word']} {now['to_step']}"]
    if loss.get("to") is not None:
        state.append(f"loss {arrow(loss['from'], loss['to'])}")
    for name in ("ppl_token", "ppl_seq_mean"):
        if name in chosen:
            state.append(f"chosen {name} {arrow(chosen[name]['from'], chosen[name]['to'])}")
    lines = [", ".join(state)]
    decision = now["verdict"]
    old = before["verdict"] if before else {}
    if (decision["label"], decision["harm"]) != (old.get("label"), old.get("harm")):
        lines.append(f"  verdict: {decision['label']}, harm {decision['harm']}: {decision['text']}")
    spoken = {c["code"] for c in before["checks"] if c["outcome"] == "speaks"} if before else set()
    for check in now["checks"]:
        if check["outcome"] == "speaks" and check["code"] not in spoken:
            lines.append(f"  {check['code']} now speaks: {check['reason']}")
    still = {c["code"] for c in now["checks"] if c["outcome"] == "speaks"}
    lines += [f"  {code} no longer speaks" for code in sorted(spoken - still)]
    return "\n".join(lines)
