"""What judging a study will take, from its study file alone: no model, no GPU, no key."""

from __future__ import annotations

from dataclasses import dataclass

from selftrain import jsonl, paths, seeds
from selftrain import study as studies
from selftrain.config import ChainConfig
from selftrain.judge import Answer
from selftrain.judge.api import ApiJudge
from selftrain.judge.calls import OUTPUT_TOKENS, rough_tokens
from selftrain.judge.prices import cost, price
from selftrain.judge.prompts import QUESTIONS, request
from selftrain.regimes import evaluation

# What a cycle 0 does not depend on: chains that differ only here share it, its answers and their scores.
_LATER = {
    "study",
    "panel",
    "preset",
    "seed_file",
    "init",
    "n_sampled",
    "last_cycle",
    "epochs",
    "lr",
    "schedule",
    "match_steps",
    "dose_matched",
    "restart_at",
    "mix",
    "coherence_filter",
    "max_new_tokens",
    "temperature",
    "branch",
    "reference",
    "beta",
}
_BASE = ("model", "trait", "eval_max_new_tokens", "eval_temperature", "top_p", "top_k", "n_questions", "n_answers")


@dataclass(frozen=True)
class Need:
    """What one panel asks of its judge. Every answer counts at its full length: an upper bound, but for the four characters a token."""

    panel: str
    judge: str
    chains: int
    texts: int
    calls: int
    input_tokens: int
    output_tokens: int
    usd: float | None  # None without a price


def parts(config: ChainConfig) -> list[tuple[str, int, int]]:
    """(what it is, answers, tokens an answer) of everything a chain has judged; equal names are the same answers."""
    c, evaluated = config, len(evaluation(config)) * config.n_answers
    keys = c.values()
    first = {k: v for k, v in keys.items() if k not in _LATER} | (
        {"beta": c.beta, "lr": c.lr, "schedule": c.schedule} if c.cycle0 == "dpo" else {}
    )
    found = [
        (jsonl.digest(["base", c.kind, [keys[k] for k in _BASE], c.judge]), evaluated, c.eval_max_new_tokens),
        (jsonl.digest(["cycle 0", c.kind, first]), evaluated, c.eval_max_new_tokens),
    ]
    for cycle in range(1, c.last_cycle + 1):
        found.append((f"{c.panel}/{c.chain_id}/{cycle}", evaluated, c.eval_max_new_tokens))
        if c.coherence_filter is not None:
            found.append((f"{c.panel}/{c.chain_id}/{cycle}/samples", c.n_sampled, c.max_new_tokens))
    return found


def _overhead(judge: ApiJudge, config: ChainConfig) -> int:
    """Input tokens of both calls about a text, but for the text."""
    asked = evaluation(config)
    prompt = " " * (sum(len(p["text"]) for p in asked) // len(asked))
    rubric = seeds.rubric(config.trait).text
    return sum(rough_tokens(request(judge.settings.model, q, rubric, Answer("", prompt, "", config.kind))) for q in QUESTIONS)


def estimate(study: studies.Study, judge_name: str | None = None, available: bool = True) -> list[Need]:
    """One Need a panel and judge; `judge_name` asks for another judge than the study file's. What chains share is counted once.

    `available=False` counts also what the rows under seeds/ do not suffice for yet.
    """
    needs, seen = [], set()
    for panel, configs in studies.chains_of(study, available).items():
        for name in dict.fromkeys(judge_name or c.judge for c in configs):
            own = [c for c in configs if judge_name or c.judge == name]
            judge = ApiJudge(name.partition(":")[2] or None) if name.partition(":")[0] == "openai" else None
            texts = tokens = 0
            for config in own:
                overhead = _overhead(judge, config) if judge else 0
                for part, answers, length in parts(config):
                    if part not in seen:
                        seen.add(part)
                        texts += answers
                        tokens += answers * (overhead + len(QUESTIONS) * length) if judge else 0
            calls = len(QUESTIONS) * texts if judge else 0
            of = price(judge.settings.model) if judge else (0.0, 0.0)
            needs.append(
                Need(
                    panel,
                    judge.name if judge else name,
                    len(own),
                    texts,
                    calls,
                    tokens,
                    calls * OUTPUT_TOKENS,
                    cost((tokens, calls * OUTPUT_TOKENS), of) if of else None,
                )
            )
    return needs


def spent(study: studies.Study, need: Need) -> tuple[int, int]:
    """(input, output) tokens that a study's kept replies of a judge have taken so far."""
    if not need.judge.startswith("openai:"):
        return 0, 0
    judge = ApiJudge(need.judge.partition(":")[2]).for_study(paths.study_folder(study.name))
    judge.replies.refresh()
    return judge.replies.tokens(judge.settings.model)
