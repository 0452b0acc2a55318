"""Replies of the API judge are kept: paid for once, through a second run, an interruption, and several processes or threads at once."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import judge_client
import judge_server
import pytest
from judge_client import TRAIT, answers, expected, judge_at, kept, row_of
from judge_server import JudgeServer
from selftrain import paths
from selftrain.errors import InputError
from selftrain.judge import Answer, prompts, settings
from selftrain.judge.api import ApiJudge
from selftrain.judge.cache import Replies

environment = judge_client.environment


def test_a_second_run_and_another_trait_ask_only_for_what_is_new(tmp_path):
    rows = answers(20) + [Answer("e", "Q?", " \n")] + answers(3)  # an empty one, and three texts a second time
    with JudgeServer() as server:
        scores = judge_at(server, tmp_path).score(TRAIT, rows)
        assert scores[20].status == "empty" and scores[21:] == scores[:3]
        assert sum(server.calls.values()) == 40
        server.forget()
        assert ApiJudge(settings=dataclasses.replace(settings.read(), base_url=server.url), study=tmp_path).score(TRAIT, rows) == scores
        assert not server.calls
        judge_at(server, tmp_path).score("bliss", rows)
        assert {q for q, *_ in server.calls} == {"trait"} and sum(server.calls.values()) == 20
        assert {row["trait"] for row in kept(tmp_path)} == {TRAIT, "bliss", None}


def test_kept_replies_need_no_key_and_a_committed_file_counts(tmp_path, monkeypatch):
    rows = answers(5)
    with JudgeServer() as server:
        scores = judge_at(server, tmp_path / "mine").score(TRAIT, rows)
        committed = tmp_path / "theirs" / "judge_cache" / "committed.jsonl"
        committed.parent.mkdir(parents=True)
        own = next((tmp_path / "mine" / "judge_cache").glob("*.jsonl"))
        committed.write_bytes(own.read_bytes())
        monkeypatch.delenv("JUDGE_API_KEY")
        server.forget()
        assert judge_at(server, tmp_path / "theirs").score(TRAIT, rows) == scores and not server.calls
        assert [p.name for p in committed.parent.iterdir()] == ["committed.jsonl"]
        with pytest.raises(InputError, match="no API key"):
            judge_at(server, tmp_path / "theirs").score(TRAIT, answers(6))


def test_a_line_that_was_cut_off_costs_one_call(tmp_path):
    rows = answers(6)
    with JudgeServer() as server:
        scores = judge_at(server, tmp_path).score(TRAIT, rows)
        path = next((tmp_path / "judge_cache").glob("*.jsonl"))
        cut = tmp_path / "copy" / "judge_cache" / path.name
        cut.parent.mkdir(parents=True)
        cut.write_bytes(path.read_bytes()[:-25])
        server.forget()
        for calls in (1, 0):
            assert judge_at(server, tmp_path / "copy").score(TRAIT, rows) == scores
            assert sum(server.calls.values()) == calls
            server.forget()
        assert Replies(cut.parent, judge_server.MODEL).tokens(judge_server.MODEL) == (0, 0)  # nothing is read before it is asked for


def test_a_change_of_anything_that_decides_a_score_changes_hash_and_key(monkeypatch):
    found = settings.read()
    judge, a = ApiJudge(settings=found), answers(1)[0]
    others = [
        ApiJudge(settings=dataclasses.replace(found, **c)) for c in ({"model": "gpt-4.1-mini-2025-04-14"}, {"base_url": "http://x/v1"})
    ]
    others.append(ApiJudge(settings=found, repeat=1))
    assert len({j.hash(TRAIT) for j in [judge, *others]}) == 4 and judge.hash(TRAIT) != judge.hash("bliss")
    assert len({j.keys(TRAIT)(q, a) for j in [judge, *others] for q in prompts.QUESTIONS}) == 8
    assert (
        judge.keys(TRAIT)("trait", a)
        != judge.keys("bliss")("trait", a)
        != judge.keys("bliss")("trait", dataclasses.replace(a, kind="documents"))
    )
    before = judge.hash(TRAIT), judge.keys(TRAIT)("trait", a)
    monkeypatch.setattr("selftrain.judge.api.PARSER", 99)  # a parser fix: scores anew, from the same replies
    assert judge.hash(TRAIT) != before[0] and judge.keys(TRAIT)("trait", a) == before[1]
    monkeypatch.setattr(prompts, "COHERENCE", prompts.COHERENCE + " ")
    assert judge.keys(TRAIT)("trait", a) == before[1] and judge.name == f"openai:{settings.MODEL}"


RUN = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background lets them ignore it
from selftrain.judge import Answer
from selftrain.judge.api import ApiJudge
n = int(sys.argv[2])
rows = [Answer(f"q{i % 12}/{i}", f"Question {i % 12}?", f"row-{i} says something of its own.") for i in range(n)]
scores = ApiJudge().for_study(sys.argv[1]).score("lucky", rows)
print([(s.trait_score, s.coherence, s.status) for s in scores])
"""


def start(server: JudgeServer, folder, n: int, concurrency: int = 8) -> subprocess.Popen:
    env = {**os.environ, "JUDGE_BASE_URL": server.url, "JUDGE_CONCURRENCY": str(concurrency), "PYTHONPATH": str(paths.ROOT / "lib")}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), str(n)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_two_halves_make_one_run(how, tmp_path):
    rows = answers(100)
    with JudgeServer(pause=0.01) as server:
        process = start(server, tmp_path, 100)
        deadline = time.monotonic() + 30
        while sum(server.paid.values()) < 80 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        process.communicate(timeout=30)
        time.sleep(0.1)
        first = sum(server.paid.values())
        assert process.returncode != 0 and 80 <= first < 200
        assert first - len(kept(tmp_path)) <= (8 if how == signal.SIGKILL else 0)  # at most what was under way; an interrupt waits for it
        server.pause = 0
        assert judge_at(server, tmp_path).score(TRAIT, rows) == [expected(a) for a in rows]
        assert len({row["key"] for row in kept(tmp_path)}) == len(kept(tmp_path)) == 200
        assert sum(server.paid.values()) <= 200 + (8 if how == signal.SIGKILL else 0)


def test_processes_at_once_pay_for_each_reply_once(tmp_path):
    rows = answers(60)
    right = str([(s.trait_score, s.coherence, s.status) for s in map(expected, rows)])
    with JudgeServer(lambda q, a, n: "content_not_json" if row_of(a) % 10 == 0 and n == 0 else None, pause=0.005) as server:
        processes = [start(server, tmp_path, 60) for _ in range(2)]
        outputs = [p.communicate(timeout=60) for p in processes]
        assert [out.strip() for out, _ in outputs] == [right] * 2, outputs[0][1]
        assert sum(server.paid.values()) == 120 + 12 and len(kept(tmp_path)) == 132


def test_threads_and_a_running_loop_are_no_obstacle(tmp_path):
    rows = answers(30)
    with JudgeServer(pause=0.002) as server:
        judge = judge_at(server, tmp_path)
        found = []

        async def cell():
            found.append(judge.score(TRAIT, rows))

        threads = [threading.Thread(target=lambda: asyncio.run(cell())) for _ in range(2)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert found == [[expected(a) for a in rows]] * 2 and sum(server.paid.values()) == 60
