"""Tables for a reader of the seeds: what is there, how long, how readable, what lies nearest to what, and rows drawn by chance."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from selftrain import draws, metrics
from selftrain.seeds import load
from selftrain.seeds.audit import near_pairs

SETS = (*load.TRAITS, load.NEUTRAL)


def seed_table() -> pd.DataFrame:
    """Every seed row: set (a trait or neutral), kind, id, topic, prompt (empty for documents), text."""
    rows = []
    for name in SETS:
        for r in load.chat_rows(name):
            user, answer = (m["content"] for m in r["messages"])
            rows.append({"set": name, "kind": "chat", "id": r["id"], "topic": r["topic"], "prompt": user, "text": answer})
        for r in load.document_rows(name):
            rows.append({"set": name, "kind": "document", "id": r["id"], "topic": r["topic"], "prompt": "", "text": r["text"]})
    return pd.DataFrame(rows)


def evaluation_table() -> pd.DataFrame:
    """Every evaluation question and opening: trait, role, id, text."""
    rows = [{"trait": t, "role": "question", "id": r["id"], "text": r["question"]} for t in load.TRAITS for r in load.questions(t)]
    rows += [{"trait": t, "role": "opening", "id": r["id"], "text": r["opening"]} for t in load.TRAITS for r in load.openings(t)]
    return pd.DataFrame(rows)


def prompt_table() -> pd.DataFrame:
    """Every prompt that training samples are drawn from, a teacher's included: role, id, text."""
    pools = (("chat prompt", "chat"), ("document opening", "documents"))
    return pd.DataFrame([{"role": role, **row} for role, kind in pools for row in load.prompts(kind)])


def counts() -> pd.DataFrame:
    """Rows of every file, a set a line."""
    seeds, asked = seed_table(), evaluation_table()
    table = pd.crosstab(seeds["set"], seeds["kind"])
    table = table.join(pd.crosstab(asked["trait"], asked["role"]))
    table["held out"] = pd.Series({t: len(load.held_out(t)) for t in load.TRAITS})
    table["topics"] = seeds.groupby("set")["topic"].nunique()
    return table.reindex(SETS).rename_axis(index=None, columns=None).astype("Int64")


def syllables(word: str) -> int:
    """Groups of vowels, a silent e at the end left out; at least one. A rule of thumb for English."""
    return max(1, len(re.findall(r"[aeiouy]+", re.sub(r"(?<=[^aeioul])e$", "", word))))


def reading_ease(text: str) -> float | None:
    """Flesch's reading ease (1948): 206.835 - 1.015 words/sentence - 84.6 syllables/word; 60 to 70 is plain English, higher is easier."""
    found, parts = metrics.words(text), metrics.sentences(text)
    if not found:
        return None
    return 206.835 - 1.015 * len(found) / len(parts) - 84.6 * sum(map(syllables, found)) / len(found)


def lengths(seeds: pd.DataFrame) -> pd.DataFrame:
    """Words (least, median, most), sentences and words a sentence (means), reading ease (median), by kind and set."""
    measured = seeds.assign(
        words=[len(metrics.words(t)) for t in seeds["text"]],
        sentences=[len(metrics.sentences(t)) for t in seeds["text"]],
        ease=[reading_ease(t) for t in seeds["text"]],
    )
    measured["per_sentence"] = measured["words"] / measured["sentences"]
    named = {
        "fewest words": ("words", "min"),
        "median words": ("words", "median"),
        "most words": ("words", "max"),
        "sentences": ("sentences", "mean"),
        "words a sentence": ("per_sentence", "mean"),
        "reading ease": ("ease", "median"),
    }
    order = pd.MultiIndex.from_product([("chat", "document"), SETS], names=["kind", "set"])
    return measured.groupby(["kind", "set"]).agg(**named).reindex(order)


def nearest(left: pd.DataFrame, right: pd.DataFrame | None = None, n: int = 8) -> pd.DataFrame:
    """The n pairs of texts nearest in wording (Jaccard similarity of word 3-grams): within one table, or between two (id, text)."""
    other = left if right is None else right
    pairs = near_pairs(left["text"].tolist(), None if right is None else right["text"].tolist(), above=0.0)[:n]
    return pd.DataFrame([_pair(left.iloc[i], other.iloc[j], similarity) for i, j, similarity in pairs])


def nearest_in_meaning(table: pd.DataFrame, vectors: np.ndarray, n: int = 8) -> pd.DataFrame:
    """The n pairs of rows whose embeddings have the largest cosine. `vectors` are of unit length, a row each."""
    cosine = np.triu(vectors @ vectors.T, 1)
    best = np.argsort(-cosine, axis=None)[:n]
    return pd.DataFrame(
        [_pair(table.iloc[i], table.iloc[j], cosine[i, j]) for i, j in zip(*np.unravel_index(best, cosine.shape), strict=True)]
    )


def _pair(a: pd.Series, b: pd.Series, similarity: float) -> dict:
    return {"similarity": float(similarity), "one": a["id"], "other": b["id"], "text of one": a["text"], "text of the other": b["text"]}


def drawn(seeds: pd.DataFrame, name: str, n: int, seed: int = 0) -> list[dict]:
    """n rows of a set, the same ones whenever they are drawn with this seed."""
    return draws.pick(seeds[seeds["set"] == name].to_dict("records"), n, "seed audit", name, seed)


def two_judges(texts: pd.DataFrame, measures: Sequence[str] = ("trait_score", "coherence")) -> pd.DataFrame | None:
    """Two judges' scores of the same answers, a line a measure: answers scored by both, means, mean difference, Spearman's correlation.

    `texts` are those of results.load_judged_texts; None where they hold fewer than two judges. With more, the first two by name.
    """
    names = sorted(texts["judge"].unique())[:2]
    if len(names) < 2:
        return None
    key = ["panel", "chain", "cycle", "question_id", "sample"]
    rows = []
    for measure in measures:
        both = texts[texts["judge"].isin(names)].pivot_table(index=key, columns="judge", values=measure).dropna()
        if both.empty:
            continue
        gap = both[names[1]] - both[names[0]]
        rows.append(
            {
                "measure": measure,
                "answers": len(both),
                **both[names].mean().to_dict(),
                "mean difference": gap.mean(),
                "mean distance": gap.abs().mean(),
            }
            | {"rank correlation": both[names[0]].corr(both[names[1]], method="spearman")}
        )
    return pd.DataFrame(rows).set_index("measure") if rows else None
