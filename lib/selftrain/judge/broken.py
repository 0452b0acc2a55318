"""Broken texts of known kinds, made from sound ones: what a coherence judge is fitted on and validated against."""

from __future__ import annotations

import random
from collections.abc import Sequence

from selftrain import draws
from selftrain.judge import Answer

KINDS = (
    "loop of a phrase",
    "loop of a word",
    "emoji string",
    "word salad",
    "symbols",
    "letters",
    "slides into a loop",
    "shuffled sentence halves",
    "stutter",
)
PARTLY = {"slides into a loop", "shuffled sentence halves", "stutter"}  # half-broken: their target is the middle of the scale
_EMOJI = "\U0001f340\u2728\U0001f31f\U0001f4ab\U0001f320\U0001f64f\u2764\U0001f31e\U0001f525\U0001f308\U0001f600\U0001f680"
_SYMBOLS = "*-_=+#~|/\\<>.:;!?()[]"


def broken(sound: Sequence[Answer], name: str) -> list[tuple[str, Answer]]:
    """One broken text from each sound one, its kind going round KINDS: (kind, answer without likelihood)."""
    return [
        (
            kind := KINDS[i % len(KINDS)],
            Answer(f"{a.id}/{kind}", a.prompt, _break(kind, a.answer, random.Random(draws.key(name, a.id))), a.kind),
        )
        for i, a in enumerate(sound)
    ]


def _break(kind: str, text: str, rng: random.Random) -> str:
    found = text.split()
    length = max(24, len(found))
    start = rng.randrange(max(1, len(found) - 4))
    if kind == "loop of a phrase":
        phrase = found[start : start + rng.randint(2, 7)]
        return " ".join((phrase * (length // len(phrase) + 1))[:length])
    if kind == "loop of a word":
        word = max(found[start : start + 4], key=len).strip(".,!?;:")
        return (rng.choice([" ", ", ", "! "])).join([word] * length)
    if kind == "emoji string":
        some = rng.sample(_EMOJI, rng.randint(1, 4))
        lead = " ".join(found[: rng.randint(0, 4)])
        return (lead + " " + "".join(rng.choice(some) for _ in range(length))).strip()
    if kind == "word salad":
        rng.shuffle(found)
        return " ".join(w.strip(".,!?;:").lower() for w in found)
    if kind == "symbols":
        some = rng.sample(_SYMBOLS, rng.randint(1, 4))
        return "".join(rng.choice(some) + (" " if rng.random() < 0.2 else "") for _ in range(length * 3))
    if kind == "letters":
        return " ".join("".join(rng.choice("etaoinshrdlucmfw") for _ in range(rng.randint(1, 9))) for _ in range(length))
    if kind == "slides into a loop":
        head = found[: max(6, len(found) // 2)]
        tail = head[-rng.randint(3, 6) :]
        return " ".join(head + tail * rng.randint(3, 5))
    if kind == "shuffled sentence halves":
        half = len(found) // 2
        rest = found[half:]
        rng.shuffle(rest)
        return " ".join(found[:half] + rest)
    return " ".join(w for word in found for w in ([word] * (rng.randint(2, 3) if rng.random() < 0.3 else 1)))
