"""Numbers of one cycle from its answers and scores. No torch, no model: everything comes from stored rows."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from selftrain import jsonl

_SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]*")


def words(text: str) -> list[str]:
    """Words as a reader counts them: runs of letters, digits and apostrophes, lower case."""
    return re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*", text.lower())


def sentences(text: str) -> list[str]:
    """Sentences, ended by . ! ? or a line break, that hold at least one word."""
    return [s for s, _ in _sentences(text)]


def _sentences(text: str) -> list[tuple[str, int]]:
    return [(s, n) for s in _SENTENCE.findall(text) if (n := len(words(s)))]


def distinct2(texts: Iterable[str]) -> float | None:
    """Different word pairs over all word pairs, pooled over texts (Li et al. 2016); in (0, 1], None without pairs."""
    return _distinct2([words(text) for text in texts])


def _distinct2(spoken: Iterable[list[str]]) -> float | None:
    pairs = [pair for said in spoken for pair in zip(said, said[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else None


def clustered_mean(
    values: Sequence[float], clusters: Sequence[Any], level: float = 0.95
) -> tuple[float | None, float | None, float | None]:
    """Mean over clusters of the mean within, with a t interval over the cluster means: (mean, low, high).

    With one cluster the interval is None. Student's t on cluster means keeps its coverage at 12 clusters, where a percentile bootstrap does not.
    """
    groups: dict[Any, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        groups[cluster].append(value)
    means = np.array([np.mean(group) for group in groups.values()])
    if len(means) == 0:
        return None, None, None
    mean = float(means.mean())
    if len(means) == 1:
        return mean, None, None
    half = float(stats.t.ppf(0.5 + level / 2, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means)))
    return mean, mean - half, mean + half


def _mean(values: Iterable[float | None]) -> float | None:
    kept = [v for v in values if v is not None]
    return float(np.mean(kept)) if kept else None


def summarise(answers: Sequence[dict], scores: Sequence[dict], requested: int) -> dict[str, Any]:
    """One cycle's row: trait score with its interval, coherence, perplexity, lengths, distinct-2 and every count.

    answers: rows of eval.jsonl; scores: rows of scores/<judge>.jsonl with the same ids; requested: answers asked for.
    Perplexity is exp of nats a token, pooled over answers. Lengths are means over non-empty answers.
    """
    by_id = {row["id"]: row for row in scores}
    direct = [a for a in answers if a["set"] == "direct"]
    transfer = [a for a in answers if a["set"] != "direct"]

    def scored(rows: Sequence[dict], key: str) -> tuple[float | None, float | None, float | None]:
        kept = [(by_id[a["id"]][key], a["question_id"]) for a in rows if a["id"] in by_id and by_id[a["id"]][key] is not None]
        return clustered_mean([v for v, _ in kept], [q for _, q in kept])

    trait, low, high = scored(direct, "trait_score")
    texts = [a["answer"] for a in answers if a["answer"]]
    spoken = [words(t) for t in texts]
    status = Counter(row["status"] for row in scores)
    tokens = sum(a["nll_tokens"] for a in answers)
    return {
        "trait_score": trait,
        "trait_lo": low,
        "trait_hi": high,
        "trait_transfer": scored(transfer, "trait_score")[0],
        "coherence": scored(direct, "coherence")[0],
        "perplexity": math.exp(min(50.0, sum(a["nll"] for a in answers) / tokens)) if tokens else None,
        "n_words": _mean(len(said) for said in spoken),
        "sentence_words": _mean(n for t in texts for _, n in _sentences(t)),
        "distinct2": _distinct2(spoken),
        "n_requested": requested,
        "n_drawn": len(answers),
        "n_judged": status["judged"],
        "n_coherence": sum(row["coherence"] is not None for row in scores),
        "n_refused": status["refused"],
        "n_unparsed": status["unparsed"],
        "n_failed": status["failed"],
        "n_empty": status["empty"],
        "n_truncated": sum(not a["finished"] for a in answers),
    }


def tail_mean(history: Sequence[dict[str, float]], key: str, share: float = 0.2) -> float | None:
    """Mean of a logged value over the last share of steps; None where it was not logged."""
    values = [h[key] for h in history if key in h]
    tail = values[-max(1, int(len(values) * share)) :]
    return float(np.mean(tail)) if tail else None


def cycle_row(folder: Path, scores_file: str, requested: int) -> dict[str, Any]:
    """Numbers of one cycle folder under one judge's score file."""
    answers, scores = jsonl.read(folder / "eval.jsonl"), jsonl.read(folder / scores_file)
    row = summarise(answers, scores, requested)
    row |= {"judge": scores[0]["judge"], "judge_hash": scores[0]["judge_hash"]}
    path = folder / "train_log.json"
    log = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    row |= {"steps": log["steps"] if log else 0, "train_tokens": log["train_tokens"] if log else 0}
    row["saturated"] = bool(log and log["saturated"])
    if log and log["history"]:
        row["train_loss"] = tail_mean(log["history"], "loss")
        for name, key in (
            ("reward_margin", "rewards/margins"),
            ("reward_accuracy", "rewards/accuracies"),
            ("logp_chosen", "logps/chosen"),
            ("logp_rejected", "logps/rejected"),
        ):
            row[name] = tail_mean(log["history"], key)
    if answers and "kl" in answers[0]:
        row["kl_base"] = sum(a["kl"] for a in answers) / max(1, sum(a["nll_tokens"] for a in answers))
    return row
