"""What amplification costs: trait against coherence, perplexity, length and variety, and scores over a coherence floor. Reads tables only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from selftrain.analysis import SETTINGS, arm
from selftrain.results import whole_scores
from selftrain.rules import SUSTAINED, Rule, Series, rates, series, verdicts

COSTS = ["coherence", "perplexity", "sentence_words", "n_words", "distinct2"]
FLOORS = (1, 25, 50, 60, 70, 80, 90)


def paths(rows: pd.DataFrame) -> pd.DataFrame:
    """Every complete chain's way through trait score and coherence, one row a (chain, cycle), base left out, with `arm`."""
    rows = rows[rows["complete"].astype(bool) & (rows["cycle"] >= 0)]
    return (
        rows.assign(arm=arm(rows))
        .sort_values(["chain", "cycle"])[["chain", "arm", *SETTINGS, "cycle", "trait_score", *COSTS]]
        .reset_index(drop=True)
    )


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
    ends = rows[rows["complete"].astype(bool) & (rows["cycle"] >= 0)].sort_values("cycle").groupby("chain", sort=False)
    first, last = ends.nth(0).set_index("chain"), ends.nth(-1).set_index("chain")
    table = verdicts(chains, rule).set_index("chain")
    table["trait_change"] = last["trait_score"] - first["trait_score"]
    for name in ("coherence", "distinct2"):
        table[f"{name}_change"] = last[name].astype(float) - first[name].astype(float)
    for name in ("perplexity", "sentence_words", "n_words"):
        table[f"{name}_ratio"] = last[name].astype(float) / first[name].astype(float)
    return table.reset_index()


def outruns(rows: pd.DataFrame, rise: float = 15.0, floor: float = 50.0, moved: float = 5.0) -> pd.DataFrame:
    """Does amplification outrun collapse? One row an arm over its chains, nulls left out.

    rose: chains that at some cycle stand `rise` points above cycle 0; sound: of those, at the peak of the trait coherence is at least
    `floor`; kept: of those, it still is at the last cycle and the trait still stands `rise` above; coherence_a_10: points of coherence changed
    for every ten points of trait on the way from cycle 0 to the peak, summed over the chains that rose by `moved` at least.
    """
    out = []
    rows = paths(rows)
    for names, group in rows[rows["null"] == "none"].groupby(["regime", "arm"], sort=False):
        rose = sound = kept = 0
        gained = paid = 0.0
        chains = [c.sort_values("cycle") for _, c in group.dropna(subset=["trait_score", "coherence"]).groupby("chain")]
        for chain in chains:
            start, peak, end = chain.iloc[0], chain.loc[chain["trait_score"].idxmax()], chain.iloc[-1]
            up = peak["trait_score"] - start["trait_score"]
            if up >= moved:
                gained, paid = gained + up, paid + peak["coherence"] - start["coherence"]
            if up >= rise:
                rose += 1
                sound += bool(peak["coherence"] >= floor)
                kept += bool(end["coherence"] >= floor and end["trait_score"] - start["trait_score"] >= rise)
        out.append(
            {
                **dict(zip(("regime", "arm"), names, strict=True)),
                "chains": len(chains),
                "rose": rose,
                "sound": sound,
                "kept": kept,
                "coherence_a_10": paid / gained * 10 if gained else float("nan"),
            }
        )
    return pd.DataFrame(out, columns=["regime", "arm", "chains", "rose", "sound", "kept", "coherence_a_10"])


def floored(rows: pd.DataFrame, scores: pd.DataFrame, floor: float) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Cycle rows and scores that count only answers whose coherence is at least `floor`, and the share of judged answers that is left
    (chain, cycle, kept). Chains of which not every score is kept in the tables are left out; a cycle with no such answer has no score."""
    rows, judged = rows[rows["complete"].astype(bool)], whole_scores(rows, scores)
    judged = judged[judged["trait_score"].notna() & judged["coherence"].notna()]
    some = judged[judged["coherence"] >= floor]
    direct = some[some["set"] == "direct"]
    means = direct.groupby(["chain", "cycle", "question_id"])["trait_score"].mean().groupby(["chain", "cycle"]).mean()
    index = pd.MultiIndex.from_frame(rows[["chain", "cycle"]])
    n, left = (t.groupby(["chain", "cycle"]).size().reindex(index) for t in (judged, some))
    share = pd.DataFrame({"kept": (left.fillna(0) / n).to_numpy()}, index=index).reset_index()
    changed = rows.assign(trait_score=means.reindex(index).to_numpy(), n_judged=left.fillna(0).to_numpy(), trait_lo=np.nan, trait_hi=np.nan)
    whole = changed.groupby("chain")["chain"].transform("size") == share.groupby("chain")["kept"].transform("count").to_numpy()
    return changed[whole], some, share[whole.to_numpy()]


def by_floor(rows: pd.DataFrame, scores: pd.DataFrame, floors: Sequence[float] = FLOORS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every conclusion as a function of a floor on the coherence of the text that counts: (changes, verdicts).

    changes: one row a (chain, floor) with the change of the trait score from cycle 0 to the last cycle and the share of the last cycle's
    answers kept; verdicts: `rules.rates` of the default rule by regime, arm and floor.
    """
    changes, said = [], []
    for floor in floors:
        some, answers, share = floored(rows, scores, floor)
        if some.empty:
            continue
        some = some.merge(share, on=["chain", "cycle"]).assign(arm=lambda t: arm(t))
        ends = some[some["cycle"] >= 0].sort_values("cycle").groupby("chain")
        first, last = ends.head(1).set_index("chain"), ends.tail(1).set_index("chain")
        table = last[["regime", "arm", "null", "kept"]].assign(change=last["trait_score"] - first["trait_score"], floor=float(floor))
        changes.append(table.reset_index())
        said.append(rates(verdicts(series(some, answers)), ("regime", "arm")).assign(floor=float(floor)))
    if not changes:
        return pd.DataFrame(columns=["chain", "regime", "arm", "null", "kept", "change", "floor"]), pd.DataFrame()
    return pd.concat(changes, ignore_index=True), pd.concat(said, ignore_index=True)
