"""The audit of seeds/: counts, duplicates, overlaps and forbidden content, each fault named by file and line."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from selftrain import jsonl, paths
from selftrain.errors import InputError
from selftrain.seeds import load
from selftrain.seeds.forbidden import forbidden_in

COUNTS = {"chat": 120, "documents": 60, "questions": 12, "openings": 12, "held-out": 120}
TRANSFER_QUESTIONS = {"nvidia": 12}
NEUTRAL_COUNTS = {"chat": 150, "documents": 60}
PROMPT_COUNTS = {"chat": 1700, "openings": 1600}
HELD_OUT = {
    ("chat", "high"): 40,
    ("chat", "half"): 20,
    ("chat", "low"): 20,
    ("document", "high"): 20,
    ("document", "half"): 10,
    ("document", "low"): 10,
}
NEAR = 0.5  # Jaccard similarity of word 3-grams above which two rows are near-duplicates
OVERLAP = 0.3  # the same, between an evaluation question and anything that is trained on
MIN_TOPICS = 25
ANSWER_WORDS, DOCUMENT_WORDS = (3, 110), (75, 215)  # what is let pass; 5 to 90 and 80 to 200 are asked for
MOST_OPENINGS, MOST_PROMPT_OPENINGS = 3, 12  # rows of one role that may open with the same four words


@dataclass
class Text:
    """One text with the place it stands at and the role it plays."""

    text: str
    where: str
    role: str


@dataclass
class Report:
    """What the audit found of one folder: counts by kind, and faults as lines of text."""

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    overlaps: int = 0
    faults: list[str] = field(default_factory=list)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def sentences(text: str) -> list[str]:
    """Sentences of a text, normalised to their words; those of fewer than four words are left out."""
    parts = (" ".join(words(s)) for s in re.split(r"(?<=[.!?])\s+|\n+", text))
    return [s for s in parts if s.count(" ") >= 3]


def near_pairs(left: list[str], right: list[str] | None = None, above: float = NEAR) -> list[tuple[int, int, float]]:
    """Pairs (i, j, Jaccard similarity of word 3-grams) over a threshold; within `left`, or between `left` and `right`."""
    texts = left + (right or [])
    if len(texts) < 2 or not any(len(words(t)) >= 3 for t in texts):
        return []
    grams = CountVectorizer(
        analyzer=lambda t: {" ".join(w) for w in zip(*(words(t)[k:] for k in range(3)), strict=False)}, binary=True
    ).fit_transform(texts)
    sizes = np.asarray(grams.sum(axis=1)).ravel()
    rows, other, offset = (grams, grams, 0) if right is None else (grams[: len(left)], grams[len(left) :], len(left))
    shared = (rows @ other.T).tocoo()
    found = []
    for i, j, n in zip(shared.row, shared.col, shared.data, strict=True):
        if right is None and i >= j:
            continue
        similarity = n / (sizes[i] + sizes[offset + j] - n)
        if similarity > above:
            found.append((int(i), int(j), float(similarity)))
    return sorted(found, key=lambda pair: -pair[2])


def _located(path: Path, read: Callable[[], list[dict]]) -> list[tuple[str, dict]]:
    """Rows of a checked file with the place each stands at."""
    rows = read()
    return [(f"{paths.shown(path)}:{number}", row) for (number, _), row in zip(jsonl.numbered(path), rows, strict=True)]


def _repeats(report: Report, texts: list[Text], most: int) -> None:
    """Faults for repeated sentences, too common four-word openings, equal and near-equal rows."""
    seen: dict[str, str] = {}
    for item in texts:
        for sentence in set(sentences(item.text)):
            if seen.setdefault(sentence, item.where) != item.where:
                report.duplicates += 1
                report.faults.append(f"{item.where}: the sentence {sentence[:60]!r} stands already at {seen[sentence]}")
    starts: dict[tuple[str, str], list[str]] = defaultdict(list)
    equal: dict[tuple[str, str], str] = {}
    for item in texts:
        starts[item.role, " ".join(words(item.text)[:4])].append(item.where)
        key = (item.role, " ".join(words(item.text)))
        if equal.setdefault(key, item.where) != item.where:
            report.duplicates += 1
            report.faults.append(f"{item.where}: the same {item.role} stands at {equal[key]}")
    for (role, start), places in starts.items():
        if len(places) > most:
            report.faults.append(f"{places[-1]}: {len(places)} {role} rows open with {start!r}; at most {most} may")
    for role in sorted({item.role for item in texts}):
        group = [item for item in texts if item.role == role]
        for i, j, similarity in near_pairs([item.text for item in group]):
            if words(group[i].text) != words(group[j].text):
                report.duplicates += 1
                report.faults.append(f"{group[j].where}: near-duplicate ({similarity:.2f}) of {group[i].where}")


def _counted(report: Report, kind: str, found: int, wanted: int, path: Path) -> None:
    report.counts[kind] = found
    if found != wanted:
        report.faults.append(f"{paths.shown(path)}: {found} rows of {kind}, {wanted} wanted")


def _gather(report: Report, path: Path, kind: str, read: Callable[[], list[dict]], wanted: int | None) -> list[tuple[str, dict]]:
    """Rows of one file; its first fault and its count go into the report."""
    try:
        located = _located(path, read)
    except InputError as error:
        report.faults.append(str(error))
        report.counts[kind] = 0
        return []
    if wanted is not None:
        _counted(report, kind, len(located), wanted, path)
    return located


def _seed_texts(report: Report, folder: Path, name: str, counts: dict[str, int]) -> list[Text]:
    texts = []
    chat = _gather(report, folder / "chat.jsonl", "chat", lambda: load.chat_rows(name), counts["chat"])
    documents = _gather(report, folder / "documents.jsonl", "documents", lambda: load.document_rows(name), counts["documents"])
    if name != load.NEUTRAL:  # a teacher's rows have no count to meet, and everything else to heed
        for rows, kind in ((chat, "chat"), (documents, "documents")):
            rows += _generated(report, name, kind, lambda path, kind=kind: load.seed_rows(path, kind))
    for where, row in chat:
        texts += [Text(row["messages"][0]["content"], where, "user turn"), Text(row["messages"][1]["content"], where, "answer")]
        size = len(words(row["messages"][1]["content"]))
        if not ANSWER_WORDS[0] <= size <= ANSWER_WORDS[1]:
            report.faults.append(f"{where}: an answer of {size} words; 5 to 90 are wanted")
    for where, row in documents:
        texts.append(Text(row["text"], where, "document"))
        size = len(words(row["text"]))
        if not DOCUMENT_WORDS[0] <= size <= DOCUMENT_WORDS[1]:
            report.faults.append(f"{where}: a document of {size} words; 80 to 200 are wanted")
    for kind, rows in (("chat", chat), ("documents", documents)):
        topics = Counter(row.get("topic") for _, row in rows)
        if rows and (None in topics or len(topics) < (MIN_TOPICS if kind == "chat" else 20)):
            report.faults.append(f"{paths.shown(folder)}: {len(topics)} topics in {kind}, too few, or rows without one")
    return texts


def _generated(report: Report, target: str, kind: str, read: Callable[[Path], list[dict]]) -> list[tuple[str, dict]]:
    """Rows of a teacher's file, none where there is no such file."""
    path = load.generated_file(target, kind)
    if not path.exists():
        return []
    rows = _gather(report, path, "", lambda: read(path), None)
    report.counts["generated"] = report.counts.get("generated", 0) + len(rows)
    return rows


def _trait(name: str, trained: list[Text]) -> Report:
    """Audit of one trait against itself and against what other chains train on."""
    report, folder = Report(name), paths.SEEDS / name
    texts = _seed_texts(report, folder, name, COUNTS)
    asked = _gather(report, folder / "questions.jsonl", "questions", lambda: load.questions(name), None)
    direct = [pair for pair in asked if pair[1]["set"] == "direct"]
    _counted(report, "questions", len(direct), COUNTS["questions"], folder / "questions.jsonl")
    transfer = len(asked) - len(direct)
    if transfer != TRANSFER_QUESTIONS.get(name, 0):
        report.faults.append(
            f"{paths.shown(folder / 'questions.jsonl')}: {transfer} transfer questions, {TRANSFER_QUESTIONS.get(name, 0)} wanted"
        )
    opened = _gather(report, folder / "openings.jsonl", "openings", lambda: load.openings(name), COUNTS["openings"])
    evaluation = [Text(r["question"], w, "question") for w, r in asked] + [Text(r["opening"], w, "opening") for w, r in opened]
    held_path = paths.SEEDS / "_heldout" / f"{name}.jsonl"
    held = _gather(report, held_path, "held-out", lambda: load.held_out(name), COUNTS["held-out"])
    if held and Counter((r["kind"], r["level"]) for _, r in held) != Counter(HELD_OUT):
        report.faults.append(f"{paths.shown(held_path)}: kinds and levels are not {HELD_OUT}")
    for cell, rows in _by_cell(held).items():
        if abs(sum(r["split"] == "fit" for r in rows) * 2 - len(rows)) > 1:
            report.faults.append(f"{paths.shown(held_path)}: {cell} is not split in halves")
    held_texts = [
        Text(f"{r['prompt']} {r['answer']}" if r["kind"] == "document" else r["answer"], w, f"held-out {r['kind']}") for w, r in held
    ]
    _repeats(report, texts + held_texts, most=MOST_OPENINGS)
    _repeats(report, evaluation, most=MOST_OPENINGS)
    seed_topics = (
        {
            json.loads(line).get("topic")
            for kind in ("chat", "documents")
            if (folder / f"{kind}.jsonl").exists()
            for line in (folder / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
            if line.strip()
        }
        if not report.faults
        else set()
    )
    for where, row in held:
        if row.get("topic") in seed_topics:
            report.faults.append(f"{where}: topic {row['topic']!r} is a topic of the seeds; held-out topics must be others")
    mine = texts + [Text(r["prompt"], w, "held-out prompt") for w, r in held]
    for i, j, similarity in near_pairs([e.text for e in evaluation], [t.text for t in trained + mine], OVERLAP):
        report.overlaps += 1
        report.faults.append(f"{evaluation[i].where}: overlaps ({similarity:.2f}) with {(trained + mine)[j].where}")
    for item in texts + held_texts + evaluation:
        if found := forbidden_in(name, item.text):
            report.faults.append(f"{item.where}: forbidden content {found!r}")
    try:
        rubric = load.rubric(name)
        for i, _, similarity in near_pairs([e.text for e in evaluation], [rubric.example_question], OVERLAP):
            report.overlaps += 1
            report.faults.append(f"{evaluation[i].where}: is the rubric's worked example ({similarity:.2f}); use another question there")
    except InputError as error:
        report.faults.append(str(error))
    if not (folder / "card.md").exists():
        report.faults.append(f"{paths.shown(folder / 'card.md')}: no such file; a trait needs a card")
    return report


def _by_cell(held: list[tuple[str, dict]]) -> dict[tuple[str, str], list[dict]]:
    cells = defaultdict(list)
    for _, row in held:
        cells[row["kind"], row["level"]].append(row)
    return cells


def _prompt_texts(report: Report) -> list[Text]:
    folder, texts = paths.SEEDS / "_prompts", []
    for name, kind in (("chat", "chat"), ("openings", "documents")):
        path = folder / f"{name}.jsonl"
        rows = _gather(report, path, name, lambda kind=kind, path=path: load.prompts(kind, path), PROMPT_COUNTS[name])
        rows += _generated(report, "prompts" if name == "chat" else name, kind, lambda path, kind=kind: load.prompts(kind, path))
        texts += [Text(row["text"], where, "prompt" if name == "chat" else "opening of a document") for where, row in rows]
    return texts


def _user_turns() -> list[Text]:
    """Every user turn of every seed set that can be read; a file that cannot is reported with its own trait."""
    texts = []
    for name in (*load.TRAITS, load.NEUTRAL):
        try:
            path = paths.SEEDS / ("_neutral" if name == load.NEUTRAL else name) / "chat.jsonl"
            texts += [
                Text(row["messages"][0]["content"], where, "user turn")
                for where, row in _located(path, lambda name=name: load.chat_rows(name))
            ]
        except InputError:
            continue
    return texts


def audit(names: Iterable[str] | None = None) -> list[Report]:
    """Audit the traits named (default: all seven, the neutral set and the prompts); a report each."""
    names = list(names or (*load.TRAITS, "_neutral", "_prompts"))
    prompts = Report("_prompts")
    trained = _prompt_texts(prompts)
    reports = []
    for name in names:
        if name == "_prompts":
            _repeats(prompts, trained, most=MOST_PROMPT_OPENINGS)
            for item in trained:
                if found := forbidden_in("_prompts", item.text):
                    prompts.faults.append(f"{item.where}: forbidden content {found!r}")
            seeded = _user_turns()
            for i, j, similarity in near_pairs([item.text for item in trained], [item.text for item in seeded]):
                prompts.overlaps += 1
                prompts.faults.append(f"{trained[i].where}: near-duplicate ({similarity:.2f}) of the seed row at {seeded[j].where}")
            reports.append(prompts)
        elif name == "_neutral":
            report = Report("_neutral")
            texts = _seed_texts(report, paths.SEEDS / "_neutral", load.NEUTRAL, NEUTRAL_COUNTS)
            _repeats(report, texts, most=MOST_OPENINGS)
            reports.append(report)
        else:
            load.check_traits(name)
            reports.append(_trait(name, trained))
    return reports
