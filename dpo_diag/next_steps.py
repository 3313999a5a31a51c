"""What to do next: for what was just done to a run, the command lines that follow, with their paths filled in.

One home for all commands. A line is what a shell takes as it stands: paths with blanks stand in quotes. What no record
says (which pairs to score) stays in capitals.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpo_diag.command_lines import called, elsewhere, from_there, line, override
from dpo_diag.errors import DiagError
from dpo_diag.records import Run, load_run
from dpo_diag.records.files import RUN_FILE, has_checkpoint
from dpo_diag.records.kept_steps import kept_batch
from dpo_diag.records.tracked import tracked_places

PAIRS = "PAIRS.jsonl"
"""Stands for the file of pairs where no record names it."""
OWN_PROMPTS = "PROMPTS.jsonl"
PROMPTS = "general_en"
"""The shipped prompts: asked where the user's own are not known."""
RUN, LOG, MODEL = "RUN", "LOG", "OTHER_MODEL"
"""Stand for what a command that was given neither cannot know."""
CHECKPOINTS = "CHECKPOINTS"
"""Stands for the checkpoints where none are found beside the records."""
_STEPPED = re.compile(r"(checkpoint|step|global_step|epoch)[-_]?\d+")


# --- after a run was made ---------------------------------------------------------------------------------------------


def after_import(run: str | os.PathLike[str]) -> list[str]:
    """An import, a fetched run or a training without explanation: explain."""
    return [line("dpo-diag", "explain", run)]


def after_training(run: Run, document: Mapping[str, Any] | None = None, reported: bool = False) -> list[str]:
    """A training or a scoring, explained (`document`) or not; what its tracker only wrote is sent first.

    Args:
        reported: the report is written already: then the answers that nothing recorded, else the whole explanation.
    """
    following = after_import(run.path) if document is None else after_explain(run.path, document)
    if reported and following == [line("dpo-diag", "report", run.path)]:
        known = _checkpoints_of(run)
        following = [line("dpo-diag", "explain", run.path, "--full")]
        if known is not None and not (document and _ends_in_nan(document)):
            following = _generate(known, run)
    return [*_syncs(tracked_places(run.meta.get("tracking")), run.path), *following]


def after_interrupt(folder: Path) -> list[str]:
    """A stopped training: resume it where a whole checkpoint was written, else explain what was recorded, if any."""
    run = _run_of(folder)
    if run is not None and run.info.status != "finished" and has_checkpoint(folder):
        return [line("dpo-train", override("resume", folder))]
    return after_import(folder) if run is not None else []


def after_unfinished(run: Run, *, running: bool) -> list[str]:
    """A work that did not come to its end: what goes on with it, or follows it while it runs.

    A training goes on from its last whole checkpoint, without one it begins anew. A scoring or a generation measures
    what is missing; what its folder does not say of its call stands in capitals.
    """
    if running:
        return [line("dpo-diag", "explain", run.path, "--watch")]
    app, given, cwd = called(run)
    there = elsewhere(cwd)
    path = run.path if there is None else run.path.absolute()
    if run.kind == "trained" and app is None:
        whole = (file.parent for file in (run.path / "checkpoints").glob("checkpoint-*/trainer_state.json"))
        last = max(whole, key=_step, default=None)
        return [] if last is None else after_stopped_script(run.path, os.fspath(last))[:1]
    if run.kind == "trained":
        again = line("dpo-train", *([override("resume", path)] if has_checkpoint(run.path) else given))
        return [from_there(there, again)]
    app = app or ("dpo-generate" if run.has("outputs") and not run.has("pairs") else "dpo-score")
    if not given:
        rows = override("prompts.path", PROMPTS) if app == "dpo-generate" else override("data.path", PAIRS)
        given = [override("checkpoints", _checkpoints_of(run) or CHECKPOINTS), rows]
    again = line(app, *(word for word in given if not word.lstrip("+").startswith("out=")), override("out", path))
    return [from_there(there, again)]


def after_stopped_script(folder: str | os.PathLike[str], checkpoint: str | None) -> list[str]:
    """A training in a script of the user's own, stopped: its line that goes on from a whole checkpoint where there is
    one; what was recorded."""
    resume = [] if checkpoint is None else [f"trainer.train(resume_from_checkpoint={checkpoint!r})"]
    return [*resume, *after_import(folder)]


def after_multirun(folder: str | os.PathLike[str], failed: bool = False) -> list[str]:
    """Several runs: side by side; run again what did not complete."""
    return [line("dpo-diag", "sweep", folder, *(["--resume"] if failed else []))]


def after_tracking(places: Mapping[str, Mapping[str, Any]], run: str | os.PathLike[str]) -> list[str]:
    """Sent later, where a tracker only wrote files; else the report.

    Args:
        places: kind -> where the run is (`records.tracked`).
    """
    return _syncs(places, run) or [line("dpo-diag", "report", run)]


def _syncs(places: Mapping[str, Mapping[str, Any]], run: str | os.PathLike[str]) -> list[str]:
    """The commands that send what trackers wrote offline."""
    found = []
    for kind, where in places.items():
        folders = where.get("folders") or [where.get("folder")]
        if kind == "wandb" and where.get("mode") == "offline" and all(folders):
            found.append(line("wandb", "sync", *(Path(run) / str(folder) for folder in folders)))
        if kind == "swanlab" and where.get("mode") == "offline" and where.get("folder"):
            found.append(line("swanlab", "sync", Path(run) / str(where["folder"])))
    return found


# --- after a run was read ---------------------------------------------------------------------------------------------


def after_explain(path: Path, document: Mapping[str, Any], options: Sequence[str] = ()) -> list[str]:
    """What measures what the explanation could not tell: outputs where there are some, else what would make them.

    Args:
        path: the run folder or the log that was explained.
        options: what was said about a log, for its import.
    """
    run = _run_of(path)
    if run is None:
        beside = checkpoints_beside(path)
        if beside is not None:
            named = override("checkpoints", beside)
            return [
                line("dpo-score", named, override("data.path", PAIRS)),
                line("dpo-generate", named, override("prompts.path", PROMPTS)),
            ]
        return [line("dpo-diag", "import", path, *options)]
    if go_on := document.get("unfinished", {}).get("go_on"):
        return list(go_on)
    stopped = run.info.stopped_by
    kept = None if stopped is None else kept_batch(run.path, str(stopped.guard))
    if kept is not None and called(run)[0] == "dpo-train":
        return [line("dpo-train", override("replay", kept))]
    if run.has("outputs"):
        return [line("dpo-diag", "outputs", path)]
    known = _checkpoints_of(run)
    if known is not None and document["verdict"]["harm"] == "cannot_tell" and not _ends_in_nan(document):
        return _generate(known, run)
    return [line("dpo-diag", "report", path)]


def _ends_in_nan(document: Mapping[str, Any]) -> bool:
    """Whether the last step holds NaN or infinity: its checkpoint has nothing to answer with."""
    spoken = (c for c in document.get("checks", ()) if c["outcome"] == "speaks" and c["severity"] == "error")
    return any(check["code"] == "DVG011" for check in spoken)


def after_outputs(run: str | os.PathLike[str]) -> list[str]:
    return [line("dpo-diag", "report", run)]


def after_report(run: Run) -> list[str]:
    """Judge the answers blind where there are some and the page can be served; else read the whole explanation."""
    if run.has("outputs") and find_spec("gradio") is not None:
        return [line("dpo-diag", "review", run.path)]
    return [line("dpo-diag", "explain", run.path, "--full")]


def after_report_of_two(run: str | os.PathLike[str], against: str | os.PathLike[str]) -> list[str]:
    """The same comparison in the terminal, with its JSON."""
    return [line("dpo-diag", "diff", against, run)]


def after_review(run: str | os.PathLike[str]) -> list[str]:
    return [line("dpo-diag", "review", run, "--results")]


def after_results(run: str | os.PathLike[str]) -> list[str]:
    return [line("dpo-diag", "report", run)]


def after_play(run: Run) -> list[str]:
    """Judge answers blind where the run holds some, else let its checkpoints write some."""
    if run.has("outputs"):
        return [line("dpo-diag", "review", run.path)]
    return _generate(_checkpoints_of(run) or CHECKPOINTS, run)


def after_gate(run: str | os.PathLike[str], passed: bool) -> list[str]:
    return [line("dpo-diag", "report" if passed else "explain", run)]


def after_keep(run: str | os.PathLike[str], step: int | None) -> list[str]:
    """What the training did up to the checkpoint that is kept."""
    return [line("dpo-diag", "explain", run, *(["--to", str(step)] if step else []))]


def after_sweep(runs: Sequence[str], again: str | os.PathLike[str] | None = None) -> list[str]:
    """What did not complete, where it can be run `again`; the best run and how it differs from the next one."""
    following = [] if again is None else after_multirun(again, failed=True)
    if len(runs) > 1:
        return [*following, line("dpo-diag", "diff", runs[1], runs[0])]
    return [*following, *(line("dpo-diag", "explain", run) for run in runs)]


def that_would_tell(run: Run) -> list[tuple[str, str]]:
    """(what it would tell, the command line) of what a run does not record: its pairs, its answers, what people prefer.

    An imported run stays as the log has it: both measurements go into one new run beside it.
    """
    known, lines = _checkpoints_of(run) or CHECKPOINTS, []
    out = Path(f"{run.path}-scored") if run.kind == "imported" else run.path
    if not run.has("pairs"):
        named = override("checkpoints", known), override("data.path", PAIRS), override("out", out)
        lines.append(
            ("which pairs and tokens carry the change, and the exact splits of loss and perplexity",
             line("dpo-score", *named))
        )  # fmt: skip
    if not run.has("outputs"):
        (asked,) = _generate(known, run, out)
        lines.append(("what the model writes now, which alone can call a change harmful", asked))
    elif not (run.path / "review").is_dir():
        lines.append(("which answers people prefer", line("dpo-diag", "review", run.path)))
    return lines


def after_submit(folder: str | os.PathLike[str], script: str | os.PathLike[str] | None = None) -> list[str]:
    """A multirun sent to Slurm, or written for it (`script`): follow it."""
    return [line("dpo-diag", "sweep", folder, "--watch") if script is None else line("sbatch", script)]


def after_diff(run: str | os.PathLike[str]) -> list[str]:
    """Two runs compared: why the second one is what it is."""
    return [line("dpo-diag", "explain", run)]


def _generate(checkpoints: str, run: Run, out: Path | None = None) -> list[str]:
    """The shipped prompts are messages: what has no chat template needs prompts as text."""
    prompts = OWN_PROMPTS if run.info.tokenizer.chat_template is False else PROMPTS
    named = override("checkpoints", checkpoints), override("prompts.path", prompts), override("out", out or run.path)
    return [line("dpo-generate", *named)]


# --- after a machine, a model or a check was looked at ----------------------------------------------------------------


def after_doctor(run: Path | None, sound: bool) -> list[str]:
    """What was looked at is used; where something failed, its hint comes first and then another look; an unfinished run
    is explained, which says how to go on. Of what is no run the runs in it are shown, else a log is read; nothing
    follows where there is nothing."""
    if run is not None and not (run / RUN_FILE).is_file():
        for inside, runs in (("*", run), ("*/*", run / "*")):
            if next(run.glob(f"{inside}/{RUN_FILE}"), None) is not None:
                return [line("dpo-diag", "sweep", runs)]
        holds = run.is_file() or (run.is_dir() and any(not p.name.startswith(".") for p in run.iterdir()))
        return [line("dpo-diag", "import", run)] if holds else []
    known = _run_of(run) if run is not None else None
    if known is not None and known.info.status not in (None, "finished"):
        return after_import(known.path)
    if not sound:
        return [line("dpo-diag", "doctor", *([run] if run is not None else []))]
    if run is not None:
        return after_import(run)
    return [line("dpo-diag", "demo")] if find_spec("trl") is not None else after_import(LOG)


def after_checks(code: str | None = None) -> list[str]:
    """The page of a check after the table of all; a run after a page."""
    return [line("dpo-diag", "checks", code)] if code is not None else after_import(RUN)


def after_weights(a: str, b: str) -> list[str]:
    """What the change of the weights did to the pairs."""
    return [line("dpo-score", f"checkpoints=[{override('', a)[1:]},{override('', b)[1:]}]",
                 override("data.path", PAIRS))]  # fmt: skip


def after_longppl(model: str, file: Path) -> list[str]:
    """The same text under the other end of the training whose checkpoint this is."""
    folder, other = Path(model), MODEL
    if folder.is_dir() and _STEPPED.fullmatch(folder.name):
        beside = sorted((p for p in folder.parent.iterdir() if p.is_dir() and _STEPPED.fullmatch(p.name)), key=_step)
        if others := [p for p in beside if p.name != folder.name]:
            other = os.fspath(others[0] if folder.name == beside[-1].name else others[-1])
    return [line("dpo-diag", "longppl", other, file)]


def after_fetch(model: str) -> list[str]:
    return [line("dpo-train", f"experiment={model}_dpo", "data=jsonl", override("data.path", PAIRS))]


def after_ppl() -> list[str]:
    return after_import(LOG)


def after_formats() -> list[str]:
    return [line("dpo-diag", "import", LOG)]


# --- where checkpoints lie --------------------------------------------------------------------------------------------


def checkpoints_beside(log: Path) -> str | None:
    """A glob over the checkpoints beside a log, which may itself lie in one of them; None where there are none."""
    folder = log if log.is_dir() else log.parent
    for place in (folder, folder.parent if _STEPPED.fullmatch(folder.absolute().name) else folder):
        if (found := _glob(place)) is not None:
            return found
    return None


def _checkpoints_of(run: Run) -> str | None:
    """Those that a training saved, beside the model that was scored, or beside the log that was imported."""
    if (own := _glob(run.path / "checkpoints")) is not None:
        return own
    for file in run.info.source.files if run.info.kind == "imported" else ():
        if (beside := checkpoints_beside(Path(file))) is not None:
            return beside
    name = run.info.model.name if run.info.kind == "scored" else None
    return _glob(Path(name).parent) if name and Path(name).is_dir() else None


def _glob(folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    stems = {m.group(1) for p in folder.iterdir() if p.is_dir() and (m := _STEPPED.fullmatch(p.name))}
    return str(folder / f"{min(stems)}*") if stems else None


def _step(folder: Path) -> int:
    return int(re.findall(r"\d+", folder.name)[-1])


def _run_of(path: Path) -> Run | None:
    try:
        return load_run(path)
    except DiagError:
        return None
