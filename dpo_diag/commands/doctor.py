"""`dpo-diag doctor`: is this machine ready to train and to analyse, and is this run whole. Exit 1 when something fails.

torch is asked in a process of its own: it takes seconds to import, and a broken install must not break the doctor.
"""

from __future__ import annotations

import json as json_module
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from dpo_diag import __version__
from dpo_diag.command_lines import say_next
from dpo_diag.config import conf_dir
from dpo_diag.errors import DiagError
from dpo_diag.extras import install_hint, is_installed
from dpo_diag.next_steps import after_doctor
from dpo_diag.records.finding import FAIL, OK, WARN, Finding
from dpo_diag.styled import fitted
from dpo_diag.text import to_json

DISTRIBUTION = "dpo-diag"
_TORCH = """
import json, torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": names,
                  "mps": torch.backends.mps.is_available(), "threads": torch.get_num_threads()}))
"""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_LOW_DISK, _NO_DISK = 2e9, 2e8


def doctor(run: Path | None = None, /, *, quick: bool = False, json: bool = False) -> int:
    """Is this machine ready to train and to analyse, and is this run whole; 1 when something fails.

    Args:
        run: a run folder to check as well.
        quick: leave out what takes seconds (torch in a process).
        json: one JSON document on standard output.
    """
    machine = check_machine(quick=quick)
    about_run = _of_run(run) if run is not None else []
    failed = any(finding.outcome == FAIL for finding in [*machine, *about_run])
    following = after_doctor(run, not failed)
    if json:
        of_run = run and {"path": str(run), "findings": [finding.to_dict() for finding in about_run]}
        findings = [finding.to_dict() for finding in machine]
        document = {"ok": not failed, "version": __version__, "machine": findings, "run": of_run, "next": following}
        print(to_json(document, indent=2))
        return 1 if failed else 0
    _print("this machine", machine)
    if run is not None:
        _print(str(run), about_run)
    counts = {outcome: sum(f.outcome == outcome for f in [*machine, *about_run]) for outcome in (OK, WARN, FAIL)}
    print(f"{counts[OK]} ok, {counts[WARN]} to look at, {counts[FAIL]} failed")
    say_next(following)
    return 1 if failed else 0


def _of_run(run: Path) -> list[Finding]:
    from dpo_diag.records.health import check_run

    return check_run(run)


def _print(title: str, findings: list[Finding]) -> None:
    print(title)
    width = max((len(finding.name) for finding in findings), default=0)
    for finding in findings:
        hint = f"; hint: {finding.hint}" if finding.hint else ""
        outcome = finding.outcome.upper() if finding.outcome == FAIL else finding.outcome
        print(fitted(f"  {outcome:4}  {finding.name:{width}}  {finding.found}{hint}"))


def check_machine(*, quick: bool = False) -> list[Finding]:
    """Python, packages, torch, configuration, browser, cache, tracking, disk."""
    findings = [_python(), *_packages()]
    findings.append(Finding("torch", OK, "not asked (--quick)") if quick else _torch())
    return [*findings, _conf(), _browser(), _model_cache(), _wandb(), *_disk(), _threads()]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 - who copies the sources past pip meets this line
        return Finding("python", FAIL, found, "use Python 3.11 or newer")
    return Finding("python", OK, f"{found} at {sys.executable}")


def requirements() -> list[str]:
    """Requirement strings of this project: from its installed metadata, else from pyproject.toml beside the package."""
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        pass
    file = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not file.is_file():
        return []
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    extras = [
        f"{name}; extra == '{extra}'" for extra, names in project["optional-dependencies"].items() for name in names
    ]
    return [*project["dependencies"], *extras]


def _packages() -> list[Finding]:
    """Each required package against its range; extras only where they are installed outside theirs."""
    from packaging.requirements import InvalidRequirement, Requirement

    findings, good, absent = [], 0, set()
    for text in requirements():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.name == DISTRIBUTION:
            continue
        extra = requirement.marker is not None and "extra" in str(requirement.marker)
        if requirement.marker is not None and not extra and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if extra:
                absent.add(requirement.name)
            else:
                findings.append(_wrong_package(requirement.name, "absent", str(requirement.specifier), FAIL))
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good += 1
        else:
            findings.append(
                _wrong_package(requirement.name, version, str(requirement.specifier), WARN if extra else FAIL)
            )
    if not good and not findings:
        return [Finding("packages", WARN, "neither installed nor beside its pyproject.toml: ranges unknown")]
    optional = f"; extras not installed: {', '.join(sorted(absent))}" if absent else ""
    return [Finding("packages", OK, f"{good} in their ranges{optional}"), *findings]


def _wrong_package(name: str, found: str, wanted: str, outcome: str) -> Finding:
    return Finding(name, outcome, f"{found}, wanted {wanted or 'any'}", f'pip install "{name}{wanted}"')


def _torch() -> Finding:
    if not is_installed("torch"):
        return Finding("torch", OK, f"not installed: records are read here, not made ({install_hint('torch')})")
    try:
        done = subprocess.run([sys.executable, "-P", "-c", _TORCH], capture_output=True, text=True, timeout=120)
        about = json_module.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Finding("torch", FAIL, "importing it took more than 120 s")
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding("torch", FAIL, f"cannot be imported: {last[:200]}", "install it again")
    gpus = ", ".join(about["gpus"])
    if not gpus:
        gpus = "Apple GPU" if about["mps"] else "no GPU: float32 on the CPU"
    build = f"CUDA {about['cuda']}" if about["cuda"] else "without CUDA"
    return Finding("torch", OK, f"{about['version']} ({build}), {gpus}, {about['threads']} threads")


def _conf() -> Finding:
    try:
        return Finding("conf", OK, str(conf_dir()))
    except DiagError as error:
        return Finding("conf", FAIL, str(error))


def _browser() -> Finding:
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    return Finding("browser", OK, found or "no Chromium found: reports open in any browser, browser tests are skipped")


def _model_cache() -> Finding:
    from dpo_diag.models.smollm2 import cache_dir, smollm2_folder

    try:
        return Finding("smollm2", OK, str(smollm2_folder()))
    except DiagError:
        return Finding("smollm2", OK, f"not in {cache_dir()}: dpo-diag fetch smollm2 brings it")


def _wandb() -> Finding:
    """The mode and whether a key is there; never the key."""
    mode = os.environ.get("WANDB_MODE") or "tracking.mode decides (offline by default)"
    keyed = bool(os.environ.get("WANDB_API_KEY")) or _netrc_has("api.wandb.ai")
    server = os.environ.get("WANDB_BASE_URL")
    if os.environ.get("WANDB_MODE") == "online" and not keyed:
        return Finding("wandb", WARN, "mode online, but no key", "wandb login, or WANDB_MODE=offline")
    return Finding("wandb", OK, f"{mode}; {'a' if keyed else 'no'} key is set{f'; server {server}' if server else ''}")


def _netrc_has(host: str) -> bool:
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return host in file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _disk() -> list[Finding]:
    """Room where runs and models are written."""
    from dpo_diag.models.smollm2 import cache_dir

    findings, seen = [], set()
    for name, path in (("disk", Path.cwd()), ("disk of the cache", cache_dir())):
        while not path.exists():
            path = path.parent
        device = path.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(path).free
        outcome = FAIL if free < _NO_DISK else WARN if free < _LOW_DISK else OK
        hint = "free some room, or set output_root to another disk" if outcome != OK else ""
        if not os.access(path, os.W_OK):
            outcome, hint = FAIL, "it cannot be written: choose another folder"
        findings.append(Finding(name, outcome, f"{free / 1e9:.1f} GB free at {path}", hint))
    return findings


def _threads() -> Finding:
    """Busy-waiting OpenMP threads slow each other down on a shared machine."""
    cores, named = os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS")
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    return Finding("cpu", OK, f"{cores} cores, OMP_NUM_THREADS {named or 'not set'}, OMP_WAIT_POLICY {policy}")
