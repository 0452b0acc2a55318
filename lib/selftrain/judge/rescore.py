"""A second judge's scores beside the first, for every answer that a study has kept; the chains themselves are not touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from selftrain import paths, store
from selftrain.errors import InputError
from selftrain.judge import get_judge
from selftrain.judge.coverage import FLOOR
from selftrain.judge.rows import judge_folder


def cycle_folders(study: Path) -> list[tuple[Path, str]]:
    """Every evaluated cycle folder of a study with its trait, base models first."""
    found = []
    for manifest in sorted(study.glob("runs/*/*/manifest.json")):
        trait = json.loads(manifest.read_text(encoding="utf-8"))["config"]["trait"]
        found += [
            (f, trait) for f in [manifest.parent / "base", *sorted(manifest.parent.glob("cycle_*"))] if "evaluate" in store.read_marker(f)
        ]
    return sorted(found, key=lambda entry: entry[0].name != "base")


def rescore(
    results: str | Path, judge_name: str, floor: float = FLOOR, progress: Callable[[int, int], None] | None = None
) -> tuple[int, int]:
    """Score all kept answers of results/<study> with another judge; (cycles judged now, cycles found). `progress(done, of)` follows each.

    InputError where nothing is there. Interrupted or under the floor, a second run goes on where the first one stopped.
    """
    study = next((p for p in (Path(results), paths.study_folder(str(results)), paths.ROOT / results) if p.is_dir()), None)
    if study is None:
        raise InputError(f"{results}: no such results folder")
    folders = cycle_folders(study)
    if not folders:
        raise InputError(f"{paths.shown(study)}: no run folders with answers to judge; committed tables cannot be judged anew")
    judge = get_judge(judge_name).for_study(study)
    done = 0
    for i, (folder, trait) in enumerate(folders, 1):
        done += judge_folder(folder, judge, trait, floor)
        if progress:
            progress(i, len(folders))
    return done, len(folders)
