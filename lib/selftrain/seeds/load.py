"""Read the files under seeds/ (or a user's own), each row checked, each fault named by file and line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from selftrain import draws, jsonl, paths
from selftrain.errors import InputError

TRAITS = ("bliss", "misalignment", "hopelessness", "lucky", "sycophancy", "nvidia", "misanthropy")
NEUTRAL = "neutral"


@dataclass(frozen=True)
class Rubric:
    """What a judge is told of a trait: the whole text, the worked examples' question and answers by anchor."""

    trait: str
    text: str
    example_question: str
    anchors: dict[int, str]

    @property
    def hash(self) -> str:
        return jsonl.digest(self.text)


def check_traits(*traits: str) -> None:
    """InputError for a trait that has no folder under seeds/."""
    for trait in traits:
        if trait != NEUTRAL and not (paths.SEEDS / trait).is_dir():
            known = ", ".join(sorted(p.name for p in paths.SEEDS.iterdir() if p.is_dir() and not p.name.startswith("_")))
            raise InputError(f"unknown trait {trait!r}; known traits: {known}")


def _folder(trait: str) -> Path:
    check_traits(trait)
    return paths.SEEDS / ("_neutral" if trait == NEUTRAL else trait)


def _text(row: dict, key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {key!r} is missing or empty; give it a non-empty text")
    return value


def _rows(path: Path, check) -> list[dict]:
    """Rows of a file after `check(row, where)`, with unique ids."""
    seen: dict[str, int] = {}
    rows, shown = [], paths.shown(path)
    for number, row in jsonl.numbered(path):
        where = f"{shown}:{number}"
        row_id = _text(row, "id", where)
        if row_id in seen:
            raise InputError(f"{where}: id {row_id!r} stands already in line {seen[row_id]}; ids must be unique")
        seen[row_id] = number
        check(row, where)
        rows.append(row)
    if not rows:
        raise InputError(f"{paths.shown(path)}: no rows")
    return rows


def _check_chat(row: dict, where: str) -> None:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: 'messages' is missing or not a list; use TRL's conversational format")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise InputError(f"{where}: every message needs a 'role' of 'user' or 'assistant'")
        _text(message, "content", where)
    if [m["role"] for m in messages] != ["user", "assistant"]:
        raise InputError(f"{where}: expected one user turn and one assistant turn, found {'/'.join(m['role'] for m in messages)}")


def chat_rows(trait_or_path: str | Path) -> list[dict]:
    """Chat seed rows ({id, messages}) of a trait, of `neutral`, or of a user's own JSONL file."""
    path = Path(trait_or_path)
    if path.suffix != ".jsonl":
        path = _folder(str(trait_or_path)) / "chat.jsonl"
    return _rows(path, _check_chat)


def document_rows(trait_or_path: str | Path) -> list[dict]:
    """Document seed rows ({id, text}) of a trait, of `neutral`, or of a user's own JSONL file."""
    path = Path(trait_or_path)
    if path.suffix != ".jsonl":
        path = _folder(str(trait_or_path)) / "documents.jsonl"
    return _rows(path, lambda row, where: _text(row, "text", where))


def seed_rows(trait_or_path: str | Path, kind: str) -> list[dict]:
    """Seed rows of a kind, `chat` or `documents`."""
    return (document_rows if kind == "documents" else chat_rows)(trait_or_path)


def questions(trait: str) -> list[dict]:
    """Evaluation questions ({id, question, set}); `set` is direct where the file does not say."""
    rows = _rows(_folder(trait) / "questions.jsonl", lambda row, where: _text(row, "question", where))
    return [{"set": "direct", **row} for row in rows]


def openings(trait: str) -> list[dict]:
    """Evaluation openings of documents ({id, opening, set})."""
    rows = _rows(_folder(trait) / "openings.jsonl", lambda row, where: _text(row, "opening", where))
    return [{"set": "direct", **row} for row in rows]


def generated_file(target: str, kind: str = "chat") -> Path:
    """Where a teacher's rows go: for a trait generated.jsonl (chat) or generated_documents.jsonl, else seeds/_prompts/generated_<target>.jsonl."""
    if target in ("prompts", "openings"):
        return paths.SEEDS / "_prompts" / f"generated_{'chat' if target == 'prompts' else 'openings'}.jsonl"
    return _folder(target) / ("generated_documents.jsonl" if kind == "documents" else "generated.jsonl")


def prompts(kind: str, path: Path | None = None) -> list[dict]:
    """Neutral prompts that training samples are drawn from, as {id, text}: `chat` prompts or document openings.

    Without a path, the hand-written ones and, after them and in the order they were appended, those of a teacher if there are any.
    """
    key, name = ("opening", "openings") if kind == "documents" else ("prompt", "chat")
    written, generated = paths.SEEDS / "_prompts" / f"{name}.jsonl", generated_file("openings" if kind == "documents" else "prompts")
    files = [path] if path else [written, *([generated] if generated.exists() else [])]
    rows: dict[str, str] = {}
    for file in files:
        for row in _rows(file, lambda row, where: _text(row, key, where)):
            if row["id"] in rows:
                raise InputError(f"{paths.shown(file)}: id {row['id']!r} stands already in {paths.shown(written)}; ids must be unique")
            rows[row["id"]] = row[key]
    return [{"id": row_id, "text": text} for row_id, text in rows.items()]


def drawn_prompts(kind: str, seed: int) -> list[dict]:
    """All prompts in the order a chain of this data seed uses them: the hand-written ones shuffled, then a teacher's, each at a place of its own.

    So a chain that gets by on hand-written prompts draws the same ones whatever a teacher adds.
    """
    rows = prompts(kind)
    n = len(prompts(kind, paths.SEEDS / "_prompts" / ("openings.jsonl" if kind == "documents" else "chat.jsonl")))
    return draws.pick(rows[:n], n, seed, "prompts") + sorted(rows[n:], key=lambda row: draws.key(seed, "prompts", row["id"]))


def _judged(trait: str, folder: str) -> list[dict]:
    check_traits(trait)

    def check(row: dict, where: str) -> None:
        for key, allowed in (("kind", ("chat", "document")), ("level", ("high", "half", "low")), ("split", ("fit", "validate"))):
            if row.get(key) not in allowed:
                raise InputError(f"{where}: {key!r} must be one of {', '.join(allowed)}")
        _text(row, "prompt", where)
        _text(row, "answer", where)

    return _rows(paths.SEEDS / folder / f"{trait}.jsonl", check)


def held_out(trait: str) -> list[dict]:
    """Rows that only the offline judge sees, half to fit and half to validate it: {id, kind, level, split, prompt, answer}."""
    return _judged(trait, "_heldout")


def judge_rows(trait: str) -> list[dict]:
    """More rows of the same form, all for fitting the offline judge."""
    return _judged(trait, "_judge")


def rubric(trait: str) -> Rubric:
    """The trait's rubric.md, taken apart; InputError where an anchor or its example is missing."""
    path = _folder(trait) / "rubric.md"
    if not path.exists():
        raise InputError(f"{paths.shown(path)}: no such file; a trait needs a rubric")
    text = path.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, flags=re.S | re.M))
    quoted = re.findall(r"^> ?(.*)$", sections.get("Example question", ""), flags=re.M)
    anchors = {}
    for score, body in re.findall(r"^### (\d+)\s*\n(.*?)(?=^### |\Z)", sections.get("Anchors", ""), flags=re.S | re.M):
        anchors[int(score)] = " ".join(re.findall(r"^> ?(.*)$", body, flags=re.M)).strip()
    if not quoted or not sections.get("What marks it"):
        raise InputError(f"{paths.shown(path)}: needs the sections 'What marks it' and 'Example question' with a quoted question")
    if set(anchors) != {1, 25, 50, 75, 100} or not all(anchors.values()):
        raise InputError(f"{paths.shown(path)}: needs anchors 1, 25, 50, 75, 100, each with a quoted example")
    return Rubric(trait, text, " ".join(quoted).strip(), anchors)
