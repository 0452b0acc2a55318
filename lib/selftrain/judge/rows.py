"""From stored answers to score rows and their stage in a cycle folder, the same for every judge."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from selftrain import jsonl, paths, seeds, store
from selftrain.judge import EMPTY, Answer, Judge
from selftrain.judge.coverage import FLOOR, check_coverage


def to_judge(row: dict) -> Answer:
    """A row of eval.jsonl as a judge sees it."""
    return Answer(row.get("id", ""), row["prompt"], row["answer"], row["kind"], row.get("nll"), row.get("nll_tokens"))


def score_rows(judge: Judge, trait: str, answers: list[dict], progress: Callable[[int], None] | None = None) -> list[dict]:
    """Score rows of stored answers under a judge, with the hashes of judge, rubric and questions."""
    judged = [a for a in answers if a["answer"].strip()]
    scores = dict(zip((a["id"] for a in judged), judge.score(trait, [to_judge(a) for a in judged], progress), strict=True))
    hashes = {
        "judge": judge.name,
        "judge_hash": judge.hash(trait),
        "rubric_hash": seeds.rubric(trait).hash,
        "questions_hash": jsonl.digest(sorted({(a["question_id"], a["prompt"]) for a in answers})),
    }
    return [{"id": a["id"], "question_id": a["question_id"], "trait": trait, **vars(scores.get(a["id"], EMPTY)), **hashes} for a in answers]


def judge_stage(judge: Judge, trait: str) -> tuple[str, str, dict]:
    """(stage, file, inputs) of a judge's scores in a cycle folder."""
    digest = judge.hash(trait)
    return (
        f"judge:{judge.name}-{digest[:8]}",
        f"scores/{judge.name.replace('/', '_').replace(':', '_')}-{digest[:8]}.jsonl",
        {"judge": judge.name, "judge_hash": digest, "trait": trait},
    )


def judge_folder(
    folder: Path,
    judge: Judge,
    trait: str,
    floor: float = FLOOR,
    stage: Callable | None = None,
    progress: Callable[[int], None] | None = None,
):
    """Add a judge's scores to a cycle folder by `stage` (store.stage unless a chain brings its own); returns what that returns.

    InputError where the judge scored less than `floor` of the answers: nothing is marked done then, and another run asks for the rest.
    """
    name, file, inputs = judge_stage(judge, trait)
    answers = store.read_marker(folder)["evaluate"]["outputs"]["eval.jsonl"]

    def produce(made: Path) -> None:
        rows = score_rows(judge, trait, jsonl.read(folder / "eval.jsonl"), progress)
        check_coverage(rows, paths.shown(folder), floor)
        (made / "scores").mkdir()
        jsonl.write(made / file, rows)

    return (stage or partial(store.stage, folder))(name, {"answers": answers, **inputs}, [file], produce)
