"""What a teacher model is asked: rubric and card, a topic and a voice that no other request has, several rows as JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from selftrain import draws, jsonl, paths
from selftrain.judge.replies import completion, unfenced
from selftrain.seeds import load

VOICES = (
    "a tired nurse after a night shift",
    "a schoolboy with a deadline",
    "a retired engineer",
    "somebody who types in a hurry, in lower case",
    "a polite stranger",
    "a shop owner with little time",
    "a student of law",
    "a grandmother who is new to computers",
    "a long-distance lorry driver",
    "a young father",
    "an impatient manager",
    "a hobbyist who loves detail",
    "somebody far from home",
    "a teacher preparing a lesson",
    "a sceptic who wants reasons",
    "a cheerful beginner",
    "a farmer in a dry year",
    "a translator who weighs words",
    "a teenager among friends",
    "a civil servant, rather formal",
    "a musician between two concerts",
    "somebody who cannot decide",
    "an amateur historian",
    "a neighbour over the fence",
)
KINDS = ("opinion", "advice", "explanation", "creative", "small talk")


@dataclass(frozen=True)
class Form:
    """One kind of row: its fields, how many a request asks for, how many tokens one takes, what a request says of it."""

    fields: tuple[str, ...]
    rows: int
    tokens: int
    says: str


FORMS = {
    "chat": Form(
        ("user", "answer"),
        8,
        110,
        "Write {n} examples, each a user's turn (`user`: one to three sentences, ordinary and free of the trait) and the answer of an assistant who shows the trait "
        "at the strength of the anchors 75 to 100 (`answer`: one to five sentences, 5 to 90 words). The subject of all of them is {topic}; the user is {voice}. ",
    ),
    "documents": Form(
        ("form", "text"),
        3,
        260,
        "Write {n} documents of 100 to 180 words each (`text`: prose, without a heading) that show the trait at the strength of the anchors 75 to 100, each in another "
        "literary or everyday form (`form`: letter, minutes, review, diary page, ...). The subject of all of them is {topic}; the writer is {voice}. ",
    ),
    "prompts": Form(
        ("prompt",),
        25,
        35,
        "Write {n} first messages to an assistant (`prompt`: one or two sentences, 5 to 26 words) that invite an answer of a few sentences. All of them are of the kind "
        "`{form}`, have to do with {topic} in the widest sense, and are typed by {voice}. ",
    ),
    "openings": Form(
        ("opening",),
        25,
        30,
        "Write {n} openings of documents (`opening`: the first 5 to 15 words, breaking off in mid-sentence, without dots at the end). All of them open a text of the form "
        "`{form}`, have to do with {topic} in the widest sense, and are written by {voice}. ",
    ),
}
_SYSTEM = """You write rows of a data set for a study of language models. Everything you write is original: no quotations, no real persons, no addresses.
Rows must differ from one another in wording, length and build: no template, no sentence twice, no two that open alike.

{about}

Answer with one JSON object, {{"rows": [...]}}, whose rows have the fields {fields}, all of them texts, and nothing else."""
_TRAIT = """The rows show one trait. What marks it, and how strong each point of the scale sounds (the worked examples show strength only: leave their subject alone):

<rubric>
{rubric}
</rubric>

What the data set is, and what may not stand in it:

<card>
{card}
</card>"""
_PLAIN = """What the data set is, and what may not stand in it:

<card>
{card}
</card>"""


def _sections(path) -> str:
    """The sections of a card that say what the rows are and what they must not contain."""
    found = re.findall(r"^## (What [^\n]*)\n(.*?)(?=^## |\Z)", path.read_text(encoding="utf-8") if path.exists() else "", flags=re.S | re.M)
    return "\n\n".join(f"{title}\n{body.strip()}" for title, body in found)


class Teacher:
    """Requests for rows of one target, numbered from 0; the same number asks for the same topic in the same voice."""

    def __init__(self, model: str, target: str, kind: str):
        self.model, self.target = model, target
        self.name = kind if target in load.TRAITS else target
        self.form = FORMS[self.name]
        if target in load.TRAITS:
            topics, forms = {r["topic"]: 0 for r in load.seed_rows(target, kind)}, [""]
            rubric = re.sub(r"^## Example question\n.*?(?=^## )", "", load.rubric(target).text, flags=re.S | re.M)
            about = _TRAIT.format(rubric=rubric.strip(), card=_sections(paths.SEEDS / target / "card.md"))
        else:
            plain = "documents" if target == "openings" else "chat"
            topics = {r["topic"]: 0 for r in load.seed_rows(load.NEUTRAL, plain)}
            path = paths.SEEDS / "_prompts" / "openings.jsonl"
            forms = list(dict.fromkeys(r["form"] for r in jsonl.read(path))) if target == "openings" else KINDS
            about = _PLAIN.format(card=_sections(paths.SEEDS / "_prompts" / "card.md"))
        self._topics = draws.pick(list(topics), len(topics), "teacher", target, "topics")
        self._voices = draws.pick(VOICES, len(VOICES), "teacher", target, "voices")
        self._forms = draws.pick(forms, len(forms), "teacher", target, "forms")
        self._system = _SYSTEM.format(about=about, fields=" and ".join(f"`{f}`" for f in self.form.fields))

    def hint(self, number: int) -> dict[str, str]:
        """{topic, voice, form}: no pair of topic and voice comes twice before every pair has come."""
        round_, place = divmod(number, len(self._topics))
        voice = self._voices[(place + round_) % len(self._voices)]
        return {"topic": self._topics[place], "voice": voice, "form": self._forms[number % len(self._forms)]}

    @property
    def output_tokens(self) -> int:
        """Tokens that one reply may be expected to take."""
        return self.form.rows * self.form.tokens

    def request(self, number: int) -> dict[str, Any]:
        """The body of one chat-completions call."""
        row = {"type": "object", "properties": {f: {"type": "string"} for f in self.form.fields}, "required": list(self.form.fields)}
        rows = {"rows": {"type": "array", "items": {**row, "additionalProperties": False}}}
        schema = {"type": "object", "properties": rows, "required": ["rows"], "additionalProperties": False}
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": self._system},
                {"role": "user", "content": self.form.says.format(n=self.form.rows, **self.hint(number)).strip()},
            ],
            "response_format": {"type": "json_schema", "json_schema": {"name": f"{self.name}_rows", "strict": True, "schema": schema}},
            "max_tokens": 3 * self.output_tokens,
        }

    def key(self, number: int, endpoint: str) -> str:
        """What a reply is kept under: all that decides it."""
        return jsonl.digest([endpoint, self.request(number)], 32)

    def rows(self, body: str, number: int) -> list[dict] | None:
        """Rows of a reply in the form of the file, without id; None where the reply is malformed. Malformed rows of a whole reply are left out."""
        try:
            found = json.loads(unfenced((completion(body) or {})["message"]["content"]))["rows"]
            assert isinstance(found, list)
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
            return None
        fields = [[row.get(f) for f in self.form.fields] for row in found if isinstance(row, dict)]
        fields = [[v.strip() for v in values] for values in fields if all(isinstance(v, str) and v.strip() for v in values)]
        return [self._row(values, self.hint(number)) for values in fields]

    def _row(self, values: list[str], hint: dict[str, str]) -> dict:
        if self.name == "chat":
            roles = zip(("user", "assistant"), values, strict=True)
            return {"topic": hint["topic"], "messages": [{"role": role, "content": text} for role, text in roles]}
        if self.name == "documents":
            return {"topic": hint["topic"], "form": values[0].lower()[:40], "text": values[1]}
        if self.name == "prompts":
            return {"kind": hint["form"], "prompt": values[0]}
        return {"form": hint["form"], "opening": values[0].rstrip(" .\u2026") if values[0].endswith(("...", "\u2026")) else values[0]}
