"""What a run ran on: versions, device, commit. Stands in every manifest and table."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata

from selftrain import paths

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "sentence-transformers")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The repository's commit, with + where tracked files differ from it; None outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(paths.ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def environment() -> dict[str, str | None]:
    """Versions, processor or GPU, and commit, as text values."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu {platform.machine()}, {torch.get_num_threads()} threads"
    return {"python": platform.python_version(), "device": device, "commit": commit(), **{name: _version(name) for name in PACKAGES}}
