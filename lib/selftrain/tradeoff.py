"""What amplification costs: trait against coherence, perplexity, length and variety, and scores over a coherence floor. Reads tables only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from selftrain.analysis import SETTINGS, arm
from selftrain.rules import SUSTAINED, Rule, Series, verdicts

COSTS = ["coherence", "perplexity", "sentence_words", "n_words", "distinct2"]
FLOORS = (1, 25, 50, 60, 70, 80, 90)


def paths(rows: pd.DataFrame) -> pd.DataFrame:
    """Every complete chain's way through trait score and coherence, one row a (chain, cycle), base left out, with `arm`."""
    rows = rows[rows["complete"] & (rows["cycle"] >= 0)]
    return rows.assign(arm=arm(rows)).sort_values(["chain", "cycle"])[["chain", "arm", *SETTINGS, "cycle", "trait_score", *COSTS]].reset_index(drop=True)


def pareto(points: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other row beats in both trait score and coherence, by rising trait score."""
    kept, best = [], -np.inf
    for place, row in points.sort_values(["trait_score", "coherence"], ascending=False).iterrows():
        if row["coherence"] > best:
            kept.append(place)
            best = row["coherence"]
    return points.loc[kept[::-1]]


def costs(rows: pd.DataFrame, chains: Iterable[Series], rule: Rule = SUSTAINED) -> pd.DataFrame:
    """One row a chain: verdict, change of the trait from cycle 0 to the last cycle, and what changed with it.

    coherence and distinct2 as differences, perplexity, words a sentence and words an answer as ratios, last cycle over cycle 0.
    """
    ends = rows[rows["complete"] & (rows["cycle"] >= 0)].sort_values("cycle").groupby("chain", sort=False)
    first, last = ends.nth(0).set_index("chain"), ends.nth(-1).set_index("chain")
    table = verdicts(chains, rule).set_index("chain")
    table["trait_change"] = last["trait_score"] - first["trait_score"]
    for name in ("coherence", "distinct2"):
        table[f"{name}_change"] = last[name].astype(float) - first[name].astype(float)
    for name in ("perplexity", "sentence_words", "n_words"):
        table[f"{name}_ratio"] = last[name].astype(float) / first[name].astype(float)
    return table.reset_index()


def outruns(rows: pd.DataFrame, rise: float = 15.0, floor: float = 50.0) -> pd.DataFrame:
    """Does amplification outrun collapse? One row an arm over its chains.

    rose: chains that at some cycle stand `rise` points above cycle 0; sound: of those, at the peak of the trait coherence is at least
    `floor`; kept: of those, it still is at the last cycle and the trait still stands `rise` above; coherence_a_10: mean coherence change from
    cycle 0 to the peak for every 10 points that the trait rose, over chains that rose by a point at least.
    """
    out = []
    rows = paths(rows)
    for names, group in rows.groupby(["regime", "arm"], sort=False):
        rose = sound = kept = 0
        prices = []
        chains = [c.sort_values("cycle") for _, c in group.groupby("chain")]
        for chain in chains:
            peak = chain.loc[chain["trait_score"].idxmax()]
            up = peak["trait_score"] - chain["trait_score"].iloc[0]
            if up >= 1:
                prices.append((peak["coherence"] - chain["coherence"].iloc[0]) / up * 10)
            if up >= rise:
                rose += 1
                sound += bool(peak["coherence"] >= floor)
                end = chain.iloc[-1]
                kept += bool(end["coherence"] >= floor and end["trait_score"] - chain["trait_score"].iloc[0] >= rise)
        out.append(
            {
                **dict(zip(("regime", "arm"), names, strict=True)),
                "chains": len(chains),
                "rose": rose,
                "sound": sound,
                "kept": kept,
                "coherence_a_10": float(np.mean(prices)) if prices else float("nan"),
            }
        )
    return pd.DataFrame(out)


def by_floor(rows: pd.DataFrame, scores: pd.DataFrame, floors: Sequence[float] = FLOORS) -> pd.DataFrame:
    """Trait score of the text whose coherence is at least a floor, with the share of judged text kept: one row a (chain, cycle, floor).

    Mean over questions of the mean over kept answers; a cycle with no kept answer has no score.
    """
    kept = scores[(scores["set"] == "direct") & scores["trait_score"].notna() & scores["coherence"].notna()]
    n = kept.groupby(["chain", "cycle"]).size()
    out = []
    for floor in floors:
        some = kept[kept["coherence"] >= floor]
        means = some.groupby(["chain", "cycle", "question_id"])["trait_score"].mean().groupby(["chain", "cycle"]).mean()
        share = some.groupby(["chain", "cycle"]).size() / n
        out.append(pd.DataFrame({"trait_score": means.reindex(n.index), "kept": share.reindex(n.index).fillna(0.0), "floor": float(floor)}).reset_index())
    names = rows.drop_duplicates("chain").assign(arm=lambda t: arm(t))[["chain", "arm", *SETTINGS]]
    return pd.concat(out, ignore_index=True).merge(names, on="chain")
