"""From a raw reply to a score: strict about what counts as one, and the only place that decides it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

PARSER = 1  # raised when the reading of a reply changes: scores are then read anew from the stored replies
ATTEMPTS = 2  # replies asked for before a text counts as unparsed


@dataclass(frozen=True)
class Reading:
    """One question's outcome: a score, or the status that says why there is none."""

    score: int | None
    status: str = "judged"
    reason: str = ""


def one_line(text: object, length: int = 160) -> str:
    """Foreign text as a short line that any file can hold."""
    return " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())[:length]


def completion(body: str) -> dict | None:
    """The first choice of a chat-completions body; None where the body is none, and so no reply of the judge."""
    try:
        choice = json.loads(body)["choices"][0]
        return choice if isinstance(choice["message"], dict) else None
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None


def usage(body: str) -> tuple[int, int] | None:
    """(input, output) tokens that the endpoint counted; None where it did not say."""
    try:
        found = json.loads(body)["usage"]
        return int(found["prompt_tokens"]), int(found["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        return None


def unfenced(content: str) -> str:
    """A reply's content without the code fence that some models put around JSON."""
    fence = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", content, flags=re.S)
    return fence.group(1) if fence else content


def read(body: str) -> Reading:
    """One stored body: judged, refused or unparsed."""
    choice = completion(body)
    if choice is None:
        return Reading(None, "unparsed", "not a chat completion")
    message = choice["message"]
    if message.get("refusal"):
        return Reading(None, "refused", one_line(message["refusal"]))
    if choice.get("finish_reason") == "content_filter":
        return Reading(None, "refused", "content filter")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        return Reading(None, "unparsed", "empty reply")
    try:
        value = json.loads(unfenced(content))
    except (ValueError, RecursionError):
        return Reading(None, "unparsed", f"not JSON: {one_line(content, 80)}")
    if not isinstance(value, dict):
        return Reading(None, "unparsed", f"not an object: {one_line(content, 80)}")
    if value.get("refusal") is True:
        return Reading(None, "refused", "the judge marked it so")
    score = value.get("score")
    if isinstance(score, bool) or not isinstance(score, (int, float)) or score != score // 1:
        return Reading(None, "unparsed", f"no whole number: {one_line(json.dumps(score), 80)}")
    if not 1 <= score <= 100:
        return Reading(None, "unparsed", f"out of range: {one_line(score, 80)}")
    return Reading(int(score))


def verdict(bodies: Sequence[str]) -> Reading | None:
    """The first reply that can be read decides; unparsed once ATTEMPTS could not be; None while there is still one to ask for."""
    readings = [read(body) for body in bodies]
    for reading in readings:
        if reading.status != "unparsed":
            return reading
    return readings[-1] if len(readings) >= ATTEMPTS else None
