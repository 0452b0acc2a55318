"""What a run ran on: versions, device, commit. Stands in every manifest and table."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata

from selftrain import paths

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "sentence-transformers")
ON_A_GPU = ("unsloth", "unsloth_zoo", "bitsandbytes", "triton")  # named only where there is a GPU to use them


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The repository's commit, with + where tracked files differ from it; outside a checkout what SELFTRAIN_COMMIT says, else None."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(paths.ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SELFTRAIN_COMMIT")


@functools.cache
def environment() -> dict[str, str | None]:
    """Versions, processor or GPU, and commit, as text values. The trainer of a cycle stands in its train_log.json."""
    import torch

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"cpu {platform.machine()}, {torch.get_num_threads()} threads"
    versions = {name: _version(name) for name in PACKAGES}
    versions |= {name: version for name in ON_A_GPU if cuda and (version := _version(name))}
    return {"python": platform.python_version(), "device": device, "commit": commit(), **versions}
