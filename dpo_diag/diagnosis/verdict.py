"""One verdict from the checks: the headline by a written precedence, every further cause named, one word about harm.

`PRECEDENCE` is the whole rule: the first row whose check answers as the row says gives the headline, the others that
answer are named behind it. Nothing here looks at a number again: whether a fall is material, beyond its noise, or
there at all, only the checks decide, so that the headline cannot contradict them. "Healthy" is what is left where every
check in `MUST_BE_SILENT` looked and found nothing; where one of them could not look, the verdict is "cannot tell" and
says what is missing.

"harmful" needs outputs or a task score that got worse. A fall of the chosen answers' likelihood alone is no harm: after
SFT on those answers some fall is expected under DPO, and behaviour can improve all the same (Razin et al. 2024, arXiv
2410.08847, section on filtering). Without such evidence the word is "cannot_tell", or "none" where nothing that could
be harm was seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_diag.diagnosis.evidence import TASK_KINDS
from dpo_diag.diagnosis.labels import ALSO, LABELS, OF_CODE, OF_THE_WHOLE
from dpo_diag.diagnosis.measure import Measure
from dpo_diag.diagnosis.said import CAVEAT
from dpo_diag.diagnosis.unfinished import Unfinished
from dpo_diag.ends import LEAST_ROWS
from dpo_diag.stats import LEAST_FOR_T
from dpo_diag.text import capital, plural, some


@dataclass(frozen=True)
class Cause:
    """A row of the precedence.

    Attributes:
        label: the headline that it gives.
        code: the check.
        answer: what the check must answer: "speaks", or "cannot tell" (the effect is there, inside its noise).
        severity: only where the finding has this severity; "" for any.
        has: only where the finding's evidence holds these values.
        suspicious: it could be harm: without outputs or a score the word is "cannot_tell".
    """

    label: str
    code: str
    answer: str = "speaks"
    severity: str = ""
    has: tuple[tuple[str, Any], ...] = ()
    suspicious: bool = True

    @property
    def title(self) -> str:
        """The headline."""
        return OF_CODE.get(self.code, LABELS[self.label])

    def fits(self, finding: Mapping[str, Any]) -> bool:
        """Whether the check answered as this row says."""
        return (
            finding["code"] == self.code
            and answer_of(finding) == self.answer
            and self.severity in ("", finding["severity"])
            and all(key in finding["evidence"] and finding["evidence"][key] == value for key, value in self.has)
        )


PRECEDENCE = (
    # Errors: what makes other numbers meaningless.
    Cause("implausible_numbers", "DVG028", severity="error"),
    Cause("broken_numbers", "DVG011", severity="error"),
    Cause("dead_run", "DVG008", suspicious=False),
    Cause("reference_mismatch", "DVG007", severity="error"),
    Cause("summed_numbers", "DVG007", severity="warning"),
    Cause("loss_rose", "DVG020", severity="error"),
    # What the loss did to the answers.
    Cause("loss_unknown", "DVG001", has=(("loss_fell", None),)),
    Cause("likelihood_displacement", "DVG001", has=(("from_best", False),)),
    Cause("sign_depends_on_aggregator", "DVG003"),
    Cause("late_divergence", "DVG001"),
    Cause("rejected_collapse", "DVG002"),
    Cause("score_fell", "DVG025"),  # an error that `harm` tells already: what caused it makes the better headline
    # What the loss itself did.
    Cause("saturated", "DVG010", suspicious=False),
    Cause("length_explained", "DVG005", severity="warning"),
    Cause("loss_rose", "DVG020", severity="warning"),
    Cause("loss_rose", "DVG022"),
    Cause("loss_rose", "DVG009", has=(("rose", True),)),  # two checkpoints, where no training rows could tell
    Cause("chosen_fell", "DVG001", "silent", has=(("material", True),)),
    Cause("not_learning", "DVG009", suspicious=False),
    Cause("best_not_last", "DVG019"),
    # There, but inside the noise.
    Cause("loss_unclear", "DVG009", "cannot tell"),
    Cause("within_noise", "DVG001", "cannot tell"),
)
"""From what makes other numbers meaningless to what is subtle; the first that fits is the headline."""
MUST_BE_SILENT = {
    "DVG009": "whether the loss fell",
    "DVG001": "whether the chosen answers became less likely",
    "DVG002": "whether the rejected answers collapsed",
    "DVG007": "whether the run started at its reference",
    "DVG011": "whether all numbers are finite",
}
"""Checks that could contradict "healthy", and what they look for: each must have looked."""
NEEDS_A_REFERENCE = frozenset({"DVG007"})
"""Of those, the ones that a loss without a reference cannot fail."""
OPEN = frozenset({"cannot_tell", "one_row", "supervised", "unfinished"})
"""Labels that say nothing about harm either way."""
NAMED = 4
"""Further checks that the text names, beside the causes."""


def precedence_page() -> str:
    """The table in Markdown, as docs/verdict.md holds it."""
    lines = ["| | label | check | answers | headline |", "| ---: | --- | --- | --- | --- |"]
    for i, cause in enumerate(PRECEDENCE, 1):
        also = [cause.severity] * bool(cause.severity) + [f"{key}: {value}" for key, value in cause.has]
        answer = cause.answer + (f" ({', '.join(also)})" if also else "")
        code = f"[{cause.code}](checks/{cause.code}.md)"
        lines.append(f"| {i} | `{cause.label}` | {code} | {answer} | {cause.title} |")
    return "\n".join(lines) + "\n"


def answer_of(finding: Mapping[str, Any]) -> str:
    """ "speaks", "silent", "cannot tell" (looked, but inside the noise), or "missing" (could not look)."""
    if finding["outcome"] != "not_applicable":
        return str(finding["outcome"])
    return "cannot tell" if str(finding["reason"]).startswith("cannot tell") else "missing"


@dataclass(frozen=True)
class Facts:
    """What a verdict is made from.

    Attributes:
        checks: the findings of every check, as the explanation holds them.
        evidence: what was measured that is no likelihood, with its direction.
        n_pairs: pairs that were compared; 0 for a log of means.
        has_intervals: whether they are enough for intervals.
        rows: steps that a log of means compares; None for a run with pairs.
        batches: whether they are of training batches.
        reference_free: whether the loss has no reference that the run could have missed.
        supervised: whether no preference was trained at all.
        answers: whether outputs are recorded, judged or not.
        unfinished: how the run stands where it is not finished.
    """

    checks: Sequence[Mapping[str, Any]]
    evidence: Sequence[tuple[Measure, str]] = ()
    n_pairs: int = 0
    has_intervals: bool = False
    rows: int | None = None
    batches: bool = False
    reference_free: bool = False
    supervised: bool = False
    answers: bool = False
    unfinished: Unfinished | None = None


def causes(facts: Facts) -> list[tuple[Cause, Mapping[str, Any]]]:
    """Every row of the precedence that fits, in its order, each label and each check once."""
    found: list[tuple[Cause, Mapping[str, Any]]] = []
    for cause in PRECEDENCE:
        finding = next((f for f in facts.checks if cause.fits(f)), None)
        if finding is not None and not any(cause.label == c.label or cause.code == c.code for c, _ in found):
            found.append((cause, finding))
    return found


def missing(facts: Facts) -> list[tuple[str, str, str]]:
    """(code, what could not be looked at, why) of the checks that could contradict "healthy"."""
    of = {f["code"]: f for f in facts.checks}
    return [
        (code, what, str(of[code]["reason"]).removeprefix("cannot tell: "))
        for code, what in MUST_BE_SILENT.items()
        if code in of
        and answer_of(of[code]) in ("missing", "cannot tell")
        and not (code in NEEDS_A_REFERENCE and facts.reference_free)
    ]


@dataclass(frozen=True)
class Verdict:
    """The label with its title, the word about harm, how sure, the text, and the evidence that decided about harm.

    `headline`, `harm_text`: the text's sentences of what happened and about harm, the latter without what it cites.
    `causes`: every label that fits, the headline's first; (label, code, what the check says).
    """

    label: str
    harm: str
    confidence: str
    text: str
    headline: str = ""
    harm_text: str = ""
    because: tuple[tuple[Measure, str], ...] = ()
    causes: tuple[tuple[str, str, str], ...] = field(default=())
    title: str = ""

    def document(self) -> dict[str, Any]:
        """As the explanation holds it."""
        return {
            "label": self.label, "title": self.title or LABELS[self.label], "harm": self.harm,
            "confidence": self.confidence, "text": self.text, "headline": self.headline, "harm_text": self.harm_text,
            "causes": [{"label": label, "code": code, "reason": reason} for label, code, reason in self.causes],
            "because": [
                {"what": m.what, "split": m.split, "from": m.before, "to": m.after, "delta": m.change.value,
                 "interval": m.change.bounds, "p": m.p, "n": m.change.n or None, "method": m.method,
                 "direction": direction}
                for m, direction in self.because
            ],
        }  # fmt: skip


def decide(facts: Facts) -> Verdict:
    """The verdict; see the module's docstring."""
    found = causes(facts)
    errors = [(c, f) for c, f in found if f["severity"] == "error" and c.answer == "speaks"]
    lacking = missing(facts)
    if facts.rows == 1 and not errors:
        name = "one_row"
    elif facts.supervised and not errors:
        name = "supervised"
    elif found:
        name = found[0][0].label
    else:
        name = "cannot_tell" if lacking or _few(facts) else "healthy"
    half = facts.unfinished
    if half is not None and name in OF_THE_WHOLE:
        so_far = (c.label for c, _ in found if c.label not in OF_THE_WHOLE)
        name = next(so_far, "unfinished") if name == "dead_run" else "unfinished"
    harm, because = _harm(facts, name, any(c.suspicious for c, _ in found))
    more = _missing_text(lacking, facts) if name == "cannot_tell" else ""
    lead = next((c for c, _ in found if c.label == name), None)
    if lead is not None and lead.answer == "speaks" and name not in OPEN and not errors and _few(facts):
        seen = plural(facts.n_pairs, "pair") if facts.rows is None else plural(facts.rows, "row")
        more = f", as far as {seen} can show: their noise is not known"
    title = lead.title if lead is not None else LABELS[name]
    if half is not None:
        title = f"{title}: {half.line}" if name == "unfinished" else f"not finished, {half.line}: so far {title}"
    sentences = [f"{capital(title)}{more}."]
    that = "there is harm" if name in OPEN else "that is harm"
    cited = _cite([m for m, _ in because]) if because else ""
    said, uncited = (_harm_text(harm, that, text, facts) for text in (cited, cited and None))
    # What was measured stands before what speaks of it.
    named = _named(facts, name, found)
    # One row that nobody measured besides says nothing of harm either way.
    sentences += [said, *named] if because else [*named, *([said] if name not in ("one_row", "unfinished") else [])]
    sentences += half.sentences() if half is not None else []
    told = tuple((c.label, c.code, str(f["reason"])) for c, f in found)
    sure = _confidence(facts, harm, name)
    return Verdict(name, harm, sure, " ".join(sentences), sentences[0], uncited, because, told, title)


def _harm(facts: Facts, name: str, suspicious: bool) -> tuple[str, tuple[tuple[Measure, str], ...]]:
    """The word about harm, and the measures that decide it."""
    worse, unclear = ([e for e in facts.evidence if e[1] == d] for d in ("worse", "unclear"))
    fine = [e for e in facts.evidence if e[1] in ("no_worse", "better")]
    if worse:
        return "harmful", tuple(worse)
    if any(m.kind in (*TASK_KINDS, "review") for m, _ in fine) and not any(m.kind in TASK_KINDS for m, _ in unclear):
        return ("benign" if suspicious else "none"), tuple(fine)
    if suspicious or name in OPEN:
        return "cannot_tell", tuple(unclear)
    return "none", ()


def _few(facts: Facts) -> bool:
    """Whether so few batches or pairs were compared that a check's silence proves nothing."""
    return facts.batches and facts.rows < LEAST_ROWS if facts.rows is not None else not facts.has_intervals


def _missing_text(lacking: list[tuple[str, str, str]], facts: Facts) -> str:
    """What could not be looked at; the reason of the first one stands for the others."""
    if not lacking:
        few = facts.rows is None and _few(facts)
        return f": {plural(facts.n_pairs, 'pair')} {'is' if facts.n_pairs == 1 else 'are'} too few" if few else ""
    if not facts.rows and {"DVG009", "DVG001", "DVG002"} <= {code for code, _, _ in lacking}:
        if 0 < facts.n_pairs < LEAST_FOR_T:
            return f": {plural(facts.n_pairs, 'pair')} {'is' if facts.n_pairs == 1 else 'are'} too few"
        return ": neither a loss nor log-probs of the answers are recorded at two steps"
    *others, last = [what for _, what, _ in lacking]
    shown = f"{', '.join(others)} and {last}" if others else last
    return f": it does not show {shown} ({lacking[0][0]}: {lacking[0][2].rstrip('.')})"


def _named(facts: Facts, name: str, found: list[tuple[Cause, Mapping[str, Any]]]) -> list[str]:
    """The headline's own reason where it is an error, then every further cause, then other checks that warn."""
    sentences = []
    first = next((one for one in found if one[0].label == name), None)
    if first is not None:
        sentences.append(f"{first[0].code}: {_reason(first[1])}.")
    further = [(c, f) for c, f in found if (c, f) != first and c.answer != "cannot tell"]
    for cause, finding in further:
        # Scores that fell are cited as harm.
        reason = f": {_reason(finding)}" if finding["severity"] == "error" and cause.label != "score_fell" else ""
        titles = OF_THE_WHOLE | ALSO if facts.unfinished is not None else ALSO
        begin = "So far" if name == "unfinished" else "Also"
        sentences.append(f"{begin}: {titles.get(cause.label, cause.title)} ({cause.code}{reason}).")
    known = {c.code for c, _ in found}
    others = [
        f"{f['title']} ({f['code']}{': ' + _reason(f) if f['severity'] == 'error' else ''})"
        for f in sorted(facts.checks, key=lambda f: f["severity"] != "error")
        if f["outcome"] == "speaks" and f["severity"] != "info" and f["code"] not in known
    ]
    return [*sentences, *([f"Noted besides: {some(others, NAMED)}."] if others else [])]


def _reason(finding: Mapping[str, Any]) -> str:
    """What the check says, without its standing caveat."""
    return str(finding["reason"]).removeprefix("cannot tell: ").removesuffix(f"; {CAVEAT}").rstrip(".")


def _harm_text(harm: str, that: str, cited: str | None, facts: Facts) -> str:
    """The sentence about harm; `cited`: the measures that decided, "" for none, None to leave them unsaid."""
    behind = f": {cited}." if cited else "."
    if harm == "harmful":
        return f"It is harm{behind}"
    if harm == "benign":
        return f"No harm was measured{behind}"
    if harm == "none":
        return "Nothing points to harm." if cited == "" else f"Nothing got worse{behind}"
    if cited != "":
        return f"Whether {that} is not known{behind}"
    if facts.evidence:
        return f"Whether {that} is not known from what was measured."
    lacking = "nobody judged the recorded outputs" if facts.answers else "no outputs and no task score are recorded"
    return f"Likelihoods alone do not say whether {that}: {lacking}."


def _cite(because: list[Measure]) -> str:
    """The task measure with most answers behind it, paired ones first; and how many more say the same."""
    first = min(because, key=lambda m: (m.kind not in TASK_KINDS, not m.paired, -m.change.n))
    more = len(because) - 1
    return f"{first}, and {plural(more, 'more measure')} likewise" if more else str(first)


def _confidence(facts: Facts, harm: str, name: str) -> str:
    if name in OPEN or facts.rows is not None or not facts.has_intervals:
        return "low" if harm in ("cannot_tell", "none") else "medium"
    if harm == "cannot_tell":
        return "medium" if facts.n_pairs >= 30 else "low"
    return "high" if facts.n_pairs >= 30 else "medium"
