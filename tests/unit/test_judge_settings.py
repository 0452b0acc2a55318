"""Settings of the API judge: keys that stay secret, addresses, and spending caps."""

from __future__ import annotations

import contextlib
import io
import logging

import judge_client
import pytest
from judge_client import TRAIT, answers, judge_at, kept
from judge_server import KEY, JudgeServer
from selftrain.errors import InputError
from selftrain.judge import prices, settings
from selftrain.judge.api import ApiJudge
from selftrain.judge.cache import Replies

environment = judge_client.environment


def test_the_key_reaches_no_file_no_log_and_no_repr(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("OPENAI_LOG", "debug")
    caplog.set_level(logging.DEBUG)
    out = io.StringIO()
    faults = iter(["echo_key", "http_500", "http_400", "rate_limit", "echo_key"] + ["echo_key"] * 100)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), JudgeServer(lambda q, a, n: next(faults)) as server:
        judge = judge_at(server, tmp_path)
        scores = judge.score(TRAIT, answers(8))
    assert sum(s.status == "judged" for s in scores) >= 7
    logs = "\n".join(f"{r.getMessage()} {r.args}" for r in caplog.records)
    files = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    for text in (logs, out.getvalue(), files, repr(judge), repr(vars(judge)), repr(scores), repr(vars(judge.replies))):
        assert KEY not in text
    assert "[key]" in files


def test_settings_come_from_the_environment(monkeypatch):
    assert settings.read() == settings.Settings(attempts=3, delay=0.01)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://a:1/v1/")
    assert settings.read().base_url == "http://a:1/v1"
    for name, value in {
        "JUDGE_BASE_URL": "http://b/v1",
        "JUDGE_MODEL": "m",
        "JUDGE_CONCURRENCY": "3",
        "JUDGE_TIMEOUT": "2",
        "JUDGE_MAX_USD": "1.5",
    }.items():
        monkeypatch.setenv(name, value)
    found = settings.read()
    assert (found.base_url, found.model, found.concurrency, found.timeout, found.max_usd) == ("http://b/v1", "m", 3, 2, 1.5)
    assert settings.read("other").model == "other"
    monkeypatch.delenv("JUDGE_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-2")
    assert settings.api_key() == "sk-2"
    for name, value, said in [
        ("JUDGE_BASE_URL", "localhost:8000", "not an http"),
        ("JUDGE_BASE_URL", "http://u:secret@h/v1", "carries a user"),
        ("JUDGE_CONCURRENCY", "many", "JUDGE_CONCURRENCY"),
        ("JUDGE_MAX_USD", "nan", "JUDGE_MAX_USD"),
    ]:
        with monkeypatch.context() as m:
            m.setenv(name, value)
            with pytest.raises(InputError, match=said) as error:
                settings.read()
            assert "secret" not in str(error.value)
    monkeypatch.setenv("JUDGE_API_KEY", "sk-with\nbreak")
    with pytest.raises(InputError) as error:
        settings.api_key()
    assert "sk-" not in str(error.value)


def test_a_spending_cap_holds_for_the_study(tmp_path, monkeypatch):
    rows = answers(60)
    monkeypatch.setenv("JUDGE_PRICE", "1000,0")  # a dollar for a thousand tokens
    with JudgeServer() as server:
        for _ in range(2):
            with pytest.raises(InputError, match=r"spending cap of \$40 is reached"):
                judge_at(server, tmp_path, max_usd=40.0, concurrency=4).score(TRAIT, rows)
        spent = prices.cost(tokens_in(tmp_path), prices.price(settings.MODEL))
        assert 30 < spent <= 40 and 0 < sum(server.paid.values()) == len(kept(tmp_path)) < 120
        judge_at(server, tmp_path, max_usd=4000.0).score(TRAIT, rows)
        assert sum(server.paid.values()) == 120
        monkeypatch.delenv("JUDGE_PRICE")
        with pytest.raises(InputError, match="JUDGE_PRICE"):
            judge_at(server, tmp_path, model="mystery", max_usd=1.0).score(TRAIT, rows)


def tokens_in(folder) -> tuple[int, int]:
    found = Replies(folder / "judge_cache", settings.MODEL)
    found.refresh()
    return found.tokens(settings.MODEL)


def test_a_study_has_the_lower_of_two_caps(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_MAX_USD", "3")
    assert [ApiJudge().for_study(tmp_path, cap).settings.max_usd for cap in (None, 2.0, 5.0)] == [3, 2, 3]
    ApiJudge("gpt-4o").ready()
    with pytest.raises(InputError, match="needs a price"):
        ApiJudge("mystery").ready()
    monkeypatch.delenv("JUDGE_API_KEY")
    with pytest.raises(InputError, match="no API key"):
        ApiJudge().ready()
