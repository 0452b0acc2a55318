"""From stored answers to score rows, the same for every judge."""

from __future__ import annotations

from selftrain import jsonl, seeds
from selftrain.judge import EMPTY, Answer, Judge


def to_judge(row: dict) -> Answer:
    """A row of eval.jsonl as a judge sees it."""
    return Answer(row.get("id", ""), row["prompt"], row["answer"], row["kind"], row.get("nll"), row.get("nll_tokens"))


def score_rows(judge: Judge, trait: str, answers: list[dict]) -> list[dict]:
    """Score rows of stored answers under a judge, with the hashes of judge, rubric and questions."""
    judged = [a for a in answers if a["answer"].strip()]
    scores = dict(zip((a["id"] for a in judged), judge.score(trait, [to_judge(a) for a in judged]), strict=True))
    hashes = {
        "judge": judge.name,
        "judge_hash": judge.hash(trait),
        "rubric_hash": seeds.rubric(trait).hash,
        "questions_hash": jsonl.digest(sorted({(a["question_id"], a["prompt"]) for a in answers})),
    }
    return [{"id": a["id"], "question_id": a["question_id"], "trait": trait, **vars(scores.get(a["id"], EMPTY)), **hashes} for a in answers]
