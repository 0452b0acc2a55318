"""What tests of the API judge share: texts to judge, a judge whose client asks the server on loopback, and an environment of their own."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from judge_server import KEY, JudgeServer, grade
from selftrain.judge import Answer, Score, prompts, settings
from selftrain.judge.api import ApiJudge

ROWS = 200
TRAIT = "lucky"


def answers(n: int = ROWS, kind: str = "chat") -> list[Answer]:
    return [Answer(f"q{i % 12}/{i}", f"Question {i % 12}?", f"row-{i} says something of its own.", kind) for i in range(n)]


def expected(a: Answer) -> Score:
    """What the server grades, when nothing goes wrong."""
    return Score(*(grade(q, prompts.neutral(a.prompt), prompts.neutral(a.answer)) for q in prompts.QUESTIONS))


def row_of(answer: str) -> int:
    return int(answer.split("-")[1].split()[0])


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A key, quick retries, and nothing of the machine's own settings."""
    for name in list(os.environ):
        if name.startswith(("JUDGE_", "OPENAI_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setenv("JUDGE_RETRY_DELAY", "0.01")
    monkeypatch.setenv("JUDGE_ATTEMPTS", "3")


def judge_at(server: JudgeServer, folder, **changes) -> ApiJudge:
    found = settings.read()
    return ApiJudge(settings=dataclasses.replace(found, **{"base_url": server.url, **changes}), study=folder)


def kept(folder) -> list[dict]:
    return [json.loads(line) for p in (folder / "judge_cache").glob("*.jsonl") for line in p.read_text().splitlines() if line]
