"""The offline judge: a committed artefact of coefficients and calibrations. It is applied here and never refitted at run time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from selftrain import jsonl
from selftrain.errors import InputError
from selftrain.judge import EMPTY, Answer, Judge, Score
from selftrain.judge.features import coherence_features, term_weights, trait_features

TERM_SCALE = 1.5  # how much words weigh against embeddings; the artefact is fitted with it
ARTEFACT = Path(__file__).parent / "artefact" / "local.json"


class LocalJudge(Judge):
    """Scores from sentence embeddings and words (trait) and from likelihood, repetition and sentence statistics (coherence); floats in [1, 100].

    Both are linear in their features, then mapped to the 1-100 scale by a monotone piecewise-linear calibration.
    """

    name = "local"

    def __init__(self, path: Path = ARTEFACT):
        if not path.exists():
            raise InputError(f"{path.name}: the offline judge's artefact is missing; restore it from the repository")
        self._artefact = json.loads(path.read_text(encoding="utf-8"))
        self._hash = jsonl.digest(self._artefact)

    def hash(self, trait: str) -> str:
        return self._hash

    def score(self, trait: str, answers: Sequence[Answer], progress: Callable[[int], None] | None = None) -> list[Score]:
        if trait not in self._artefact["traits"]:
            raise InputError(
                f"the offline judge knows {', '.join(self._artefact['traits'])}, not {trait!r}; use an API judge for your own trait"
            )
        full = [a for a in answers if a.answer.strip()]
        if not full:
            return [EMPTY] * len(answers)
        values = dict(
            zip(
                (id(a) for a in full),
                zip(self.trait_scores(trait, self.features(full)), self.coherence_scores(full), strict=True),
                strict=True,
            )
        )
        if progress:
            progress(len(answers))
        return [Score(round(float(values[id(a)][0]), 2), round(float(values[id(a)][1]), 2)) if id(a) in values else EMPTY for a in answers]

    def across(self, traits: Sequence[str], answers: Sequence[Answer]) -> dict[str, list[float | None]]:
        features = self.features([a for a in answers if a.answer.strip()])
        out = {}
        for trait in traits:
            values = iter(self.trait_scores(trait, features))
            out[trait] = [round(float(next(values)), 2) if a.answer.strip() else None for a in answers]
        return out

    def features(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n, 768 + terms): embeddings of the answer and of prompt with answer, and the answer's words and word pairs."""
        return np.hstack([trait_features(answers), TERM_SCALE * term_weights([a.answer for a in answers], self._artefact["terms"])])

    def trait_scores(self, trait: str, features: np.ndarray) -> np.ndarray:
        """Scores in [1, 100] of rows of `features`."""
        part = self._artefact["traits"][trait]
        decision = features @ np.array(part["coefficients"]) + part["intercept"]
        return np.interp(decision, part["calibration"]["x"], part["calibration"]["y"])

    def coherence_scores(self, answers: Sequence[Answer]) -> np.ndarray:
        """Coherence in [1, 100]; a feature that is missing counts as average."""
        part = self._artefact["coherence"]
        rows = np.array([coherence_features(a) for a in answers], dtype=float)
        standard = np.nan_to_num((rows - np.array(part["mean"])) / np.array(part["scale"]), nan=0.0)
        return np.interp(standard @ np.array(part["coefficients"]) + part["intercept"], part["calibration"]["x"], part["calibration"]["y"])
