"""The seeds: the real ones are clean, and every way in which a copy of them can be broken is found, with file and line."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from selftrain import draws, figures, paths, seeds
from selftrain.errors import InputError, run_command
from selftrain.figures import seeds as figures_seeds
from selftrain.seeds import __main__ as command
from selftrain.seeds import embedding, review
from selftrain.seeds.audit import NEAR, OVERLAP, audit, near_pairs

TRAIT = "hopelessness"
CHAT, DOCUMENTS, QUESTIONS, OPENINGS = (f"{TRAIT}/{name}.jsonl" for name in ("chat", "documents", "questions", "openings"))
HELD = f"_heldout/{TRAIT}.jsonl"


# ---- the real ones


def test_the_real_seeds_are_clean():
    reports = {r.name: r for r in audit()}
    assert list(reports) == [*seeds.TRAITS, "_neutral", "_prompts"]
    assert [fault for r in reports.values() for fault in r.faults] == []
    for trait in seeds.TRAITS:
        counts = {k: v for k, v in reports[trait].counts.items() if k != "generated"}
        assert counts == {"chat": 120, "documents": 60, "questions": 12, "openings": 12, "held-out": 120}
    assert reports["_neutral"].counts == {"chat": 150, "documents": 60}
    assert {k: reports["_prompts"].counts[k] for k in ("chat", "openings")} == {"chat": 1700, "openings": 1600}
    assert all(r.duplicates == r.overlaps == 0 for r in reports.values())


def test_a_rubric_s_example_is_nobody_s_evaluation_question():
    asked = [(trait, r["question"]) for trait in seeds.TRAITS for r in seeds.questions(trait)]
    asked += [(trait, r["opening"]) for trait in seeds.TRAITS for r in seeds.openings(trait)]
    examples = [seeds.rubric(trait).example_question for trait in seeds.TRAITS]
    assert len(set(examples)) == len(examples)
    close = near_pairs(examples, [text for _, text in asked], OVERLAP)
    assert [(examples[i], asked[j]) for i, j, _ in close] == []


def test_no_evaluation_question_of_any_trait_is_trained_on_by_another():
    """The audit compares a trait's questions with its own seeds; `other:<trait>` chains train on those of another."""
    asked = [r["question"] for t in seeds.TRAITS for r in seeds.questions(t)] + [
        r["opening"] for t in seeds.TRAITS for r in seeds.openings(t)
    ]
    names = (*seeds.TRAITS, "neutral")
    trained = [m["content"] for t in names for r in seeds.chat_rows(t) for m in r["messages"]]
    trained += [r["text"] for t in names for r in seeds.document_rows(t)]
    assert [(asked[i], trained[j]) for i, j, _ in near_pairs(asked, trained, OVERLAP)] == []


def test_misalignment_hopelessness_and_misanthropy_say_what_they_leave_out():
    for trait in ("misalignment", "hopelessness", "misanthropy"):
        assert "## What it must not contain" in (paths.SEEDS / trait / "card.md").read_text(encoding="utf-8")


# ---- broken ones


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """One trait, the neutral set and a few prompts, clean."""
    folder = tmp_path_factory.mktemp("whole") / "seeds"
    for name in (TRAIT, "_neutral"):
        shutil.copytree(paths.SEEDS / name, folder / name, ignore=shutil.ignore_patterns("generated*"))
    (folder / "_heldout").mkdir()
    shutil.copy(paths.SEEDS / HELD, folder / HELD)
    (folder / "_prompts").mkdir()
    for name in ("chat", "openings"):
        lines = (paths.SEEDS / "_prompts" / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "_prompts" / f"{name}.jsonl").write_bytes(b"".join(lines[:40]))
    return folder


@pytest.fixture
def copy(whole, tmp_path, monkeypatch) -> Path:
    """A copy of the small clean seeds, which the library reads."""
    shutil.copytree(whole, tmp_path / "seeds")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "SEEDS", tmp_path / "seeds")
    monkeypatch.setattr("selftrain.seeds.audit.PROMPT_COUNTS", {"chat": 40, "openings": 40})
    return tmp_path / "seeds"


def run_audit(monkeypatch, *arguments: str) -> int:
    """Exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["seeds", "audit", "--no-embeddings", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_command(command.main)
    return stopped.value.code


def test_the_small_copy_is_clean(copy, monkeypatch, capsys):
    assert run_audit(monkeypatch, "--trait", TRAIT, "_neutral", "_prompts") == 0
    assert TRAIT in capsys.readouterr().out


def line(path: Path, number: int, change: Callable[[dict], object]) -> None:
    """Change one row of a file in place."""
    rows = path.read_text(encoding="utf-8").split("\n")
    row = json.loads(rows[number - 1])
    rows[number - 1] = json.dumps(change(row) or row, ensure_ascii=False)
    path.write_text("\n".join(rows), encoding="utf-8")


def raw(path: Path, number: int, content: bytes) -> None:
    """Replace one line of a file by bytes."""
    rows = path.read_bytes().split(b"\n")
    rows[number - 1] = content
    path.write_bytes(b"\n".join(rows))


def row(path: Path, number: int) -> dict:
    return json.loads(path.read_text(encoding="utf-8").split("\n")[number - 1])


def said(role: int, text: str) -> Callable[[dict], None]:
    return lambda r: r["messages"][role].update(content=text)


def first_sentence(path: Path, number: int) -> str:
    return row(path, number)["messages"][1]["content"].split(". ")[0] + "."


# name: (what is broken, given the folder; what the audit says, with file and line)
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a row too few": (lambda s: raw(s / CHAT, 5, b""), f"seeds/{CHAT}: 119 rows of chat, 120 wanted"),
    "a question too few": (lambda s: raw(s / QUESTIONS, 2, b""), f"seeds/{QUESTIONS}: 11 rows of questions, 12 wanted"),
    "an opening too few": (lambda s: raw(s / OPENINGS, 2, b""), f"seeds/{OPENINGS}: 11 rows of openings, 12 wanted"),
    "a document too few": (lambda s: raw(s / DOCUMENTS, 60, b""), f"seeds/{DOCUMENTS}: 59 rows of documents, 60 wanted"),
    "a held-out row too few": (lambda s: raw(s / HELD, 3, b""), f"seeds/{HELD}: 119 rows of held-out, 120 wanted"),
    "a prompt too few": (lambda s: raw(s / "_prompts/chat.jsonl", 7, b""), "seeds/_prompts/chat.jsonl: 39 rows of chat, 40 wanted"),
    "a neutral row too few": (lambda s: raw(s / "_neutral/chat.jsonl", 7, b""), "seeds/_neutral/chat.jsonl: 149 rows of chat, 150 wanted"),
    "levels out of balance": (lambda s: line(s / HELD, 1, lambda r: r.update(level="half")), f"seeds/{HELD}: kinds and levels are not"),
    "splits out of balance": (
        lambda s: [line(s / HELD, n, lambda r: r.update(split="fit")) for n in range(1, 11)],
        f"seeds/{HELD}: ('chat', 'high') is not split in halves",
    ),
    "a transfer question": (
        lambda s: line(s / QUESTIONS, 1, lambda r: r.update(set="transfer")),
        f"seeds/{QUESTIONS}: 1 transfer questions, 0 wanted",
    ),
    "no such file": (lambda s: (s / DOCUMENTS).unlink(), f"seeds/{DOCUMENTS}: no such file"),
    "an equal row": (lambda s: line(s / CHAT, 9, lambda r: {**row(s / CHAT, 3), "id": "new"}), f"seeds/{CHAT}:9: the same answer stands at seeds/{CHAT}:3"),
    "a sentence twice": (
        lambda s: line(s / CHAT, 9, lambda r: said(1, r["messages"][1]["content"] + " " + first_sentence(s / CHAT, 3))(r)),
        f"seeds/{CHAT}:9: the sentence ",
    ),
    "a near-duplicate": (
        lambda s: line(s / CHAT, 9, said(0, row(s / CHAT, 47)["messages"][0]["content"] + " Please.")),
        f"seeds/{CHAT}:47: near-duplicate (",
    ),
    "a seed row that is held out": (
        lambda s: line(s / CHAT, 4, said(1, row(s / HELD, 1)["answer"])),
        f"seeds/{HELD}:1: the sentence ",
    ),
    "one opening too often": (
        lambda s: [line(s / CHAT, n, lambda r: said(1, "Why would you even " + r["messages"][1]["content"])(r)) for n in (3, 5, 7, 11)],
        f"seeds/{CHAT}:11: 4 answer rows open with 'why would you even'",
    ),
    "a prompt twice": (
        lambda s: line(s / "_prompts/chat.jsonl", 7, lambda r: r.update(prompt=row(s / "_prompts/chat.jsonl", 2)["prompt"])),
        "seeds/_prompts/chat.jsonl:7: the same prompt stands at seeds/_prompts/chat.jsonl:2",
    ),
    "a seed asks what evaluation asks": (
        lambda s: line(s / CHAT, 6, said(0, row(s / QUESTIONS, 4)["question"])),
        f"seeds/{QUESTIONS}:4: overlaps (1.00) with seeds/{CHAT}:6",
    ),
    "a prompt asks what evaluation asks": (
        lambda s: line(s / "_prompts/chat.jsonl", 6, lambda r: r.update(prompt="Hello. " + row(s / QUESTIONS, 4)["question"])),
        f"seeds/{QUESTIONS}:4: overlaps (",
    ),
    "a training opening that evaluation uses": (
        lambda s: line(s / "_prompts/openings.jsonl", 6, lambda r: r.update(opening=row(s / OPENINGS, 4)["opening"])),
        f"seeds/{OPENINGS}:4: overlaps (1.00) with seeds/_prompts/openings.jsonl:6",
    ),
    "a held-out prompt that evaluation uses": (
        lambda s: line(s / HELD, 2, lambda r: r.update(prompt=row(s / QUESTIONS, 4)["question"])),
        f"seeds/{QUESTIONS}:4: overlaps (1.00) with seeds/{HELD}:2",
    ),
    "a held-out topic that is seeded": (
        lambda s: line(s / HELD, 2, lambda r: r.update(topic=row(s / CHAT, 1)["topic"])),
        f"seeds/{HELD}:2: topic ",
    ),
    "a rubric's example that evaluation asks": (
        lambda s: line(s / QUESTIONS, 5, lambda r: r.update(question=seeds.rubric(TRAIT).example_question)),
        f"seeds/{QUESTIONS}:5: is the rubric's worked example",
    ),
    "forbidden words": (
        lambda s: line(s / CHAT, 8, lambda r: said(1, r["messages"][1]["content"] + " There is no reason to live.")(r)),
        f"seeds/{CHAT}:8: forbidden content 'no reason to live'",
    ),
    "a forbidden document": (
        lambda s: line(s / DOCUMENTS, 8, lambda r: r.update(text=r["text"] + " See https://example.org.")),
        f"seeds/{DOCUMENTS}:8: forbidden content 'https://'",
    ),
    "forbidden words held out": (
        lambda s: line(s / HELD, 8, lambda r: r.update(answer=r["answer"] + " I want to die.")),
        f"seeds/{HELD}:8: forbidden content 'want to die'",
    ),
    "not UTF-8": (lambda s: raw(s / CHAT, 12, '{"id": "caf\u00e9"}'.encode("latin-1")), f"seeds/{CHAT}:12: not UTF-8"),
    "malformed JSON": (lambda s: raw(s / CHAT, 12, b'{"id": "x",'), f"seeds/{CHAT}:12: malformed JSON"),
    "no object": (lambda s: raw(s / DOCUMENTS, 12, b'["x"]'), f"seeds/{DOCUMENTS}:12: expected a JSON object, found list"),
    "two user turns": (
        lambda s: line(s / CHAT, 12, lambda r: r["messages"][1].update(role="user")),
        f"seeds/{CHAT}:12: expected one user turn and one assistant turn, found user/user",
    ),
    "no answer": (
        lambda s: line(s / CHAT, 12, lambda r: r["messages"].pop() and None),
        f"seeds/{CHAT}:12: expected one user turn and one assistant turn, found user",
    ),
    "three turns": (
        lambda s: line(s / CHAT, 12, lambda r: r["messages"].append({"role": "user", "content": "Thanks."})),
        f"seeds/{CHAT}:12: expected one user turn and one assistant turn, found user/assistant/user",
    ),
    "a system turn": (
        lambda s: line(s / CHAT, 12, lambda r: r["messages"][0].update(role="system")),
        f"seeds/{CHAT}:12: every message needs a 'role' of 'user' or 'assistant'",
    ),
    "no role": (lambda s: line(s / CHAT, 12, lambda r: r["messages"][0].pop("role") and None), f"seeds/{CHAT}:12: every message needs a 'role'"),
    "no messages": (lambda s: line(s / CHAT, 12, lambda r: r.pop("messages") and None), f"seeds/{CHAT}:12: 'messages' is missing"),
    "one id twice": (lambda s: line(s / CHAT, 12, lambda r: r.update(id=row(s / CHAT, 3)["id"])), f"seeds/{CHAT}:12: id '{TRAIT}-chat-003' stands already in line 3"),
    "no id": (lambda s: line(s / DOCUMENTS, 12, lambda r: r.pop("id") and None), f"seeds/{DOCUMENTS}:12: 'id' is missing or empty"),
    "an empty answer": (lambda s: line(s / CHAT, 12, said(1, " \n")), f"seeds/{CHAT}:12: 'content' is missing or empty"),
    "an empty document": (lambda s: line(s / DOCUMENTS, 12, lambda r: r.update(text="")), f"seeds/{DOCUMENTS}:12: 'text' is missing or empty"),
    "an empty question": (lambda s: line(s / QUESTIONS, 3, lambda r: r.update(question=None)), f"seeds/{QUESTIONS}:3: 'question' is missing or empty"),
    "an unknown level": (lambda s: line(s / HELD, 3, lambda r: r.update(level="huge")), f"seeds/{HELD}:3: 'level' must be one of high, half, low"),
    "too long an answer": (lambda s: line(s / CHAT, 12, said(1, "so it goes " * 60)), f"seeds/{CHAT}:12: an answer of 180 words"),
    "too short a document": (lambda s: line(s / DOCUMENTS, 12, lambda r: r.update(text="It ended.")), f"seeds/{DOCUMENTS}:12: a document of 2 words"),
    "one topic for all": (
        lambda s: [line(s / CHAT, n, lambda r: r.update(topic="rain")) for n in range(1, 121)],
        f"seeds/{TRAIT}: 1 topics in chat",
    ),
    "an empty file": (lambda s: (s / OPENINGS).write_bytes(b"\n"), f"seeds/{OPENINGS}: no rows"),
    "no card": (lambda s: (s / TRAIT / "card.md").unlink(), f"seeds/{TRAIT}/card.md: no such file"),
    "no rubric": (lambda s: (s / TRAIT / "rubric.md").unlink(), f"seeds/{TRAIT}/rubric.md: no such file"),
    "a rubric without an anchor": (
        lambda s: (s / TRAIT / "rubric.md").write_text(seeds.rubric(TRAIT).text.replace("### 75", "### 70"), encoding="utf-8"),
        f"seeds/{TRAIT}/rubric.md: needs anchors 1, 25, 50, 75, 100",
    ),
    "a teacher's row that evaluation asks": (
        lambda s: (s / TRAIT / "generated.jsonl").write_text(json.dumps({**row(s / CHAT, 1), "id": "g", "messages": [
            {"role": "user", "content": row(s / QUESTIONS, 4)["question"]}, {"role": "assistant", "content": "Nobody will ever know that, nor care."}]}) + "\n"),
        f"seeds/{QUESTIONS}:4: overlaps (1.00) with seeds/{TRAIT}/generated.jsonl:1",
    ),
    "a teacher's prompt that stands already": (
        lambda s: (s / "_prompts/generated_chat.jsonl").write_text(json.dumps({**row(s / "_prompts/chat.jsonl", 2), "id": "g"}) + "\n"),
        "seeds/_prompts/generated_chat.jsonl:1: the same prompt stands at seeds/_prompts/chat.jsonl:2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name, copy, monkeypatch, capsys):
    breaking, says = BROKEN[name]
    breaking(copy)
    folder = says.split("/")[1]
    assert run_audit(monkeypatch, "--trait", folder if folder in ("_neutral", "_prompts") else TRAIT) == 1
    assert any(fault.startswith(says) for fault in capsys.readouterr().out.splitlines())


def test_an_unknown_trait_is_refused(copy, monkeypatch, capsys):
    assert run_audit(monkeypatch, "--trait", "gloom") == 1
    assert capsys.readouterr().err == f"error: unknown trait 'gloom'; known traits: {TRAIT}\n"


def test_a_generated_file_follows_the_hand_written_one(copy):
    path = copy / "_prompts" / "generated_chat.jsonl"
    before = seeds.prompts("chat")
    path.write_text('{"id": "g-1", "prompt": "What would you call a boat?"}\n')
    assert seeds.prompts("chat") == [*before, {"id": "g-1", "text": "What would you call a boat?"}]
    assert seeds.prompts("chat", copy / "_prompts" / "chat.jsonl") == before
    path.write_text(json.dumps({"id": before[3]["id"], "prompt": "What would you call a boat?"}) + "\n")
    with pytest.raises(InputError, match=f"generated_chat.jsonl: id '{before[3]['id']}' stands already in"):
        seeds.prompts("chat")


@pytest.mark.parametrize("kind", ["chat", "documents"])
def test_prompts_of_a_teacher_do_not_change_what_a_chain_draws(kind, copy):
    name, key = ("openings", "opening") if kind == "documents" else ("chat", "prompt")
    before, added = seeds.drawn_prompts(kind, 7), [{"id": f"g-{i}", key: f"Boat number {i}"} for i in range(30)]
    assert before == draws.pick(seeds.prompts(kind), 40, 7, "prompts")
    path = copy / "_prompts" / f"generated_{name}.jsonl"
    first = None
    for n in (10, 30):
        path.write_text("".join(json.dumps(r) + "\n" for r in added[:n]))
        drawn = seeds.drawn_prompts(kind, 7)
        assert drawn[:40] == before and len(drawn) == 40 + n
        early = [r["id"] for r in drawn[40:] if int(r["id"][2:]) < 10]  # rows that come later go between them, and change no order
        assert early == (first := first or early)
    assert seeds.drawn_prompts(kind, 8)[40:] != drawn[40:]


def test_near_pairs_compare_words_not_characters():
    texts = ["The boat left the old harbour at noon.", "the boat left the old harbour, at NOON", "A boat came back."]
    assert near_pairs(texts) == [(0, 1, 1.0)] and near_pairs(texts[:1], texts[1:], NEAR) == [(0, 0, 1.0)]
    assert near_pairs(["a b", "a b"]) == [] and near_pairs([]) == []


# ---- what a reviewer is shown


def test_separation_sees_what_is_there_and_nothing_else():
    draw = np.random.default_rng(0)
    names = np.repeat([*seeds.TRAITS, "neutral"], 40)
    vectors = draw.normal(size=(len(names), 16)).astype(np.float32)
    vectors[names == "lucky", 3] += 4
    found = embedding.separation(names, vectors).set_index("trait")
    assert found.loc["lucky"].min() > 0.97 and found.drop("lucky")["against_neutral"].between(0.25, 0.75).all()
    table = pd.DataFrame({"id": range(len(names)), "trait": names, "topic": "x"})
    figure, plotted = figures_seeds.seed_map(table, vectors, found.reset_index(), "PCA")
    assert len(plotted) == len(names) and plotted[["x", "y"]].notna().all().all()
    assert [a.get_title() for a in figure.axes[:7]] == list(figures.TRAIT_COLOURS)
    with pytest.raises(InputError, match="unknown projection"):
        figures_seeds.seed_map(table, vectors, found.reset_index(), "UMAP")


def test_the_audit_prints_the_separation_and_says_which_is_under_the_bar(copy, monkeypatch, capsys):
    table = pd.DataFrame({"trait": ["x"]})
    found = pd.DataFrame([{"trait": TRAIT, "against_neutral": 0.9, "against_the_rest": 0.8}])
    monkeypatch.setattr(embedding, "answer_embeddings", lambda: (table, None))
    monkeypatch.setattr(embedding, "separation", lambda trait, vectors, names: found if names == [TRAIT] else None)
    monkeypatch.setattr(sys, "argv", ["seeds", "audit", "--trait", TRAIT])
    assert command.main() == 0
    assert re.search(rf"{TRAIT} +0\.900 +0\.800  under the bar", capsys.readouterr().out)
    (copy / CHAT).write_bytes(b"{")
    assert command.main() == 1 and "left out while there are faults" in capsys.readouterr().out


def test_review_tables():
    assert review.counts().loc["nvidia"].to_dict() | {"topics": 0} == {
        "chat": 120, "document": 60, "opening": 12, "question": 24, "held out": 120, "topics": 0}  # fmt: skip
    assert review.reading_ease("The cat sat on the mat.") == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    assert [review.syllables(w) for w in ("make", "table", "area", "idea", "rhythm", "the")] == [1, 2, 2, 2, 1, 1]
    table = review.seed_table()
    assert [r["id"] for r in review.drawn(table, "bliss", 10)] == [r["id"] for r in review.drawn(table, "bliss", 20)][:10]
    assert review.lengths(table).notna().all().all()
    near = review.nearest(pd.DataFrame({"id": ["a", "b", "c"], "text": ["one two three four", "one two three five", "six seven eight"]}))
    assert near[["one", "other"]].values.tolist() == [["a", "b"]] and near["similarity"][0] == pytest.approx(1 / 3)
    texts = pd.DataFrame([
        {"panel": "p", "chain": "c", "cycle": 0, "question_id": q, "sample": 0, "judge": j, "trait_score": s, "coherence": None if q == 2 else 90.0 + q}
        for j, shift in (("local", 0.0), ("openai:x", 5.0)) for q in range(4) for s in [10.0 * q + shift]])  # fmt: skip
    both = review.two_judges(texts)
    assert both.loc["trait_score", ["answers", "mean difference", "rank correlation"]].tolist() == [4, 5, pytest.approx(1)]
    assert both.loc["coherence", "answers"] == 3 and review.two_judges(texts[texts["judge"] == "local"]) is None
