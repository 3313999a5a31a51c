"""What `resume=RUN` and `dpo-diag sweep DIR --resume` take from a folder: everything from one that this user wrote, and
from any other nothing that runs code, sends records elsewhere or writes elsewhere.

A run's overrides, and what a multirun was asked to do, are signed with a key of this user's; a folder that came from
somebody else has no such signature.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpo_diag.command_lines import line, override
from dpo_diag.commands.overrides import plain_value
from dpo_diag.config import conf_dir
from dpo_diag.errors import DiagError
from dpo_diag.records.checksums import agrees, read_yaml
from dpo_diag.records.jobs import plan_of
from dpo_diag.records.secrets import REDACTED, redacted_words
from dpo_diag.text import safe, to_json

SIGNATURE = Path(".hydra") / "signature"
SWEEP_SIGNATURE = ".signature"
SCRIPT = "submit.sh"
"""What a sweep that went to Slurm was sent as."""
_RESUME = re.compile(r"\+{0,2}(resume|replay)=")
ONCE = re.compile(r"\+{0,2}(resume|replay|checkpoint|fresh_optimizer)=")
"""Overrides that say how this very start goes on: the next one is another."""
_CODE = ("trust_remote_code", "allow_pickle")
_ELSEWHERE = ("hydra", "output_root", "out", "tracking", "task.cache", "model.cache", "trainer.reference_store",
              "reference_store", "launcher", "ray_address")  # fmt: skip
_PLAIN = re.compile(r"null|true|false|[+-]?[\d.]+(e[+-]?\d+)?", re.IGNORECASE)
"""Values of trainer.args that name no place: numbers and truth values."""


def resumed(arguments: list[str]) -> list[str]:
    """`resume=RUN` brings back that run's own overrides and folder; overrides given now come last and win. So does
    `replay=RUN/alerts/step-N`, without the folder: it writes nothing there.

    RUN may be typed as it is or in quotes, whatever its letters: it is a path, no override of Hydra's yet.
    """
    named = [a for a in arguments if _names_one(a)]
    if len(named) > 1:
        raise DiagError("one run or step is gone back to", got=" ".join(named), expected="one of them", usage=True)
    if not named:
        return arguments
    given = named[0]
    folder = Path(given.partition("=")[2])
    if not folder.exists():
        folder = Path(plain_value(given))
    step = folder
    if replays := given.lstrip("+").startswith("replay="):
        folder = folder.absolute().parent.parent
    going_on = override("replay", step) if replays else override("resume", folder)
    saved = folder / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise DiagError(
            f"nothing to {'replay' if replays else 'resume'}", where=step,
            got=f"no .hydra/overrides.yaml in {folder}" if step.exists() else "nothing there",
            expected="RUN/alerts/step-N of a run of dpo-train" if replays else "a run folder of dpo-train",
            usage=True,
        )  # fmt: skip
    _say_unread_edit(folder)
    own, given_now = _saved_overrides(saved), [a for a in arguments if not _RESUME.match(a)]
    left = [] if is_own(folder) else not_taken(own)
    if not is_own(folder) and (links := links_out(folder)):
        raise DiagError(
            "this run is not signed as yours, and links lead out of it", where=folder, got=", ".join(links[:5]),
            hint="files would be written there: remove the links, or put what they mean in their place", usage=True,
        )  # fmt: skip
    keys = {a.partition("=")[0].lstrip("+~") for a in given_now}
    told = redacted_words([a for a in left if "=" in a and a.partition("=")[0].lstrip("+~") not in keys])
    if told:
        again = line("dpo-train", going_on, *given_now, *told)
        if deciding := [text for text in told if _decides(text)]:
            raise DiagError(
                "this run is not signed as yours, and going on without these would be another training", where=folder,
                got=" ".join(deciding), hint=f"if you trust them: {again}; or give them another value", usage=True,
            )  # fmt: skip
        print(f"note: {folder} is not signed as yours: not taken from it: {safe(' '.join(told), one_line=True)}; "
              f"if you trust them: {safe(again, one_line=True)}", file=sys.stderr)  # fmt: skip
    if lost := [key for a in own if REDACTED in a and (key := a.partition("=")[0]).lstrip("+~") not in keys]:
        print(f"not kept, since it is a secret: {', '.join(lost)}; give it again if it is needed", file=sys.stderr)
    kept = [a for a in own if a not in left and not ONCE.match(a) and REDACTED not in a]
    if replays:
        return [*kept, *given_now, going_on]
    return [*kept, *given_now, going_on, override("hydra.run.dir", folder.resolve())]


def replays(arguments: Sequence[str]) -> bool:
    """Whether a step is computed again, which writes no run."""
    return any(_names_one(a) and a.lstrip("+").startswith("replay=") for a in arguments)


def _names_one(argument: str) -> bool:
    return _RESUME.match(argument) is not None and argument.partition("=")[2] not in ("null", "")


def _say_unread_edit(folder: Path) -> None:
    """A line where somebody changed the composed configuration: what is gone on with are the overrides beside it."""
    file = folder / ".hydra" / "config.yaml"
    if file.is_file() and agrees(file.read_bytes(), ".yaml") is False:
        print(f"note: {file} was changed, and is not read: resume= goes by .hydra/overrides.yaml; give what should "
              "change on the command line", file=sys.stderr)  # fmt: skip


def _saved_overrides(file: Path) -> list[str]:
    saved = read_yaml(file) or []
    if not isinstance(saved, list):
        raise DiagError("the overrides cannot be read", where=file, got=type(saved).__name__, expected="a list")
    return [str(text) for text in saved]


def own_key() -> bytes | None:
    """This user's key, made where there is none; None where it cannot be kept."""
    with suppress(OSError, RuntimeError):
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()) / "dpo_diag"
        file = folder / "key"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "wb") as made:
                    made.write(secrets.token_hex(32).encode())
        return file.read_bytes() or None
    return None


def sign(folder: Path) -> None:
    """Say that this user wrote the overrides of a run; nothing where no key can be kept."""
    _write(folder / SIGNATURE, _signed(folder))


def is_own(folder: Path) -> bool:
    """Whether this user wrote the overrides of a run."""
    with suppress(OSError, ValueError, DiagError):
        return _agrees(folder / SIGNATURE, _signed(folder))
    return False


def sign_sweep(folder: Path) -> None:
    """Say that this user planned the multirun of a folder, and wrote the script in it; nothing where no key is kept."""
    _write(folder / SWEEP_SIGNATURE, _signed_sweep(folder))


def is_own_sweep(folder: Path) -> bool:
    """Whether this user planned the multirun of a folder, and wrote the script in it."""
    with suppress(OSError, ValueError, DiagError):
        return _agrees(folder / SWEEP_SIGNATURE, _signed_sweep(folder))
    return False


def _signed(folder: Path) -> list[str] | None:
    file = folder / ".hydra" / "overrides.yaml"
    return _saved_overrides(file) if file.is_file() else None


def _signed_sweep(folder: Path) -> dict[str, Any] | None:
    plan, script = plan_of(folder), folder / SCRIPT
    if plan is None:
        return None
    asked = {name: value for name, value in asdict(plan).items() if name != "state"}  # who runs it changes
    return {**asked, "script": script.read_text(encoding="utf-8") if script.is_file() else None}


def _signature(document: object) -> str | None:
    key = own_key()
    if key is None or document is None:
        return None
    return hmac.new(key, to_json(document).encode(), hashlib.sha256).hexdigest()


def _write(file: Path, document: object) -> None:
    signature = _signature(document)
    if signature is not None:
        file.write_text(signature, encoding="ascii")


def _agrees(file: Path, document: object) -> bool:
    signature = _signature(document)
    return signature is not None and hmac.compare_digest(file.read_text("ascii"), signature)


def links_out(folder: Path) -> list[str]:
    """Links anywhere in a folder that lead out of it: whoever writes in the folder would write there."""
    inside = Path(os.path.realpath(folder))
    walked = ((place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files))
    links = (path for place, name in walked if os.path.islink(path := os.path.join(place, name)))
    return [f"{at} -> {os.readlink(at)}" for at in links if not Path(os.path.realpath(at)).is_relative_to(inside)]


def not_taken(overrides: Sequence[str]) -> list[str]:
    """Those overrides that are not taken from a folder of somebody else.

    >>> not_taken(["seed=3", "model.trust_remote_code=true", "trainer.args.adam_beta2=0.9", "trainer.args.run_name=/x"])
    ['model.trust_remote_code=true', 'trainer.args.run_name=/x']
    """
    return [text for text in overrides if _leads_elsewhere(text)]


def _decides(text: str) -> bool:
    """Whether the weights may depend on an override that is not taken."""
    key = text.partition("=")[0].strip().lstrip("+~").partition("@")[0]
    told_apart = re.split(r"[./]", key)[0] in _ELSEWHERE or key in _ELSEWHERE or key.split(".")[-1] in _CODE
    return not told_apart and not key.startswith(("trainer.args.push", "trainer.args.hub", "-"))


def _leads_elsewhere(text: str) -> bool:
    key, equals, value = text.partition("=")
    key, to_elsewhere, _ = key.strip().lstrip("+~").partition("@")
    parts = key.split(".")
    if not equals or text.startswith("-") or "${" in value:
        return not text.startswith("~")
    # An option of a group is a file: one beyond ours, or put in another place, may hold any key.
    if to_elsewhere or (".." in value and (conf_dir() / key.partition("/")[0]).is_dir()):
        return True
    if key == "trainer.args" or "_target_" in text:
        return True
    if parts[:2] == ["trainer", "args"]:
        return parts[2].startswith(("push", "hub")) or _PLAIN.fullmatch(value.strip()) is None
    nested = value.lstrip("'\"").startswith("{")  # a whole node in one override may hold any key
    kernel = parts[-1] == "attn_implementation" and "/" in value  # compiled code from the hub
    return nested or kernel or parts[-1] in _CODE or re.split(r"[./]", key)[0] in _ELSEWHERE or key in _ELSEWHERE
