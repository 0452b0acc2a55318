"""The API judge: trait and coherence by separate calls to any OpenAI-compatible endpoint, scores read from replies that are kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from selftrain import jsonl, seeds
from selftrain.judge import EMPTY, Answer, Judge, Score
from selftrain.judge.cache import Replies, folder_of, replies
from selftrain.judge.calls import Call, Calls
from selftrain.judge.prompts import QUESTIONS, prompt_hash, request
from selftrain.judge.replies import PARSER, Reading, verdict
from selftrain.judge.settings import Settings, api_key, read


class ApiJudge(Judge):
    """Scores by a language model; integers from 1 to 100. No key is needed for texts whose replies are kept already.

    `repeat` names a second, independent opinion of the same model on the same texts. Rows of equal prompt and answer share their replies.
    """

    def __init__(self, model: str | None = None, settings: Settings | None = None, repeat: int = 0, study: Path | None = None):
        self.settings, self.repeat, self.study = settings or read(model), repeat, study
        self.name = f"openai:{self.settings.model}"

    def for_study(self, folder: Path, max_usd: float | None = None) -> ApiJudge:
        """This judge, keeping its replies under a study's folder; the lower of `max_usd` and JUDGE_MAX_USD caps its spending."""
        caps = [cap for cap in (max_usd, self.settings.max_usd) if cap is not None]
        return ApiJudge(settings=replace(self.settings, max_usd=min(caps, default=None)), repeat=self.repeat, study=Path(folder))

    def ready(self) -> None:
        """InputError where a call could not even be tried: no key, or a cap without a price."""
        api_key()
        Calls(self.settings, self.replies)

    @property
    def replies(self) -> Replies:
        """The kept replies."""
        return replies(folder_of(self.study), self.settings.model)

    def hash(self, trait: str) -> str:
        s = self.settings
        return jsonl.digest([s.model, s.endpoint, [prompt_hash(q) for q in QUESTIONS], seeds.rubric(trait).hash, PARSER, self.repeat])

    def keys(self, trait: str) -> Callable[[str, Answer], str]:
        """What a reply is kept under, by question and text: all that can change it. Coherence is the same question whatever the trait."""
        rubric = {"trait": seeds.rubric(trait).hash, "coherence": ""}
        heads = {q: [self.settings.model, self.settings.endpoint, q, rubric[q], prompt_hash(q), self.repeat] for q in QUESTIONS}
        return lambda q, a: jsonl.digest(
            [*heads[q], a.kind, *(part.encode("utf-8", "replace").decode() for part in (a.prompt, a.answer))], 32
        )

    def score(self, trait: str, answers: Sequence[Answer], progress: Callable[[int], None] | None = None) -> list[Score]:
        """One Score an answer. `progress(n)` is called in the caller's thread when n more answers have both their outcomes."""
        rubric, key_of = seeds.rubric(trait).text, self.keys(trait)
        keys = [{q: key_of(q, a) for q in QUESTIONS} if a.answer.strip() else {} for a in answers]
        store = self.replies
        store.refresh()
        calls: dict[str, Call] = {}
        waiting: dict[str, list[int]] = defaultdict(list)  # rows by the key that they still wait for
        for i, (answer, own) in enumerate(zip(answers, keys, strict=True)):
            for question, key in own.items():
                if key in calls or verdict(store.get(key)) is None:
                    calls[key] = Call(
                        question, trait if question == "trait" else None, partial(request, self.settings.model, question, rubric, answer)
                    )
                    waiting[key].append(i)
        open_ = Counter(i for rows in waiting.values() for i in rows)

        def settled(key: str) -> None:
            open_.subtract(waiting[key])
            if progress and (n := sum(open_[i] == 0 for i in waiting[key])):
                progress(n)

        if progress and len(answers) > len(open_):
            progress(len(answers) - len(open_))
        failed = Calls(self.settings, store).run(calls, settled) if calls else {}
        return [_score({q: self._outcome(store, key, failed) for q, key in own.items()}) if own else EMPTY for own in keys]

    @staticmethod
    def _outcome(store: Replies, key: str, failed: dict[str, str]) -> Reading:
        return verdict(store.get(key)) or Reading(None, "failed", failed.get(key, "not asked"))


def _score(outcomes: dict[str, Reading]) -> Score:
    """Both outcomes as one row: the status is the trait's; a coherence that is missing is named in the reason."""
    trait, coherence = (outcomes[q] for q in QUESTIONS)
    reasons = [] if trait.status == "judged" else [f"trait {trait.status}: {trait.reason}"]
    reasons += [] if coherence.status == "judged" else [f"coherence {coherence.status}: {coherence.reason}"]
    return Score(trait.score, coherence.score, trait.status, "; ".join(reasons))
