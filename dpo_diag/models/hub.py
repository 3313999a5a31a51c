"""Loading from the hub or a folder: the library's many errors as one line that says what to do."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from dpo_diag.errors import DiagError
from dpo_diag.shortages import out_of_memory

_OFFLINE = ("offline mode", "offline", "couldn't connect", "connection error", "connecterror", "name resolution",
            "couldn't reach", "max retries", "cached files", "localentrynotfound",
            "network is unreachable")  # fmt: skip
PICKLES = (
    "convert them to safetensors, or, for a source that you trust, set model.allow_pickle=true "
    "(loader.allow_pickle=true in dpo-score and dpo-generate)"
)
_ABSENT = ("repositorynotfound", "datasetnotfound", "404", "not a valid model identifier")


def looks_local(name: str) -> bool:
    """Whether a model's name means a folder: it exists, or is written like a path."""
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def check_name(name: str, what: str = "model") -> str:
    """The name to load: a hub id as it is, a folder as an absolute path.

    Raises:
        DiagError: no such folder, a file, or a folder without config.json.
    """
    if not looks_local(name):
        return name
    path = Path(name).expanduser()
    if not path.exists():
        raise DiagError(f"no such {what} folder", where=path, hint="check model.name (a hub id is written OWNER/NAME)")
    if not path.is_dir():
        hint = "name its folder" if path.suffix in (".safetensors", ".bin", ".json") else None
        raise DiagError(f"a {what} is a folder", where=path, got="a file", hint=hint)
    if what == "model" and not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise DiagError(
                "the folder holds an adapter alone", where=path, hint="merge it into its base model first (peft)"
            )
        inside = sorted(p.parent.name for p in path.glob("*/config.json"))
        hint = f"name one of the folders inside: {', '.join(inside[:5])}" if inside else None
        raise DiagError("no model in the folder", where=path, expected="config.json and *.safetensors", hint=hint)
    return str(path.resolve())


@cache
def hub_reachable(timeout: float = 4.0) -> bool:
    """Whether the hub answers a connection. The hub's own client retries for a minute before it gives up.

    True without a look where a proxy is between (HTTPS_PROXY, ALL_PROXY); False where HF_HUB_OFFLINE is set.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if any(os.environ.get(name) or os.environ.get(name.lower()) for name in ("HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY")):
        return True
    url = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        with socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), timeout):
            return True
    except OSError:
        return False


@contextmanager
def hub_offline_if_unreachable(name: str) -> Iterator[None]:
    """While inside, the hub's client reads its cache alone if `name` is a hub id and the hub does not answer."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not looks_local(name) and not hub_reachable():
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def loading(name: str, what: str) -> Iterator[None]:
    """Turn what transformers and the hub raise while loading `what` from `name` into a DiagError."""
    try:
        with hub_offline_if_unreachable(name):
            yield
    except DiagError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError) as error:
        if out_of_memory(error):
            raise  # says nothing of the model
        raise explain(name, what, error) from error


def explain(name: str, what: str, error: BaseException, option: str = "model.name") -> DiagError:
    """The one line for an error of the loading library; `option` is what named it."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 6:
        chain.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    text, lower = " | ".join(chain), " | ".join(chain).lower()
    if "trust_remote_code" in lower:
        return DiagError(
            f"the {what} brings its own code, which is not run unless asked",
            where=name,
            hint="read that code, then set model.trust_remote_code=true",
        )
    if "gated" in lower or "401" in lower or "403" in lower:
        return DiagError(f"the {what} asks for a login", where=name, hint="ask for access there, then `hf auth login`")
    if "attn_implementation" in lower or "flashattention" in lower or "flash_attn" in lower:
        return DiagError(
            f"the {what} cannot use that attention", where=name, got=_first_line(error),
            hint="set model.attn_implementation=sdpa or eager",
        )  # fmt: skip
    if isinstance(error, ImportError):
        return DiagError(f"the {what} needs a package that is absent", where=name, got=_first_line(error))
    if "safetensors" in lower and ("no file named" in lower or "does not appear to have" in lower):
        return DiagError(
            f"the {what} has no safetensors weights",
            where=name,
            hint=PICKLES,
        )
    if not looks_local(name) and any(word in lower for word in _OFFLINE):
        return DiagError(
            f"the {what} is not in the local cache and the hub cannot be reached",
            where=name,
            hint="connect, unset HF_HUB_OFFLINE, or name a local folder",
        )
    if "unrecognized configuration class" in lower or "automodelforcausallm" in lower:
        return DiagError("not a causal language model", where=name, got=_architecture(text), expected="a causal LM")
    if any(word in lower for word in _ABSENT):
        return DiagError(f"no such {what} on the hub", where=name, hint=f"check {option}")
    return DiagError(f"the {what} cannot be loaded", where=name, got=_first_line(error))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _architecture(text: str) -> str | None:
    start = text.find("<class '")
    return text[start + 8 : text.find("'", start + 8)].rsplit(".", 1)[-1] if start >= 0 else None
