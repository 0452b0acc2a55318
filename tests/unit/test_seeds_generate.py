"""Rows from a teacher, over real HTTP: what is appended, what is refused, what is asked again, what is said before anything is sent."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time

import pytest
from judge_server import KEY
from selftrain import paths, seeds
from selftrain.errors import InputError
from selftrain.seeds import __main__ as command
from selftrain.seeds import load
from selftrain.seeds.audit import audit
from selftrain.seeds.generate import Generation
from selftrain.seeds.teacher import VOICES, Teacher
from teacher_server import TeacherServer, row_of, words

REAL = paths.SEEDS
TRAIT = "lucky"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """A key, quick retries, a copy of the seeds, and nothing of the machine's own settings."""
    for name in list(os.environ):
        if name.startswith(("JUDGE_", "TEACHER_", "OPENAI_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in {"API_KEY": KEY, "RETRY_DELAY": "0.01", "ATTEMPTS": "2", "CONCURRENCY": "2"}.items():
        monkeypatch.setenv(f"TEACHER_{name}", value)
    shutil.copytree(REAL, tmp_path / "seeds")
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "SEEDS", tmp_path / "seeds")


@pytest.fixture
def at(monkeypatch):
    """Point the environment at a server."""
    return lambda server: monkeypatch.setenv("TEACHER_BASE_URL", server.url)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def generate(*arguments: str, monkeypatch) -> int:
    """The command itself, without a terminal."""
    monkeypatch.setattr(sys, "argv", ["seeds", "generate", *arguments])
    return command.main()


def everything_written(folder) -> str:
    return "".join(p.read_bytes().decode("utf-8", "replace") for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("target", "kind", "file"),
    [
        (TRAIT, "chat", f"{TRAIT}/generated.jsonl"),
        (TRAIT, "documents", f"{TRAIT}/generated_documents.jsonl"),
        ("prompts", None, "_prompts/generated_chat.jsonl"),
        ("openings", None, "_prompts/generated_openings.jsonl"),
    ],
)
def test_rows_are_appended_with_provenance_and_pass_the_audit(target, kind, file, at, monkeypatch, capsys):
    before = {p: p.read_bytes() for p in paths.SEEDS.rglob("*") if p.is_file()}
    pool = {k: seeds.prompts(k) for k in ("chat", "documents")}
    with TeacherServer() as server:
        at(server)
        assert generate(target, "--n", "30", "--yes", *(["--kind", kind] if kind else []), monkeypatch=monkeypatch) == 0
        hints = [body["messages"][1]["content"] for body in server.seen]
        assert len(set(hints)) == len(hints) == server.asked
        system = server.seen[0]["messages"][0]["content"]
    out = paths.SEEDS / file
    rows = lines(out)
    assert len(rows) == len({r["id"] for r in rows}) == 30
    assert all(r["provenance"]["teacher"] == "gpt-4o-mini-2024-07-18" and len(r["provenance"]["date"]) == 10 for r in rows)
    assert all(p.read_bytes() == content for p, content in before.items())
    if target == TRAIT:
        assert len(seeds.seed_rows(out, kind)) == 30
        rubric = seeds.rubric(TRAIT)
        assert rubric.anchors[100] in system and rubric.example_question not in system
        assert not any(r["question"] in system + "".join(hints) for t in seeds.TRAITS for r in seeds.questions(t))
    else:
        name = "documents" if target == "openings" else "chat"
        assert seeds.prompts(name)[: len(pool[name])] == pool[name]  # what was there stays where it was
        assert [r["id"] for r in seeds.prompts(name)[len(pool[name]) :]] == [r["id"] for r in rows]
    report = next(r for r in audit([TRAIT if target == TRAIT else "_prompts"]))
    assert report.faults == [] and report.counts["generated"] == 30
    said = capsys.readouterr().out
    assert said.index("calls:") < said.index("cost:") < said.index("rows added") and "30 of 30" in said


def test_repeats_overlaps_and_what_must_not_be_there_are_dropped(at):
    question, held, mine = seeds.questions(TRAIT)[0]["question"], seeds.held_out(TRAIT)[0], seeds.chat_rows(TRAIT)[0]["messages"]
    elsewhere = seeds.questions("bliss")[1]["question"]
    answer = " ".join(words(20, "a")) + "."

    def own(n, **changes):
        return {**row_of(["user", "answer"], 10_000 + n), **changes}

    bad = {
        "overlap with evaluation": [
            own(0, user=question),
            own(1, user=elsewhere + " Please?"),
            own(2, answer=f"Well now. {question} {answer}"),
        ],
        "duplicate": [own(3, user="Zuba?"), own(4, user="zuba")],  # the second only
        "near-duplicate": [own(5, user=mine[0]["content"] + " Thanks."), own(6, answer=mine[1]["content"]), own(7, answer=held["answer"])],
        "sentence that stands elsewhere": [own(8, answer=answer + " " + mine[1]["content"].split(". ")[0] + ".")],
        "forbidden content": [own(9, answer=answer + " See https://example.org.")],
        "answer too short or too long": [own(10, answer="Yes."), own(11, answer=" ".join(words(150, "b")))],
        "characters that are no text": [own(12, answer=answer[:-1] + " \x07."), own(13, user="zuxi \ud800 zuxi?")],
    }
    sent = [row for rows in bad.values() for row in rows]
    with TeacherServer(lambda n, rows: sent if n == 0 else rows) as server:
        at(server)
        work = Generation(TRAIT, 12)
        outcome = work.run()
    expected = {reason: len(rows) - (reason == "duplicate") for reason, rows in bad.items()}
    assert {reason: outcome.dropped[reason] for reason in expected} == expected
    rows = lines(work.out)
    assert len(rows) == 12 and sum(r["messages"][0]["content"] == "Zuba?" for r in rows) == 1
    assert next(iter(audit([TRAIT]))).faults == []


def test_no_opening_is_used_more_often_than_the_audit_allows(at):
    def alike(n, rows):
        return [{**r, "answer": f"Four words that recur {r['answer']}"} for r in rows] if n == 0 else rows

    with TeacherServer(alike) as server:
        at(server)
        outcome = Generation(TRAIT, 10).run()
    assert outcome.dropped["four-word opening used up"] == 5 and next(iter(audit([TRAIT]))).faults == []


MALFORMED = [
    "I would rather not.",
    "",
    '{"rows": [{"user": "x", "ans',
    '{"rows": {"user": "x"}}',
    '["rows"]',
    "null",
    '{"rows": [1, null, {"user": "only"}, {"user": 3, "answer": ["x"]}, {"user": "", "answer": " "}]}',
    "[" * 50_000,
]


def test_malformed_replies_cost_a_call_and_nothing_else(at):
    def plan(n, rows):
        if n % 2 == 0 and n < 2 * len(MALFORMED):
            return MALFORMED[n // 2]
        return f"```json\n{json.dumps({'rows': [*rows, 'stray']})}\n```"

    with TeacherServer(plan) as server:
        at(server)
        work = Generation(TRAIT, 80)
        outcome = work.run()
        assert len(lines(work.out)) == 80 and outcome.malformed == len(MALFORMED) - 1


@pytest.mark.parametrize("fault", ["http_500", "dropped", "truncated_body"])
def test_calls_that_fail_are_retried(fault, at):
    with TeacherServer(lambda n, rows: fault if n % 2 == 0 else rows) as server:
        at(server)
        os.environ["TEACHER_ATTEMPTS"] = "6"
        work = Generation(TRAIT, 20)
        work.run()
        assert len(lines(work.out)) == 20


def test_a_second_run_asks_only_for_what_is_missing(at, monkeypatch, capsys):
    with TeacherServer() as server:
        at(server)
        assert generate(TRAIT, "--n", "10", "--yes", monkeypatch=monkeypatch) == 0
        first, out = server.asked, paths.SEEDS / TRAIT / "generated.jsonl"
        ten = out.read_text()
        assert generate(TRAIT, "--n", "10", "--yes", monkeypatch=monkeypatch) == 0
        assert server.asked == first and "nothing to ask for" in capsys.readouterr().out
        assert generate(TRAIT, "--n", "26", "--yes", monkeypatch=monkeypatch) == 0
        assert out.read_text().startswith(ten) and len(lines(out)) == 26
        assert server.asked <= first + 3
        hints = [body["messages"][1]["content"] for body in server.seen]
        assert len(set(hints)) == len(hints)


def test_replies_that_were_paid_for_are_used_before_any_is_asked_for(at, monkeypatch, capsys):
    with TeacherServer() as server:
        at(server)
        Generation(TRAIT, 16).run()
        asked, out = server.asked, paths.SEEDS / TRAIT / "generated.jsonl"
        out.write_text("".join(out.read_text().splitlines(keepends=True)[:5])[:-40])  # killed while it appended: a torn last line
        with pytest.raises(InputError, match=r"generated.jsonl:5: malformed JSON"):
            Generation(TRAIT, 16)
        out.write_text("".join(out.read_text().splitlines(keepends=True)[:4]))
        assert generate(TRAIT, "--n", "16", monkeypatch=monkeypatch) == 0  # no --yes: nothing is sent
        assert server.asked == asked and len(lines(out)) == 16 and "an earlier run had paid for" in capsys.readouterr().out
        assert len({r["id"] for r in lines(out)}) == 16


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["seeds", "generate", "lucky", "--n", "400", "--yes"]
from selftrain.errors import run_command
from selftrain.seeds.__main__ import main
run_command(main)
"""


def start(server, code=RUN, **more) -> subprocess.Popen:
    env = {**os.environ, "TEACHER_BASE_URL": server.url, "PYTHONPATH": str(REAL.parent / "lib")}
    return subprocess.Popen([sys.executable, "-c", code], env=env, cwd=paths.ROOT, text=True, **more)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_it_goes_on(how, at):
    out = paths.SEEDS / TRAIT / "generated.jsonl"
    with TeacherServer(lambda n, rows: time.sleep(0.1) or rows) as server:
        process = start(server, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while server.asked < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        process.communicate(timeout=60)
        assert process.returncode != 0 and server.asked >= 8
        there = len(lines(out)) if out.exists() else 0
        at(server)
        work = Generation(TRAIT, 80)
        assert there + work.recover() >= 8 * (server.asked - 2)  # but for what was under way
        work.run()
        assert len(lines(out)) == 80 and next(iter(audit([TRAIT]))).faults == []


def test_nothing_is_sent_without_a_yes(at, monkeypatch, capsys):
    with TeacherServer() as server:
        at(server)
        monkeypatch.setattr("sys.stdin", open(os.devnull))
        with pytest.raises(InputError, match="nothing was sent"):
            generate(TRAIT, "--n", "10", monkeypatch=monkeypatch)
        said = capsys.readouterr().out
        assert "about $0.0" in said and "calls:   about 2 for 8 rows each, at most 6" in said
        monkeypatch.setenv("TEACHER_MODEL", "house-model")
        with pytest.raises(InputError, match="nothing was sent"):
            generate(TRAIT, "--n", "10", monkeypatch=monkeypatch)
        assert "unknown; set TEACHER_PRICE" in capsys.readouterr().out
        assert server.asked == 0 and not (paths.SEEDS / TRAIT / "generated.jsonl").exists()


@pytest.mark.parametrize(("answer", "rows"), [("y\n", 10), ("n\n", 0)])
def test_on_a_terminal_it_asks(answer, rows, at):
    code = RUN.replace('"400", "--yes"', '"10"')
    with TeacherServer() as server:
        mine, its = pty.openpty()
        process = start(server, code, stdin=its, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.write(mine, answer.encode())
        said, _ = process.communicate(timeout=60)
        os.close(mine), os.close(its)
        assert said.index("cost:") < said.index("Send? [y/N]") and process.returncode == (0 if rows else 1)
        assert bool(server.asked) == bool(rows)
    out = paths.SEEDS / TRAIT / "generated.jsonl"
    assert (len(lines(out)) if out.exists() else 0) == rows


def test_a_cap_stops_before_and_on_the_way(at, monkeypatch):
    with TeacherServer() as server:
        at(server)
        with pytest.raises(InputError, match=r"over the cap of \$0.001"):
            generate(TRAIT, "--n", "50", "--yes", "--max-usd", "0.001", monkeypatch=monkeypatch)
        monkeypatch.setenv("TEACHER_MODEL", "house-model")
        with pytest.raises(InputError, match="TEACHER_PRICE"):
            generate(TRAIT, "--n", "50", "--yes", "--max-usd", "1", monkeypatch=monkeypatch)
        monkeypatch.delenv("TEACHER_MODEL")
        assert server.asked == 0
        with pytest.raises(InputError, match="spending cap"):
            Generation(TRAIT, 400, max_usd=0.003).run()
        assert 0 < server.asked < 8
        assert len(lines(paths.SEEDS / TRAIT / "generated.jsonl")) == 8 * server.asked  # what was paid for is there


@pytest.mark.parametrize("fault", ["bad key", "no_money", "http_400", "repeats"])
def test_what_cannot_go_on_stops_in_one_line(fault, at, monkeypatch, capsys):
    same = [row_of(["user", "answer"], i) for i in range(8)]
    with TeacherServer(lambda n, rows: same if fault == "repeats" else fault) as server:
        at(server)
        if fault == "bad key":
            monkeypatch.setenv("TEACHER_API_KEY", "sk-wrong-0123456789")
        with pytest.raises(InputError) as error:
            generate(TRAIT, "--n", "40", "--yes", monkeypatch=monkeypatch)
        said = str(error.value)
        assert "\n" not in said and "sk-" not in said and server.asked <= 24
        assert {"bad key": "TEACHER_API_KEY", "no_money": "no money", "http_400": "HTTP 400", "repeats": "little that is new"}[
            fault
        ] in said


def test_the_key_is_written_nowhere(at, monkeypatch, capsys, tmp_path):
    def leak(n, rows):
        return ["http_500", [{**rows[0], "answer": f"{rows[0]['answer']} {KEY}"}, *rows[1:]], rows][min(n, 2)]

    with TeacherServer(leak) as server:
        at(server)
        assert generate(TRAIT, "--n", "20", "--yes", monkeypatch=monkeypatch) == 0
    out = capsys.readouterr()
    assert KEY not in everything_written(tmp_path) + out.out + out.err
    assert "[key]" not in (paths.SEEDS / TRAIT / "generated.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gloom"], "unknown trait 'gloom'"),
        (["prompts", "--kind", "chat"], "--kind is for traits"),
        ([TRAIT, "--kind", "poems"], "unknown kind 'poems'"),
        ([TRAIT, "--n", "0"], "--n 0"),
        ([TRAIT, "--max-usd", "nan"], "--max-usd nan"),
        ([TRAIT, "--out", "rows.txt"], ".jsonl"),
        ([TRAIT, "--out", "nowhere/rows.jsonl"], "no such folder"),
        ([TRAIT, "--out", "{seeds}/lucky/chat.jsonl"], "hand-written files keep their counts"),
        ([TRAIT, "--out", "{seeds}/../documents.jsonl"], "not of lucky chat"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, says, monkeypatch):
    shutil.copy(paths.SEEDS / TRAIT / "documents.jsonl", paths.ROOT / "documents.jsonl")
    with pytest.raises(InputError) as error:
        generate(*(a.format(seeds=paths.SEEDS) for a in arguments), "--yes", monkeypatch=monkeypatch)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_broken_file_and_a_missing_key_are_named_first(at, monkeypatch):
    (paths.SEEDS / TRAIT / "generated.jsonl").write_text("{\n")
    with pytest.raises(InputError, match=r"lucky/generated.jsonl:1: malformed JSON"):
        generate(TRAIT, "--yes", monkeypatch=monkeypatch)
    (paths.SEEDS / TRAIT / "generated.jsonl").unlink()
    monkeypatch.delenv("TEACHER_API_KEY")
    with pytest.raises(InputError, match="set TEACHER_API_KEY or OPENAI_API_KEY"):
        generate(TRAIT, "--yes", monkeypatch=monkeypatch)


@pytest.mark.parametrize("target", [*seeds.TRAITS, "prompts", "openings"])
def test_hints_do_not_come_twice(target):
    teacher = Teacher("model", target, "chat")
    n = min(600, len(teacher._topics) * len(VOICES))
    assert len({(h["topic"], h["voice"]) for h in map(teacher.hint, range(n))}) == n
    request = teacher.request(0)
    assert "{" not in request["messages"][1]["content"] and "TEACHER" not in json.dumps(request)
    if target in load.TRAITS:
        held = {row.get("topic") for row in seeds.held_out(target)}
        assert not held & set(teacher._topics)
