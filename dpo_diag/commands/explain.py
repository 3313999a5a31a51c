"""`dpo-diag explain`: print the narrative, write findings.json, set the exit status for CI."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dpo_diag.command_lines import say_next
from dpo_diag.commands.findings import FINDINGS, file_states, made_from, read_findings, write_findings
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_explain
from dpo_diag.records import load_run
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.run_lock import owner_is_gone
from dpo_diag.records.scratch import scratch_folder
from dpo_diag.registry import plugins
from dpo_diag.text import takes_styles, terminal_width, to_json
from dpo_diag.thresholds import load_thresholds, parse_threshold
from dpo_diag.translated import Catalogue, catalogue


def explain(
    run: Path,
    /,
    *thresholds: str,
    from_step: Annotated[int | Literal["ref"] | None, Parameter(name="--from")] = None,
    to_step: Annotated[int | None, Parameter(name="--to")] = None,
    split: str | None = None,
    json: bool = False,
    full: bool = False,
    lang: str | None = None,
    top: int | None = None,
    fail_on: list[str] | None = None,
    watch: bool = False,
    interval: float = 5.0,
    loss: str | None = None,
    beta: float | None = None,
    reference_free: bool = False,
    logps: Literal["sum", "mean"] | None = None,
    decimal: Literal["point", "comma"] | None = None,
    of_run: Annotated[str | None, Parameter(name="--run")] = None,
    destination: bool = False,
    checkpoint_from: str | None = None,
    checkpoint_to: str | None = None,
    device: str = "auto",
    no_write: bool = False,
) -> int:
    """Why the loss and the perplexities parted, and whether it is harm: 15 lines; --full for everything.

    Args:
        run: a run folder, or another trainer's log file or folder.
        thresholds: NAME=VALUE, e.g. turning_point.least_dlog=0.02.
        from_step: first step, or ref (default: the reference where it was measured, else the first step).
        to_step: last step (default: the last measured).
        split: which set (default: a fixed evaluation set).
        json: one JSON document on standard output, nothing else there.
        full: everything: how sure, why, which pairs, every number.
        lang: language of what is printed, en or zh (default: DPO_DIAG_LANG, else en); --json is English.
        top: with --full: pairs in the table (default: 10).
        fail_on: exit 1 when harmful, or when checks speak: speaks:DVG001,DVG011.
        watch: follow a growing run or log and say what changed.
        interval: seconds between two looks of --watch.
        loss: of a log that does not name it: sigmoid, ipo, kto, orpo, simpo, cpo, sigmoid,sft, ...
        beta: of a log that does not name it.
        reference_free: of a log whose rewards are beta times the log-probs, not log-ratios to a reference.
        logps: of a log: its log-probs are token sums or token means.
        decimal: the decimal mark of a text table, where `1,000` can be read two ways.
        of_run: which run of a log that holds several.
        destination: load both checkpoints: which tokens gained where the answers lost most.
        checkpoint_from: the first step's model, a folder or hub id (default: found by the run).
        checkpoint_to: the last step's model (default: found by the run).
        device: of --destination: auto, cpu, cuda, mps.
        no_write: do not write findings.json into the run.
    """
    from dpo_diag.losses import names_of

    say = catalogue(lang)
    rules = [rule for text in fail_on or () for rule in _rules(text)]
    if destination and watch:
        raise DiagError("--destination loads models and does not go with --watch", usage=True)
    if not destination and (checkpoint_from or checkpoint_to):
        raise DiagError("--checkpoint-from and --checkpoint-to belong to --destination", usage=True)
    said = {
        "loss": names_of(loss), "beta": beta, "reference_free": reference_free, "logps": logps, "decimal": decimal,
        "run": of_run,
    }  # fmt: skip
    request = _Request(run, from_step, to_step, split, _thresholds(thresholds), said)
    if not watch and not run.exists():
        raise DiagError("no such file or folder", where=run, expected="a run folder or a log", hint="check the path")
    if watch:
        return _watch(request, interval, rules, json=json, write=not no_write)
    is_run = request.is_run
    if destination and not is_run:
        raise DiagError("--destination needs a run folder", where=run, got="a log", usage=True)
    identity = request.made_from() if is_run else None
    document = read_findings(run, identity) if is_run else None
    unchanged = document is not None
    document = document or request.document()
    if destination:
        from dpo_diag.commands.destination import add_gained

        document = add_gained(document, load_run(run), request.thresholds, checkpoint_from, checkpoint_to, device)
        identity, unchanged = None, False  # it came from the checkpoints, too
    written = is_run and not no_write and not unchanged and write_findings(run, document, identity)
    following = after_explain(run, document, request.options())
    if json:
        print(to_json({**document, "next": following}))
        return _status(document, rules)
    where = f"{'wrote' if written else 'unchanged since'} {run / FINDINGS}" if written or unchanged else ""
    if full or top is not None:
        from dpo_diag.diagnosis.printed import render_document

        width = terminal_width() if sys.stdout.isatty() else None
        print(render_document(document, 10 if top is None else top, width, say))
        if where:
            print(f"\n{where}")
        say_next(following)
    else:
        print_short(document, following, say)
        if where:
            print(where, file=sys.stderr)
    return _status(document, rules)


def print_short(document: Mapping[str, Any], following: Sequence[str] = (), say: Catalogue | None = None) -> None:
    """The explanation in 15 lines, as wide as the terminal; of a file 80 cells. `say`: by default DPO_DIAG_LANG's."""
    from dpo_diag.diagnosis.short import short_lines
    from dpo_diag.styled import rendered

    lines = short_lines(document, terminal_width(unknown=80), following, say or catalogue())
    print(*rendered(lines, takes_styles(sys.stdout)), sep="\n", flush=True)


@dataclass(frozen=True)
class _Request:
    """What is to be explained: a run folder, or a log with what it does not say itself."""

    path: Path
    from_step: int | str | None
    to_step: int | None
    split: str | None
    thresholds: Mapping[str, float]
    said: Mapping[str, Any]

    @property
    def is_run(self) -> bool:
        return (self.path / RUN_FILE).is_file() or not self.path.exists()

    def made_from(self) -> dict[str, Any] | None:
        """What the explanation of a run folder is made from (see `findings`); its options are looked at first."""
        if given := [f"--{name.replace('_', '-')}" for name, value in self.said.items() if value]:
            hint = "only a log needs them; import it again to say more"
            raise DiagError("a run folder says so itself", where=", ".join(given), hint=hint, usage=True)
        load_run(self.path)
        return made_from(self.path, self.from_step, self.to_step, self.split, self.thresholds)

    def options(self) -> list[str]:
        """What was said about a log, as `dpo-diag import` takes it."""
        texts = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in self.said.items()}
        flags = {f"--{name.replace('_', '-')}": value for name, value in texts.items() if value}
        return [word for flag, value in flags.items() for word in ([flag] if value is True else [flag, str(value)])]

    def document(self) -> dict[str, Any]:
        if self.is_run:
            run = load_run(self.path)
            from dpo_diag.diagnosis import explain as explain_run

            return explain_run(run, self.from_step, self.to_step, self.split, self.thresholds)
        from dpo_diag.diagnosis import explain as explain_run
        from dpo_diag.importers import Options, import_path

        with scratch_folder("explain") as folder:
            out = folder / "run"
            import_path(self.path, out, options=Options(**self.said))
            document = explain_run(load_run(out), self.from_step, self.to_step, self.split, self.thresholds)
        return {**document, "run": str(self.path)}


def _thresholds(texts: Sequence[str]) -> dict[str, float]:
    """NAME=NUMBER of the command line; a name that nothing can bring is refused before anything is read."""
    values = dict(map(parse_threshold, texts))
    if values and not plugins():
        load_thresholds(values)
    return values


def _rules(text: str) -> list[tuple[str, frozenset[str]]]:
    """One rule, or "harmful" and another one joined by a comma or a bar."""
    first, rest = text[:7], text[8:]
    if first == "harmful" and rest and text[7] in ",|":
        return [_rule(first), _rule(rest)]
    return [_rule(text)]


def _rule(text: str) -> tuple[str, frozenset[str]]:
    kind, _, codes = text.partition(":")
    wanted = frozenset(c.strip().upper() for c in codes.split(",") if c.strip())
    if kind not in ("harmful", "speaks") or (kind == "harmful" and codes):
        raise DiagError(
            "not a rule", where="--fail-on", got=text, expected="harmful, speaks or speaks:DVG001,...", usage=True
        )
    return kind, wanted


def _status(document: dict[str, Any], rules: list[tuple[str, frozenset[str]]]) -> int:
    """1 if any rule holds, with the reason on standard error; a named code that no check has is a usage error."""
    spoken = {c["code"]: c for c in document["checks"] if c["outcome"] == "speaks"}
    known = {c["code"] for c in document["checks"]}
    failed = []
    for kind, codes in rules:
        if unknown := codes - known:
            raise DiagError("no such check", where="--fail-on", got=", ".join(sorted(unknown)),
                            expected=f"one of {', '.join(sorted(known))}", usage=True)  # fmt: skip
        if kind == "harmful" and document["verdict"]["harm"] == "harmful":
            failed.append(f"harmful: {document['verdict']['text']}")
        if kind == "speaks":
            failed += [f"{c}: {spoken[c]['reason']}" for c in sorted(codes & set(spoken) if codes else spoken)]
    for line in failed:
        print(f"dpo-diag explain: fail-on {line}", file=sys.stderr)
    return 1 if failed else 0


def _signature(path: Path) -> tuple[Any, ...]:
    """Changes whenever a record file (or the log) does; findings of our own do not count."""
    if path.is_file():
        state = path.stat()
        return (state.st_mtime_ns, state.st_size)
    return file_states(path)


def _watch(
    request: _Request, interval: float, rules: list[tuple[str, frozenset[str]]], *, json: bool, write: bool
) -> int:
    """Explain whenever the records change, print what changed; ends when run.json says that the run ended.

    Raises:
        DiagError: an ended run that cannot be explained: nothing more is coming.
    """
    from dpo_diag.commands.news import tell_news, webhook_of
    from dpo_diag.diagnosis.printed import render_change

    path, seen, before = request.path, None, None
    wrong: DiagError | None = None
    webhook = webhook_of(path)
    while True:
        now = _signature(path) if path.exists() else None
        if now is not None and now != seen:
            seen = now
            try:
                identity = request.made_from() if request.is_run else None
                document = request.document()
            except DiagError as error:
                if error.usage:
                    raise
                wrong = error
                print(f"waiting: {error}", file=sys.stderr, flush=True)
            else:
                wrong = None
                if write and request.is_run:
                    write_findings(path, document, identity)
                print(to_json(document) if json else render_change(before, document), flush=True)
                tell_news(webhook, before, document)
                before = document
        ended = (path / RUN_FILE).is_file() and (load_run(path).info.status != "running" or owner_is_gone(path))
        if ended and _signature(path) == seen:
            webhook.finish()
            if wrong is not None or before is None:
                raise wrong or DiagError("nothing to explain", where=path)
            return _status(before, rules)
        time.sleep(interval)
