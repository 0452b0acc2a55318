"""A second judge's scores beside the first, for every answer that a study has kept; the chains themselves are not touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from selftrain import jsonl, paths, store
from selftrain.errors import InputError
from selftrain.judge import Judge, get_judge
from selftrain.judge.coverage import FLOOR, check_coverage
from selftrain.judge.rows import score_rows


def judge_stage(judge: Judge, trait: str) -> tuple[str, str, dict]:
    """(stage, file, inputs) of a judge's scores in a cycle folder, as a chain writes them."""
    digest = judge.hash(trait)
    return (
        f"judge:{judge.name}-{digest[:8]}",
        f"scores/{judge.name.replace('/', '_').replace(':', '_')}-{digest[:8]}.jsonl",
        {"judge": judge.name, "judge_hash": digest, "trait": trait},
    )


def judge_folder(folder: Path, judge: Judge, trait: str, floor: float = FLOOR) -> bool:
    """Add a judge's scores to a cycle folder; False where they stand already. InputError under the floor: nothing is marked done then."""
    name, file, inputs = judge_stage(judge, trait)
    answers = store.read_marker(folder)["evaluate"]["outputs"]["eval.jsonl"]

    def produce(made: Path) -> None:
        rows = score_rows(judge, trait, jsonl.read(folder / "eval.jsonl"))
        check_coverage(rows, paths.shown(folder), floor)
        (made / "scores").mkdir()
        jsonl.write(made / file, rows)

    return store.stage(folder, name, {"answers": answers, **inputs}, [file], produce)


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
    judge = get_judge(judge_name)
    judge = judge.for_study(study) if hasattr(judge, "for_study") else judge
    done = 0
    for i, (folder, trait) in enumerate(folders, 1):
        done += judge_folder(folder, judge, trait, floor)
        if progress:
            progress(i, len(folders))
    return done, len(folders)
