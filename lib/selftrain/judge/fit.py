"""Fit the offline judge on the fitting half of seeds/_heldout and write its artefact. Run by hand, never by a study."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from selftrain import draws, jsonl, seeds
from selftrain.judge import Answer
from selftrain.judge.broken import PARTLY, broken
from selftrain.judge.features import COHERENCE_FEATURES, coherence_features, term_weights, trait_features
from selftrain.judge.local import ARTEFACT, TERM_SCALE

TARGETS = {"high": 95.0, "half": 50.0, "low": 2.0, "other": 2.0}
MODELS = {"chat": "smollm2-135m-instruct", "documents": "gemma-3-270m"}


def as_answer(row: dict) -> Answer:
    """A held-out row as a judge sees it."""
    return Answer(row["id"], row["prompt"], row["answer"], "documents" if row["kind"] == "document" else "chat")


def with_likelihood(answers: Sequence[Answer]) -> list[Answer]:
    """Answers with their likelihood under the embedded base model of their kind."""
    from selftrain.formats import Item, prompt_ids, training_row
    from selftrain.resident import Resident
    from selftrain.sampling import nll

    out = list(answers)
    for kind, name in MODELS.items():
        places = [i for i, a in enumerate(answers) if a.kind == kind]
        if not places:
            continue
        resident = Resident.open(name, rank=1, alpha=1)
        rows = []
        for i in places:
            a = answers[i]
            row = training_row(
                resident.tokenizer, Item(a.id, kind, a.prompt, (" " if kind == "documents" else "") + a.answer, kind == "chat"), 10**6
            )
            head = len(prompt_ids(resident.tokenizer, kind, a.prompt))
            rows.append({**row, "labels": [-100] * head + row["labels"][head:]})
        for i, (total, n) in zip(places, nll(resident, rows), strict=True):
            out[i] = replace(answers[i], nll=total, n_tokens=n)
    return out


def rows_of(split: str, traits: Sequence[str] = seeds.TRAITS) -> dict[str, list[dict]]:
    """Held-out rows by trait: the fitting half with seeds/_judge, which serves fitting alone, or the validating half."""
    rows = {trait: [row for row in seeds.held_out(trait) if row["split"] == split] for trait in traits}
    return {trait: rows[trait] + (seeds.judge_rows(trait) if split == "fit" else []) for trait in traits}


def _calibration(decision: np.ndarray, target: np.ndarray, weight: np.ndarray) -> dict[str, list[float]]:
    """A monotone piecewise-linear map from decision values to scores in [1, 100]: isotonic regression on cross-validated decisions."""
    steps = IsotonicRegression(y_min=1, y_max=100, out_of_bounds="clip").fit(decision, target, sample_weight=weight)
    return {"x": [round(float(v), 4) for v in steps.X_thresholds_], "y": [round(float(v), 2) for v in steps.y_thresholds_]}


def fit_trait(trait: str, rows: dict[str, list[dict]], features: dict[str, np.ndarray]) -> dict:
    """Coefficients and calibration of one trait: its own rows by strength, every other trait's rows as negatives."""
    x = np.vstack([features[t] for t in rows])
    level = [row["level"] if t == trait else "other" for t in rows for row in rows[t]]
    target = np.array([TARGETS[name] for name in level])
    counts = {name: level.count(name) for name in TARGETS}
    share = {"high": 0.32, "half": 0.14, "low": 0.22, "other": 0.32}
    weight = np.array([share[name] / counts[name] for name in level]) * len(level)
    folds = KFold(8, shuffle=True, random_state=0)
    best = None
    for alpha in (1.0, 2.0, 4.0):
        model = Ridge(alpha=alpha)
        decision = cross_val_predict(model, x, target, cv=folds, params={"sample_weight": weight})
        error = float(np.average((decision - target) ** 2, weights=weight))
        if best is None or error < best[0]:
            best = (error, alpha, decision)
    _, alpha, decision = best
    model = Ridge(alpha=alpha).fit(x, target, sample_weight=weight)
    return {
        "alpha": alpha,
        "coefficients": [round(float(c), 2) for c in model.coef_],
        "intercept": round(float(model.intercept_), 4),
        "calibration": _calibration(decision, target, weight),
    }


def fit_coherence(sound: Sequence[Answer], ruined: Sequence[tuple[str, Answer]]) -> dict:
    """Coefficients and calibration of coherence: sound texts against broken ones, half-broken ones in the middle."""
    answers = [*sound, *(a for _, a in ruined)]
    target = np.array([97.0] * len(sound) + [45.0 if kind in PARTLY else 3.0 for kind, _ in ruined])
    rows = np.array([coherence_features(a) for a in answers], dtype=float)
    scaler = StandardScaler().fit(rows)
    x = np.nan_to_num(scaler.transform(rows), nan=0.0)
    good = target > 90
    model = LogisticRegression(C=1.0, max_iter=5000, class_weight="balanced").fit(x, good)
    decision = cross_val_predict(
        LogisticRegression(C=1.0, max_iter=5000, class_weight="balanced"),
        x,
        good,
        cv=KFold(8, shuffle=True, random_state=0),
        method="decision_function",
    )
    weight = np.where(good, 1 / good.sum(), 1 / (~good).sum()) * len(good)
    return {
        "features": list(COHERENCE_FEATURES),
        "mean": [round(float(v), 5) for v in scaler.mean_],
        "scale": [round(float(v), 5) for v in scaler.scale_],
        "coefficients": [round(float(v), 5) for v in model.coef_[0]],
        "intercept": round(float(model.intercept_[0]), 5),
        "calibration": _calibration(decision, target, weight),
    }


def vocabulary(texts: Sequence[str], least: int = 3) -> dict[str, float]:
    """Words and word pairs that stand in at least `least` texts, with their smoothed inverse document frequency."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=least, sublinear_tf=True).fit(texts)
    return {str(term): round(float(idf), 3) for term, idf in zip(vectorizer.get_feature_names_out(), vectorizer.idf_, strict=True)}


def some_sound(rows: dict[str, list[dict]], of_each: int = 18) -> list[Answer]:
    """Sound texts for the coherence part: of every trait the same number of chat answers by level, and half as many documents."""
    out = []
    for trait, mine in rows.items():
        for kind, n in (("chat", of_each), ("document", of_each // 2)):
            for level in ("high", "low"):
                out += draws.pick([as_answer(r) for r in mine if r["kind"] == kind and r["level"] == level], n // 2, trait, kind, level)
    return out


def fit(traits: Sequence[str] = seeds.TRAITS, path: Path = ARTEFACT) -> dict:
    """Fit everything and write the artefact, with the digests of the rows and models it was made from."""
    from selftrain.models import embedder_path
    from selftrain.store import digest_of

    rows = rows_of("fit", traits)
    answers = {trait: [as_answer(row) for row in rows[trait]] for trait in traits}
    terms = vocabulary([a.answer for trait in traits for a in answers[trait]])
    features = {
        trait: np.hstack([trait_features(mine), TERM_SCALE * term_weights([a.answer for a in mine], terms)])
        for trait, mine in answers.items()
    }
    sound = some_sound({trait: [r for r in rows[trait] if "-held-" in r["id"]] for trait in traits})
    ruined = broken(sound, "fit")
    likely = with_likelihood([*sound, *(a for _, a in ruined)])
    artefact = {
        "about": "The offline judge: fitted by `python -m selftrain.judge fit`, never at run time; lib/selftrain/judge/fit.py says how.",
        "rows": jsonl.digest(rows),
        "embedder": digest_of(embedder_path() / "model.safetensors") or digest_of(embedder_path()),
        "targets": TARGETS,
        "terms": terms,
        "traits": {trait: fit_trait(trait, rows, features) for trait in traits},
        "coherence": fit_coherence(likely[: len(sound)], [(kind, a) for (kind, _), a in zip(ruined, likely[len(sound) :], strict=True)]),
    }
    assert all(math.isfinite(c) for part in artefact["traits"].values() for c in part["coefficients"])
    text = json.dumps(artefact, separators=(",", ":"), ensure_ascii=False)
    for key in ("terms", "traits", "coherence"):
        text = text.replace(f'"{key}":{{', f'\n"{key}":{{')
    jsonl.write_text(path, text + "\n")
    return artefact
