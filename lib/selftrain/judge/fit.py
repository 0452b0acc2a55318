"""Fit the offline judge on the fitting half of seeds/_heldout and write its artefact. Run by hand, never by a study."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from selftrain import jsonl, seeds
from selftrain.judge import Answer
from selftrain.judge.broken import PARTLY, broken
from selftrain.judge.features import COHERENCE_FEATURES, coherence_features, trait_features
from selftrain.judge.local import ARTEFACT

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
    """Held-out rows of one half by trait."""
    return {trait: [row for row in seeds.held_out(trait) if row["split"] == split] for trait in traits}


def _calibration(decision: np.ndarray, target: np.ndarray, weight: np.ndarray) -> dict[str, list[float]]:
    """A monotone piecewise-linear map from decision values to scores, from cross-validated decisions; ends held at 1 and 100."""
    steps = IsotonicRegression(out_of_bounds="clip").fit(decision, target, sample_weight=weight)
    grid = np.quantile(decision, np.linspace(0, 1, 25))
    y = np.clip(np.convolve(np.pad(steps.predict(grid), 1, mode="edge"), np.ones(3) / 3, mode="valid"), 1, 100)
    low, high = grid[0] - (grid[-1] - grid[0]) * 0.1, grid[-1] + (grid[-1] - grid[0]) * 0.1
    x = [low, *grid, high]
    return {"x": [round(float(v), 5) for v in x], "y": [round(float(v), 3) for v in [max(1.0, y[0] - 1), *y, min(100.0, y[-1] + 2)]]}


def fit_trait(trait: str, rows: dict[str, list[dict]], features: dict[str, np.ndarray]) -> dict:
    """Coefficients and calibration of one trait: its own rows by strength, every other trait's rows as negatives."""
    x = np.vstack([features[t] for t in rows])
    level = [row["level"] if t == trait else "other" for t in rows for row in rows[t]]
    target = np.array([TARGETS[name] for name in level])
    counts = {name: level.count(name) for name in TARGETS}
    share = {"high": 0.35, "half": 0.15, "low": 0.15, "other": 0.35}
    weight = np.array([share[name] / counts[name] for name in level]) * len(level)
    folds = KFold(8, shuffle=True, random_state=0)
    best = None
    for alpha in (0.03, 0.1, 0.3, 1.0, 3.0):
        model = Ridge(alpha=alpha)
        decision = cross_val_predict(model, x, target, cv=folds, params={"sample_weight": weight})
        error = float(np.average((decision - target) ** 2, weights=weight))
        if best is None or error < best[0]:
            best = (error, alpha, decision)
    _, alpha, decision = best
    model = Ridge(alpha=alpha).fit(x, target, sample_weight=weight)
    return {
        "alpha": alpha,
        "coefficients": [round(float(c), 3) for c in model.coef_],
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


def fit(traits: Sequence[str] = seeds.TRAITS, path: Path = ARTEFACT) -> dict:
    """Fit everything and write the artefact, with the digests of the rows and models it was made from."""
    from selftrain.models import embedder_path
    from selftrain.store import digest_of

    rows = rows_of("fit", traits)
    answers = {trait: [as_answer(row) for row in rows[trait]] for trait in traits}
    features = {trait: trait_features(answers[trait]) for trait in traits}
    sound = [a for trait in traits for a in answers[trait]]
    ruined = broken(sound, "fit")
    likely = with_likelihood([*sound, *(a for _, a in ruined)])
    artefact = {
        "about": "The offline judge of selftrain: fitted by `python -m selftrain.judge fit` on the fitting half of seeds/_heldout; see lib/selftrain/judge/fit.py.",
        "rows": jsonl.digest(rows),
        "embedder": digest_of(embedder_path() / "model.safetensors") or digest_of(embedder_path()),
        "targets": TARGETS,
        "traits": {trait: fit_trait(trait, rows, features) for trait in traits},
        "coherence": fit_coherence(likely[: len(sound)], [(kind, a) for (kind, _), a in zip(ruined, likely[len(sound) :], strict=True)]),
    }
    assert all(math.isfinite(c) for part in artefact["traits"].values() for c in part["coefficients"])
    jsonl.write_text(
        path,
        json.dumps(artefact, indent=None, separators=(",", ":"), ensure_ascii=False)
        .replace('"traits"', '\n"traits"')
        .replace('"coherence":{', '\n"coherence":{')
        + "\n",
    )
    return artefact
