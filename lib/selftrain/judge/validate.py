"""The offline judge's error, measured on rows that neither it nor any chain has seen; the report stands beside the artefact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from selftrain import draws, jsonl, seeds
from selftrain.judge import Answer
from selftrain.judge.broken import KINDS, PARTLY, broken
from selftrain.judge.fit import as_answer, rows_of, with_likelihood
from selftrain.judge.local import LocalJudge

REPORT = Path(__file__).parent / "artefact" / "validation.json"
STRENGTH = {"low": 0, "half": 1, "high": 2}
BARS = {
    "auc": (0.95, "least"),
    "spearman": (0.85, "least"),
    "neutral": (10.0, "most"),
    "high": (80.0, "least"),
    "other_high": (20.0, "most"),
}
COHERENCE_BARS = {"auc": (0.98, "least"), "good_high_trait": (80.0, "least"), "loops": (20.0, "most"), "emoji": (20.0, "most")}


def met(value: float, bar: tuple[float, str]) -> bool:
    """Whether a value keeps a bar, (limit, least or most)."""
    return value >= bar[0] if bar[1] == "least" else value <= bar[0]


def trait_table(judge: LocalJudge, rows: dict[str, list[dict]], neutral: list[Answer]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(one row a trait: AUC of high rows against everything without the trait, rank correlation with strength, means; 7 x 7 mean score of
    each trait's high rows, rows, under each trait's judge, columns)."""
    features = {trait: judge.features([as_answer(row) for row in mine]) for trait, mine in rows.items()}
    plain = judge.features(neutral)
    level = {trait: np.array([row["level"] for row in mine]) for trait, mine in rows.items()}
    out, confusion = [], pd.DataFrame(index=list(rows), columns=list(rows), dtype=float)
    for trait in rows:
        scores = {other: judge.trait_scores(trait, features[other]) for other in rows}
        own, mine = scores[trait], level[trait]
        others = np.concatenate([scores[other][level[other] == "high"] for other in rows if other != trait])
        ordinary = judge.trait_scores(trait, plain)
        high = own[mine == "high"]
        without = np.concatenate([own[mine == "low"], others, ordinary])
        truth = np.r_[np.ones(len(high)), np.zeros(len(without))]
        out.append(
            {
                "trait": trait,
                "auc": roc_auc_score(truth, np.r_[high, without]),
                "spearman": spearmanr(own, [STRENGTH[name] for name in mine])[0],
                "neutral": ordinary.mean(),
                "high": high.mean(),
                "half": own[mine == "half"].mean(),
                "low": own[mine == "low"].mean(),
                "other_high": others.mean(),
            }
        )
        for other in rows:
            confusion.loc[other, trait] = scores[other][level[other] == "high"].mean()
    return pd.DataFrame(out), confusion


def coherence_report(judge: LocalJudge, rows: dict[str, list[dict]], n: int = 50) -> dict[str, float]:
    """n sound texts, half of them high-trait rows, against n wholly broken ones: AUC, and mean coherence of each kind."""
    pool = {
        name: [as_answer(r) for mine in rows.values() for r in mine if (r["level"] == "high") == (name == "high")]
        for name in ("high", "rest")
    }
    sound = draws.pick(pool["high"], n // 2, "validate sound high") + draws.pick(pool["rest"], n - n // 2, "validate sound rest")
    spare = draws.pick(pool["high"] + pool["rest"], len(KINDS) * (n // len(KINDS) + 6), "validate to break")
    ruined = broken(spare, "validate")
    whole = [pair for pair in ruined if pair[0] not in PARTLY][:n]
    part = [pair for pair in ruined if pair[0] in PARTLY][: n // 3]
    scored = judge.coherence_scores(with_likelihood([*sound, *(a for _, a in whole), *(a for _, a in part)]))
    good, bad, half = np.split(scored, [len(sound), len(sound) + len(whole)])
    by_kind = pd.Series(bad).groupby([kind for kind, _ in whole]).mean()
    return {
        "auc": float(roc_auc_score(np.r_[np.ones(len(good)), np.zeros(len(bad))], np.r_[good, bad])),
        "good_high_trait": float(good[: n // 2].mean()),
        "good_other": float(good[n // 2 :].mean()),
        "half_broken": float(half.mean()),
        "loops": float(max(by_kind["loop of a phrase"], by_kind["loop of a word"])),
        "emoji": float(by_kind["emoji string"]),
        **{f"mean of {kind}": float(value) for kind, value in by_kind.items()},
        "n_good": len(good),
        "n_broken": len(bad),
    }


def validate(path: Path = REPORT) -> dict:
    """Measure, and write the report with the hash of the artefact that was measured and the bars that were missed."""
    judge = LocalJudge()
    rows = rows_of("validate")
    neutral = [Answer(r["id"], r["messages"][0]["content"], r["messages"][1]["content"]) for r in seeds.chat_rows("neutral")]
    table, confusion = trait_table(judge, rows, neutral)
    coherence = coherence_report(judge, rows)
    missed = [
        f"{row['trait']}: {key} {row[key]:.2f}" for row in table.to_dict("records") for key, bar in BARS.items() if not met(row[key], bar)
    ]
    missed += [f"coherence: {key} {coherence[key]:.2f}" for key, bar in COHERENCE_BARS.items() if not met(coherence[key], bar)]
    report = {
        "judge_hash": judge.hash(""),
        "rows": jsonl.digest(rows),
        "traits": [{k: (v if isinstance(v, str) else round(float(v), 4)) for k, v in row.items()} for row in table.to_dict("records")],
        "confusion": {trait: {k: round(float(v), 2) for k, v in row.items()} for trait, row in confusion.T.to_dict().items()},
        "coherence": {k: round(float(v), 4) for k, v in coherence.items()},
        "missed": missed,
    }
    jsonl.write_text(path, json.dumps(report, indent=1) + "\n")
    return report
