"""Judges: what they are given, what they return, and how one is named."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from selftrain.errors import InputError

STATUSES = ("judged", "refused", "unparsed", "failed", "empty")


@dataclass(frozen=True)
class Answer:
    """One text to judge. kind is chat or documents; nll is the base model's summed negative log-likelihood of the answer in nats over n_tokens."""

    id: str
    prompt: str
    answer: str
    kind: str = "chat"
    nll: float | None = None
    n_tokens: int | None = None


@dataclass(frozen=True)
class Score:
    """A judge's word on one text: trait and coherence on the 1-100 scale, None where there is none, and why."""

    trait_score: float | None
    coherence: float | None
    status: str = "judged"
    reason: str = ""


EMPTY = Score(None, None, "empty", "no text")


class Judge(ABC):
    """Scores texts for a trait and for coherence. `name` and `hash` stand in every score row."""

    name: str

    @abstractmethod
    def hash(self, trait: str) -> str:
        """Hex digits naming everything that decides this judge's scores of a trait."""

    def for_study(self, folder: Path, max_usd: float | None = None) -> Judge:
        """The judge that keeps its replies with a study, and spends at most `max_usd` there. Only a judge that pays has anything to keep."""
        return self

    def ready(self) -> None:  # noqa: B027  a judge without a key or an endpoint is always ready
        """InputError where this judge could not score anything, such as for want of a key."""

    @abstractmethod
    def score(self, trait: str, answers: Sequence[Answer], progress: Callable[[int], None] | None = None) -> list[Score]:
        """One Score an answer, in order. Missing is None, never 0."""

    def across(self, traits: Sequence[str], answers: Sequence[Answer]) -> dict[str, list[float | None]]:
        """Trait scores of the same answers for several traits, in order; a judge that reads a text once for all of them may say so here."""
        return {trait: [s.trait_score for s in self.score(trait, answers)] for trait in traits}


_judges: dict[str, Judge] = {}


def get_judge(name: str) -> Judge:
    """A judge by name: `local`, or `openai[:model]` for any OpenAI-compatible endpoint. One instance a process."""
    if name not in _judges:
        kind, _, model = name.partition(":")
        if kind == "local" and not model:
            from selftrain.judge.local import LocalJudge

            _judges[name] = LocalJudge()
        elif kind == "openai":
            from selftrain.judge.api import ApiJudge

            _judges[name] = ApiJudge(model or None)
        else:
            raise InputError(f"unknown judge {name!r}; use local, openai or openai:<model>")
    return _judges[name]
