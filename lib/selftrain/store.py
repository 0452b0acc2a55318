"""Run folders: a stage is done when its marker, written last, matches its inputs and its files; equal work is shared, never repeated."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selftrain import jsonl
from selftrain.errors import InputError
from selftrain.paths import shown

MARKER = "done.json"


def read_marker(folder: Path) -> dict[str, Any]:
    """The folder's done.json, {stage: {inputs, outputs, pruned}}; empty where there is none."""
    path = Path(folder) / MARKER
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def digest_of(path: Path) -> str | None:
    """Digest of a file, or of all files below a folder; None where it is missing."""
    if path.is_file():
        return jsonl.file_digest(path)
    if path.is_dir():
        return jsonl.digest({str(p.relative_to(path)): jsonl.file_digest(p) for p in sorted(path.rglob("*")) if p.is_file()})
    return None


def is_done(folder: Path, name: str, inputs: dict[str, Any]) -> bool:
    """Whether a stage's marker and files are there and fit; InputError where it was made from other inputs."""
    entry = read_marker(folder).get(name)
    if entry is None:
        return False
    if entry["inputs"] != json.loads(jsonl.dumps(inputs)):
        differ = sorted(k for k in {*entry["inputs"], *inputs} if entry["inputs"].get(k) != json.loads(jsonl.dumps(inputs)).get(k))
        raise InputError(
            f"{shown(folder)}: stage {name} was made from other inputs ({', '.join(differ)}); something under seeds/ or in the code changed since: "
            "move this run folder away to run afresh"
        )
    return all(output in entry.get("pruned", ()) or digest_of(folder / output) == digest for output, digest in entry["outputs"].items())


def _link(source: Path, target: Path) -> None:
    """Hard-link a file or every file of a folder; copy where the file system cannot."""

    def one(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, copy_function=one)
    else:
        target.unlink(missing_ok=True)
        one(str(source), str(target))


def stage(
    folder: Path, name: str, inputs: dict[str, Any], outputs: list[str], produce: Callable[[Path], None], shared: Path | None = None
) -> bool:
    """Make sure a stage is done; True if it was run now, False if it was found done here or under `shared`.

    `produce(folder)` writes the outputs into a temporary folder; they are moved into place whole, then the marker is written.
    `shared` holds the outputs of stages by digest of name and inputs: chains with the same causes share them by hard link.
    """
    if is_done(folder, name, inputs):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    pool = shared / jsonl.digest([name, inputs], 24) if shared else None
    ran = not (pool and pool.exists())
    with tempfile.TemporaryDirectory(dir=folder, prefix=".stage-") as temporary:
        made = Path(temporary) if ran else pool
        if ran:
            produce(made)
            missing = [output for output in outputs if not (made / output).exists()]
            assert not missing, f"stage {name} did not write {missing}"
        for output in outputs:
            target = folder / output
            if made == pool:
                _link(made / output, target)
                continue
            if target.is_dir():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made / output, target)
    if pool and ran:
        _publish(folder, outputs, pool)
    marker = read_marker(folder)
    marker[name] = {"inputs": inputs, "outputs": {output: digest_of(folder / output) for output in outputs}}
    jsonl.write_text(folder / MARKER, json.dumps(marker, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return ran


def _publish(folder: Path, outputs: list[str], pool: Path) -> None:
    """Put finished outputs where other chains look; the first one to arrive stays."""
    pool.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=pool.parent, prefix=".new-"))
    for output in outputs:
        _link(folder / output, temporary / output)
    try:
        os.rename(temporary, pool)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)


def prune(folder: Path, stage_name: str, output: str) -> None:
    """Delete a large output of a finished stage and say so in its marker."""
    marker = read_marker(folder)
    entry = marker.get(stage_name)
    if entry is None or output in entry.get("pruned", ()):
        return
    entry["pruned"] = [*entry.get("pruned", ()), output]
    jsonl.write_text(folder / MARKER, json.dumps(marker, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    shutil.rmtree(folder / output, ignore_errors=True)


def copy_cycle(source: Path, target: Path, leave_out: str | None = None) -> None:
    """Take over another chain's finished cycle folder by hard links, without one stage where named."""
    marker = read_marker(source)
    kept = {name: entry for name, entry in marker.items() if name != leave_out}
    for entry in kept.values():
        for output in entry["outputs"]:
            if output not in entry.get("pruned", ()):
                _link(source / output, target / output)
    target.mkdir(parents=True, exist_ok=True)
    jsonl.write_text(target / MARKER, json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
