"""What a run ran on: versions, device, commit. Stands in every manifest and table."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata

from selftrain import paths
from selftrain.errors import InputError

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "sentence-transformers")
PLAIN = "SELFTRAIN_PLAIN"  # what to do the plain way on CUDA, separated by commas, to see what the fast ways change
WAYS = ("training", "sampling", "float32")  # the model's own passes; `generate`; weights and arithmetic (needs `training`)
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


def plain() -> tuple[str, ...]:
    """What SELFTRAIN_PLAIN asks for, in the order of WAYS; InputError for a word that is none of them."""
    asked = {word.strip() for word in os.environ.get(PLAIN, "").split(",")} - {""}
    if unknown := sorted(asked - set(WAYS)):
        raise InputError(f"{PLAIN}: no way {unknown[0]!r}; ways: {', '.join(WAYS)}")
    if "float32" in asked and "training" not in asked:
        raise InputError(f"{PLAIN}: float32 needs training, too: recorded passes are in bfloat16")
    return tuple(way for way in WAYS if way in asked)


@functools.cache
def environment() -> dict[str, str | None]:
    """Versions, processor or GPU, and commit, as text values. The trainer of a cycle stands in its train_log.json."""
    import torch

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"cpu {platform.machine()}, {torch.get_num_threads()} threads"
    versions = {name: _version(name) for name in PACKAGES}
    versions |= {name: version for name in ON_A_GPU if cuda and (version := _version(name))}
    asked = {"plain": ",".join(plain())} if plain() else {}
    return {"python": platform.python_version(), "device": device, "commit": commit(), **asked, **versions}
