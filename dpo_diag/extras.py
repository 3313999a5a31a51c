"""Which extra brings which package: a command whose extra is missing says so in one line.

`pip install dpo-diag` brings what reads records; what runs a model, serves a page or sends to a tracker is an extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError

EXTRA_OF = {
    **dict.fromkeys(
        ("accelerate", "datasets", "huggingface_hub", "hydra", "omegaconf", "peft", "safetensors", "tokenizers",
         "torch", "tqdm", "transformers", "trl"),
        "train",
    ),
    "fsspec": "remote",
    "gguf": "gguf",
    "mlflow": "mlflow",
    "ray": "ray",
    **dict.fromkeys(("fastapi", "gradio", "uvicorn"), "review"),
    "sacrebleu": "text-metrics",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
    "wandb_workspaces": "wandb-report",
}  # fmt: skip
"""Name of an importable package -> the extra that installs it."""
PLUGINS = {
    "hydra/sweeper=optuna": ("hydra_optuna_sweeper", "optuna"),
    "hydra/launcher=joblib": ("hydra_joblib_launcher", "joblib"),
    "hydra/launcher=submitit_local": ("hydra_submitit_launcher", "submitit"),
    "hydra/launcher=submitit_slurm": ("hydra_submitit_launcher", "submitit"),
    "hydra/launcher=ray": ("hydra_ray_launcher", "ray-launcher"),
}
"""Override of Hydra's -> its plugin's module in hydra_plugins, and the extra that installs it."""


def install_hint(package: str) -> str:
    """The pip command that brings an importable package: an extra comes from where this package was installed, since in
    an index that does not hold it the name could be anybody's."""
    extra = EXTRA_OF.get(package.split(".")[0])
    return f'pip install "{installed_from()}[{extra}]"' if extra else f"pip install {package}"


@cache
def installed_from() -> str:
    """The folder from which pip installed this package (PEP 610), else its name."""
    try:
        said = parse_json(distribution("dpo-diag").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return "dpo-diag"
    folder = Path(url2pathname(urlsplit(said.get("url", "")).path))
    return str(folder) if "dir_info" in said and (folder / "pyproject.toml").is_file() else "dpo-diag"


def is_installed(package: str) -> bool:
    """Whether the package can be imported, without importing it."""
    return find_spec(package) is not None


def require(package: str, what: str) -> None:
    """Raise a DiagError that names the extra, unless the package is installed.

    Args:
        what: what needs it, as the sentence begins: "reading event files".
    """
    if not is_installed(package):
        raise missing(package, what)


def has_plugin(module: str) -> bool:
    """Whether a plugin of Hydra's is installed, by its module in hydra_plugins."""
    return is_installed("hydra_plugins") and is_installed(f"hydra_plugins.{module}")


def require_plugin(override: str) -> None:
    """Raise a DiagError that names the extra, where an override asks for a plugin of Hydra's that is not installed."""
    plugin, extra = PLUGINS.get(override, ("", ""))
    if plugin and not has_plugin(plugin):
        hint = f'pip install "{installed_from()}[{extra}]"'
        raise DiagError(f"{override} needs {plugin.replace('_', '-')}, which is not installed", hint=hint)


def refuse_together(overrides: Sequence[str]) -> None:
    """Raise a DiagError where a search with Optuna is asked to be tracked with MLflow in an environment that has the
    sweeper's SQLAlchemy: MLflow's stores need the next one."""
    words = [text.lstrip("+") for text in overrides]
    tracked = any(text.startswith(("tracking=", "tracking.kind=")) and "mlflow" in text for text in words)
    if tracked and "hydra/sweeper=optuna" in words and is_installed("sqlalchemy") and version("sqlalchemy") < "2":
        raise DiagError(
            "hydra/sweeper=optuna needs SQLAlchemy 1.4 and MLflow needs 2", where="tracking",
            got=f"SQLAlchemy {version('sqlalchemy')}", usage=True,
            hint="search first; then, where the extra mlflow is installed: dpo-diag track RUN --to mlflow",
        )  # fmt: skip


def missing(package: str, what: str) -> DiagError:
    """The error of a package that is not installed."""
    return DiagError(f"{what} needs {package.split('.')[0]}, which is not installed", hint=install_hint(package))


def of_import_error(error: ModuleNotFoundError, what: str) -> DiagError | None:
    """The error of an import that failed because an extra is not installed; None for any other module."""
    package = (error.name or "").split(".")[0]
    return missing(package, what) if package in EXTRA_OF and not is_installed(package) else None
