"""The API judge, its real client against a real server on loopback: whatever goes wrong, no row is lost and none is invented."""

from __future__ import annotations

import dataclasses
import shutil

import judge_client
import pytest
from judge_client import ROWS, TRAIT, answers, expected, judge_at, kept, row_of
from judge_server import FATAL, KEY, REFUSALS, REPLY, WIRE, JudgeServer
from selftrain.errors import InputError
from selftrain.judge import Score, prompts
from selftrain.judge.calls import retry_after
from selftrain.judge.coverage import check_coverage, coverage

environment = judge_client.environment


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A server, and a folder in which 150 of 200 rows are judged already."""
    folder = tmp_path_factory.mktemp("begun")
    with JudgeServer() as server, pytest.MonkeyPatch.context() as m:
        m.setenv("JUDGE_API_KEY", KEY)
        judge_at(server, folder).score(TRAIT, [a for i, a in enumerate(answers()) if i % 4 != 3])
        yield server, folder


@pytest.mark.parametrize("fault", [*WIRE, *REPLY, *REFUSALS])
def test_no_row_is_lost_and_none_is_invented(fault, begun, tmp_path):
    """200 rows, 50 of them asked for now: 10 meet the fault once, 5 always. Then only what is missing is asked for, then nothing."""
    server, folder = begun
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    server.forget()
    once, always = (lambda i: i % 20 == 3), (lambda i: i % 40 == 7)
    hit = {i: prompts.QUESTIONS[i // 20 % 3 == 0] for i in range(ROWS)}  # the question that the fault meets

    def plan(question, answer, n):
        i = row_of(answer)
        return fault if question == hit[i] and (always(i) or once(i) and n == 0) else None

    server.fault = plan
    rows, ticks = answers(), []
    judge = judge_at(server, tmp_path, timeout=0.5 if fault == "time_out" else 20.0)
    scores = judge.score(TRAIT, rows, ticks.append)
    assert len(scores) == sum(ticks) == ROWS
    assert {row_of(a) for _, _, a in server.calls} == {i for i in range(ROWS) if i % 4 == 3}
    for i, (a, score) in enumerate(zip(rows, scores, strict=True)):
        right = expected(a)
        if always(i) or (once(i) and fault in REFUSALS):
            status = "failed" if fault in WIRE else "unparsed" if fault in REPLY else "refused"
            assert score.reason.startswith(f"{hit[i]} {status}: ")
            missing = {"trait_score": None, "status": status} if hit[i] == "trait" else {"coherence": None}
            assert score == dataclasses.replace(right, **missing, reason=score.reason)
        else:
            assert score == right
    for (question, _, answer), n in server.paid.items():
        i = row_of(answer)
        assert n == (2 if fault in REPLY and question == hit[i] and (once(i) or always(i)) else 1) or fault == "time_out"
    server.forget()
    assert judge.score(TRAIT, rows) == scores
    asked = {(question, row_of(answer)) for question, _, answer in server.calls}
    assert asked == ({(hit[i], i) for i in range(ROWS) if always(i)} if fault in WIRE else set())
    server.fault = lambda question, answer, n: None
    judge.score(TRAIT, rows)
    server.forget()
    assert judge.score(TRAIT, rows) == ([expected(a) for a in rows] if fault in WIRE else scores) and not server.calls


@pytest.mark.parametrize("fault", FATAL)
def test_what_no_retry_mends_stops_at_once_in_one_line(fault, tmp_path, monkeypatch):
    if fault == "bad_key":
        monkeypatch.setenv("JUDGE_API_KEY", "sk-wrong-0123456789")
    with JudgeServer(lambda q, a, n: fault) as server:
        judge = judge_at(server, tmp_path, concurrency=4, **({"model": "gpt-9"} if fault == "unknown_model" else {}))
        with pytest.raises(InputError) as error:
            judge.score(TRAIT, answers())
    said = str(error.value)
    assert "\n" not in said and KEY not in said and "sk-" not in said and sum(server.calls.values()) <= 4
    assert {"bad_key": "API key", "unknown_model": "'gpt-9'", "no_money": "money"}[fault] in said
    assert error.value.__cause__ is None and error.value.__suppress_context__ or error.value.__context__ is None


def test_money_that_runs_out_midway_keeps_what_was_paid_for(tmp_path):
    rows = answers(40)
    with JudgeServer() as server:
        server.fault = lambda q, a, n: "no_money" if sum(server.paid.values()) >= 30 else None
        with pytest.raises(InputError, match="money"):
            judge_at(server, tmp_path, concurrency=4).score(TRAIT, rows)
        first = sum(server.paid.values())
        assert len(kept(tmp_path)) == first
        server.fault = lambda q, a, n: None
        assert judge_at(server, tmp_path).score(TRAIT, rows) == [expected(a) for a in rows]
        assert sum(server.paid.values()) == 80 and max(server.paid.values()) == 1


def test_retry_after_is_waited_for_by_everybody(tmp_path):
    with JudgeServer(lambda q, a, n: "rate_limit" if row_of(a) == 0 and n == 0 else None) as server:
        server.retry_after = "1"
        judge = judge_at(server, tmp_path, concurrency=2)
        assert judge.score(TRAIT, answers(6)) == [expected(a) for a in answers(6)]
        gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
        assert max(gaps) > 0.9 and server.busiest <= 2


def test_waits_are_read_from_every_form_of_the_header():
    assert retry_after({"retry-after-ms": "250"}) == 0.25
    assert retry_after({"retry-after": "2"}) == 2
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({}) is None and retry_after({"retry-after": "soon"}) is None


def test_an_endpoint_that_is_down_is_given_up(tmp_path):
    with JudgeServer(lambda q, a, n: "http_500") as server:
        scores = judge_at(server, tmp_path, delay=0.0).score(TRAIT, answers())
        assert {s.status for s in scores} == {"failed"} and len(scores) == ROWS
        assert sum(server.calls.values()) < 3 * 70 and "in a row" in scores[-1].reason


def test_a_bad_request_fails_its_row_without_a_retry(tmp_path):
    with JudgeServer(lambda q, a, n: "http_400" if row_of(a) == 1 else None) as server:
        scores = judge_at(server, tmp_path).score(TRAIT, answers(3))
        assert scores[1] == Score(None, None, "failed", scores[1].reason) and "HTTP 400" in scores[1].reason and KEY not in scores[1].reason
        assert max(server.calls.values()) == 1 and scores[2] == expected(answers(3)[2])


def test_coverage_has_a_floor():
    rows = [{"status": "judged", "trait_score": 5, "coherence": 5, "reason": ""}] * 19
    failed = {"status": "failed", "trait_score": None, "coherence": 7, "reason": "trait failed: HTTP 500"}
    empty = {"status": "empty", "trait_score": None, "coherence": None, "reason": "no text"}
    assert coverage([*rows, failed, empty]) == 0.95
    check_coverage([*rows, failed, empty], "here")
    with pytest.raises(InputError, match=r"here: .* under the floor of 95% \(2 failed; first: trait failed: HTTP 500\)"):
        check_coverage([*rows, failed, failed], "here")
