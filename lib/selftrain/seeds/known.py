"""What a new row may not repeat: the rows that are there, everything evaluation asks, everything held out. The audit's own rules, row by row."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from selftrain.seeds import load
from selftrain.seeds.audit import (
    ANSWER_WORDS,
    DOCUMENT_WORDS,
    MOST_OPENINGS,
    MOST_PROMPT_OPENINGS,
    OVERLAP,
    near_pairs,
    sentences,
    words,
)
from selftrain.seeds.forbidden import forbidden_in

WORDS = {"user turn": (1, 60), "answer": ANSWER_WORDS, "document": DOCUMENT_WORDS, "prompt": (3, 60), "opening": (4, 15)}
_BEGINNING = 12  # words of a document that an opening is compared with


def texts_of(row: dict) -> dict[str, str]:
    """The texts of a row of any seed or prompt file, by the role each plays."""
    if "messages" in row:
        return {"user turn": row["messages"][0]["content"], "answer": row["messages"][1]["content"]}
    return {role: row[key] for role, key in (("document", "text"), ("prompt", "prompt"), ("opening", "opening")) if key in row}


class Known:
    """All that stands under seeds/ already, as far as rows of one target and kind could repeat it."""

    def __init__(self, target: str, kind: str):
        self.trait = target if target in load.TRAITS else "_prompts"
        self.most = MOST_PROMPT_OPENINGS if self.trait == "_prompts" else MOST_OPENINGS
        self._texts: dict[str, list[str]] = defaultdict(list)  # by role, everything that a new text of the role is compared with
        self._sentences: set[str] = set()
        self._starts: Counter[tuple[str, str]] = Counter()
        everyone = [t for t in load.TRAITS if (load.paths.SEEDS / t).is_dir()]
        self.evaluation = [r["question"] for t in everyone for r in load.questions(t)]
        self.evaluation += [r["opening"] for t in everyone for r in load.openings(t)]
        self.evaluation += [load.rubric(t).example_question for t in everyone]
        self._held_out([row for t in everyone for row in load.held_out(t)])
        if target in load.TRAITS:
            for row in load.seed_rows(target, kind):
                self.take(texts_of(row))
            self._texts["user turn"] += [r["text"] for r in load.prompts("chat")]
        else:
            for row in load.prompts("documents" if target == "openings" else "chat"):
                self.take({"opening" if target == "openings" else "prompt": row["text"]})
            for t in (*everyone, load.NEUTRAL):
                self._texts["prompt"] += [r["messages"][0]["content"] for r in load.chat_rows(t)]
                self._texts["opening"] += [" ".join(r["text"].split()[:_BEGINNING]) for r in load.document_rows(t)]

    def _held_out(self, rows: Sequence[dict]) -> None:
        for row in rows:
            chat = row["kind"] == "chat"
            texts = [row["prompt"], row["answer"]] if chat else [f"{row['prompt']} {row['answer']}"]
            for role, text in zip(("user turn", "answer") if chat else ("document",), texts, strict=True):
                self._texts[role].append(text)
                self._sentences.update(sentences(text))
            self._texts["prompt" if chat else "opening"].append(row["prompt"])

    def take(self, texts: dict[str, str]) -> None:
        """Count a row among what is known."""
        for role, text in texts.items():
            self._texts[role].append(text)
            self._sentences.update(sentences(text))
            self._starts[role, " ".join(words(text)[:4])] += 1

    def sift(self, rows: Sequence[dict[str, str]]) -> list[str | None]:
        """Why each row is refused, None where it is not; rows that are not are taken. Rows are {role: text}, all of the same roles."""
        reasons: list[str | None] = [self._lint(texts) for texts in rows]
        twins: dict[int, set[int]] = defaultdict(set)
        for role in rows[0] if rows else ():
            mine = [texts[role] for texts in rows]
            for i, _, _ in near_pairs(mine, self.evaluation, OVERLAP):
                reasons[i] = reasons[i] or "overlap with evaluation"
            for i, _, _ in near_pairs(mine, self._texts[role]):
                reasons[i] = reasons[i] or "near-duplicate"
            for i, j, _ in near_pairs(mine):
                twins[j].add(i)
        equal = {role: {" ".join(words(t)) for t in self._texts[role]} for role in (rows[0] if rows else ())}
        for j, texts in enumerate(rows):
            reasons[j] = reasons[j] or self._repeats(texts, equal)
            if reasons[j] is None and any(reasons[i] is None for i in twins[j]):
                reasons[j] = "near-duplicate"
            if reasons[j] is None:
                self.take(texts)
                for role, text in texts.items():
                    equal[role].add(" ".join(words(text)))
        return reasons

    def _lint(self, texts: dict[str, str]) -> str | None:
        for role, text in texts.items():
            low, high = WORDS[role]
            if not low <= len(words(text)) <= high:
                return f"{role} too short or too long"
            if not all(c.isprintable() or c == "\n" for c in text) or "[key]" in text:
                return "characters that are no text"
            if role == "opening" and text[-1] in ".!?":
                return "opening that is a whole sentence"
            if forbidden_in(self.trait, text):
                return "forbidden content"
            said = f" {' '.join(words(text))} "
            if any(f" {' '.join(words(q))} " in said for q in self.evaluation):
                return "overlap with evaluation"
        return None

    def _repeats(self, texts: dict[str, str], equal: dict[str, set[str]]) -> str | None:
        for role, text in texts.items():
            if " ".join(words(text)) in equal[role]:
                return "duplicate"
            if self._sentences & set(sentences(text)):
                return "sentence that stands elsewhere"
            if self._starts[role, " ".join(words(text)[:4])] >= self.most:
                return "four-word opening used up"
        return None
