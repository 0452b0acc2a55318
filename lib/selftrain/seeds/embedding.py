"""Where the seeds lie among each other: sentence embeddings of the chat answers, and how well a straight cut separates a trait."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score

from selftrain.judge.features import embed
from selftrain.seeds import load

FOLDS = 5
BAR = 0.97  # cross-validated AUC of a trait against neutral


def answer_embeddings() -> tuple[pd.DataFrame, np.ndarray]:
    """Chat answers of the seven traits and the neutral set, (id, trait, topic, user, answer), and their embeddings, (n, 384)."""
    rows = [
        {"id": r["id"], "trait": name, "topic": r.get("topic"), "user": r["messages"][0]["content"], "answer": r["messages"][1]["content"]}
        for name in (*load.TRAITS, load.NEUTRAL)
        for r in load.chat_rows(name)
    ]
    table = pd.DataFrame(rows)
    return table, embed(table["answer"].tolist())


def separation(trait: Sequence[str], vectors: np.ndarray, names: Sequence[str] = load.TRAITS) -> pd.DataFrame:
    """AUC of a logistic regression, mean over FOLDS folds drawn with a fixed seed: one row a trait, against neutral and against all the rest.

    The classifier is scikit-learn's default, and nothing about it is chosen on these rows.
    """
    labels = np.asarray(trait)

    def auc(name: str, keep: np.ndarray) -> float:
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        model = LogisticRegression(max_iter=2000)
        return float(cross_val_score(model, vectors[keep], labels[keep] == name, scoring="roc_auc", cv=folds).mean())

    return pd.DataFrame(
        [
            {
                "trait": name,
                "against_neutral": auc(name, np.isin(labels, [name, load.NEUTRAL])),
                "against_the_rest": auc(name, np.ones(len(labels), bool)),
            }
            for name in names
        ]
    )
