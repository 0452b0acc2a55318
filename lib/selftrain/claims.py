"""The paper's summary as claims that stored chains can hold up or not: an estimate with its interval against a named bound, each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from selftrain import analysis, noise, rules, tradeoff

RARE = 0.10  # an amplification rate below this is rare; the paper counts 12 of 270 in SDF
RELIABLE = 0.50  # one above this is reliable
HOLDS, FAILS, UNDECIDED, NOT_TESTED = "holds", "does not hold", "undecided", "not tested"


@dataclass(frozen=True)
class Evidence:
    """An estimate with its 95 % interval (NaN where it cannot be had), the chains or pairs counted, and the clusters that the interval is over.

    Chains that share a cycle 0 (trait, model, N, training seed and how cycle 0 was trained) stand or fall together: they are one cluster.
    """

    estimate: float
    low: float
    high: float
    n: int
    clusters: int
    unit: str = "chains"


NOTHING = Evidence(float("nan"), float("nan"), float("nan"), 0, 0)
CLUSTER = ["study", "trait", "model", "cycle0", "null", "n_seed", "seed"]


@dataclass(frozen=True)
class Data:
    """Everything a claim may look at: cycle rows, verdict rows under the default rule, and costs by chain."""

    rows: pd.DataFrame
    chains: list[rules.Series]
    verdicts: pd.DataFrame
    costs: pd.DataFrame

    @classmethod
    def of(cls, rows: pd.DataFrame, scores: pd.DataFrame) -> Data:
        """From the rows of results.load and results.load_scores."""
        chains = rules.series(rows, scores)
        return cls(rows, chains, rules.verdicts(chains), tradeoff.costs(rows, chains))


@dataclass(frozen=True)
class Claim:
    """One claim: the sentence, the quantity, and the side of `bound` on which the claim says it lies."""

    key: str
    said: str
    quantity: str
    side: Literal["above", "below"]
    bound: float
    evidence: Callable[[Data], Evidence]
    form: str = "{:.2f}"

    def verdict(self, found: Evidence) -> str:
        """holds where the whole interval lies on the claimed side, does not hold where it lies on the other, else undecided."""
        if not found.n:
            return NOT_TESTED
        if np.isnan(found.low) or np.isnan(found.high):
            return UNDECIDED
        if (found.high < self.bound) if self.side == "below" else (found.low > self.bound):
            return HOLDS
        if (found.low > self.bound) if self.side == "below" else (found.high < self.bound):
            return FAILS
        return UNDECIDED


def _arm(table: pd.DataFrame, regime: str, arm: str) -> pd.DataFrame:
    return table[(table["regime"] == regime) & (table["arm"] == arm)]


def _clusters(table: pd.DataFrame) -> pd.Series:
    """A name for the cycle 0 of each row of verdicts or costs."""
    return table[CLUSTER].astype(str).agg("|".join, axis=1)


def _share(hits: pd.Series, clusters: pd.Series, unit: str = "chains") -> Evidence:
    """Share of hits, each cluster weighing alike, with Clopper and Pearson's interval for as many trials as there are clusters."""
    if hits.empty:
        return NOTHING
    by_cluster = hits.astype(float).groupby(clusters.to_numpy()).mean()
    n = len(by_cluster)
    k = float(by_cluster.sum())
    return Evidence(k / n, *rules.exact_interval(k, n), len(hits), n, unit)


def _rate(regime: str, arm: str, floor: bool = True) -> Callable[[Data], Evidence]:
    """Share of an arm's countable chains that amplify by point estimate under the default rule, or under the rule without its floor on coherence."""

    def found(data: Data) -> Evidence:
        some = _arm(data.verdicts if floor else _without_floor(data), regime, arm)
        some = some[some["verdict"].isin(rules.COUNTED)]
        return _share(some["point"], _clusters(some)) if len(some) else NOTHING

    return found


def _mean(values: pd.Series, clusters: pd.Series, unit: str = "chains") -> Evidence:
    """Mean over clusters of the mean within, with Student's t interval over clusters."""
    known = values.notna().to_numpy()
    if not known.any():
        return NOTHING
    some = analysis.mean_interval(values[known].astype(float).groupby(clusters.to_numpy()[known]).mean())
    return Evidence(some["mean"], some["lo"], some["hi"], int(known.sum()), int(some["n"]), unit)


def _measure(column: str, regime: str, arm: str, ratio: bool = False) -> Callable[[Data], Evidence]:
    """Mean of a cost over an arm's chains; of a ratio the geometric mean."""

    def found(data: Data) -> Evidence:
        some = _arm(data.costs, regime, arm)
        if some.empty:
            return NOTHING
        values = some[column].astype(float)
        evidence = _mean(np.log(values) if ratio else values, _clusters(some))
        if not ratio:
            return evidence
        ends = np.exp([evidence.estimate, evidence.low, evidence.high])
        return replace(evidence, estimate=ends[0], low=ends[1], high=ends[2])

    return found


def _gaps(data: Data) -> pd.DataFrame:
    """DPO continual minus the other arms, a row a pair."""
    rows = data.rows[(data.rows["regime"] == "dpo") & (data.rows["null"] == "none") & data.rows["complete"].astype(bool)]
    return pd.concat([analysis.arm_gaps(group) for _, group in rows.groupby("study")]) if len(rows) else pd.DataFrame()


def _pair_clusters(pairs: pd.DataFrame) -> pd.Series:
    return pairs.index.to_frame()[["trait", "model", "cycle0", "n_seed", "seed"]].astype(str).agg("|".join, axis=1)


def _continual_minus(other: str) -> Callable[[Data], Evidence]:
    """Continual minus another DPO arm at the last common cycle, paired by settings and training seed."""

    def found(data: Data) -> Evidence:
        gaps = _gaps(data)
        return _mean(gaps[other], _pair_clusters(gaps), "pairs") if other in gaps else NOTHING

    return found


def _cured(data: Data) -> Evidence:
    """Of the DPO pairs whose continual chain amplifies, the share whose reinitialised chain does not."""
    some = data.verdicts[(data.verdicts["regime"] == "dpo") & data.verdicts["verdict"].isin(rules.COUNTED)]
    some = some.assign(beta=some["beta"].astype(float).fillna(0.0))
    wide = some[some["arm"].isin(["continual", "reinit"])].pivot_table(
        index=["study", *analysis.PAIRING], columns="arm", values="point", aggfunc="first"
    )
    if not {"continual", "reinit"} <= set(wide):
        return NOTHING
    pairs = wide.dropna()
    pairs = pairs[pairs["continual"].astype(bool)]
    return _share(~pairs["reinit"].astype(bool), _pair_clusters(pairs), "pairs") if len(pairs) else NOTHING


def _without_floor(data: Data) -> pd.DataFrame:
    """Verdict rows under the default rule without its floor: what became of the trait, whatever became of the coherence."""
    return rules.verdicts(data.chains, replace(rules.SUSTAINED, floor=0.0))


def _risen(data: Data, regime: str | None = None) -> pd.DataFrame:
    """Chains whose trait amplifies by point estimate, whatever became of their coherence (the rule without its floor); nulls and ablations left out."""
    without = _without_floor(data)
    plain = analysis.ablation(without["arm"]) == ""
    risen = without.loc[without["point"] & plain & (without["null"] == "none"), "chain"]
    some = data.costs[data.costs["chain"].isin(risen)]
    return some if regime is None else some[some["regime"] == regime]


def _cost(data: Data) -> Evidence:
    """Coherence change of risen chains."""
    some = _risen(data)
    return _mean(some["coherence_change"], _clusters(some)) if len(some) else NOTHING


def _sft_costs_more(data: Data) -> Evidence:
    """Coherence change of risen SFT chains minus that of risen DPO chains, over cluster means (Welch's t interval)."""
    tables = [_risen(data, regime) for regime in ("sft", "dpo")]
    if any(t.empty for t in tables):
        return NOTHING
    a, b = (t["coherence_change"].groupby(_clusters(t).to_numpy()).mean().dropna() for t in tables)
    n, clusters = sum(map(len, tables)), len(a) + len(b)
    if min(len(a), len(b)) < 2:
        return Evidence(a.mean() - b.mean(), float("nan"), float("nan"), n, clusters)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(rules.LEVEL)
    return Evidence(a.mean() - b.mean(), interval.low, interval.high, n, clusters)


def _brittle(data: Data) -> Evidence:
    """Agreement of re-seeded chains minus agreement of neighbours in N or M about "amplified?", SFT and SDF reinit; mean over groups (a
    trait in a regime) that have both kinds of pair, with a t interval over groups."""
    table = noise.pairs([c for c in data.chains if c.settings["regime"] in ("sft", "sdf") and c.settings["arm"] == "reinit"])
    if table.empty:
        return NOTHING
    group = table[["trait", "regime", "model"]].astype(str).agg("|".join, axis=1)
    wide = table.assign(group=group, seeded=table["differ in"] == "training seed only", agree=table["agree"].astype(float))
    wide = wide.pivot_table(index="group", columns="seeded", values="agree", aggfunc="mean")
    if not {True, False} <= set(wide):
        return NOTHING
    gap = (wide[True] - wide[False]).dropna()
    some = analysis.mean_interval(gap)
    return Evidence(some["mean"], some["lo"], some["hi"], int(group.isin(gap.index).sum()), len(gap), "pairs") if len(gap) else NOTHING


SHARE, POINTS, RATIO = "{:.0%}", "{:+.1f}", "{:.2f}"
CLAIMS = (
    Claim("sft-rare", "Amplification is rare in SFT (reinit)", "share of chains amplified", "below", RARE, _rate("sft", "reinit"), SHARE),
    Claim("sdf-rare", "Amplification is rare in SDF (reinit)", "share of chains amplified", "below", RARE, _rate("sdf", "reinit"), SHARE),
    Claim(
        "sdf-rare-anyhow",
        "... whatever became of the text",
        "share of chains amplified if coherence does not count",
        "below",
        RARE,
        _rate("sdf", "reinit", floor=False),
        SHARE,
    ),
    Claim(
        "brittle",
        "Amplification is brittle in N and M (SFT, SDF)",
        "agreement of re-seeded minus neighbouring chains",
        "above",
        0,
        _brittle,
        "{:+.2f}",
    ),
    Claim(
        "dpo-reliable", "Continual DPO amplifies reliably", "share of chains amplified", "above", RELIABLE, _rate("dpo", "continual"), SHARE
    ),
    Claim(
        "reinit-cures",
        "Re-initialising cures it",
        "share of pairs with an amplified continual chain whose reinit chain is not",
        "above",
        RELIABLE,
        _cured,
        SHARE,
    ),
    Claim(
        "reinit-lower",
        "... DPO reinit ends lower than continual",
        "continual minus reinit, last cycle, points",
        "above",
        0,
        _continual_minus("reinit"),
        POINTS,
    ),
    Claim(
        "dose",
        "... and not for want of training",
        "continual minus dose-matched reinit, points",
        "above",
        0,
        _continual_minus("dose-matched reinit"),
        POINTS,
    ),
    Claim("sft-continual", "Continual SFT does not amplify", "share of chains amplified", "below", RARE, _rate("sft", "continual"), SHARE),
    Claim("cost", "Amplification costs coherence", "coherence change of chains whose trait amplified, points", "below", 0, _cost, POINTS),
    Claim("cost-sft", "... more in SFT than in DPO", "coherence change, SFT minus DPO, points", "below", 0, _sft_costs_more, POINTS),
    Claim(
        "terse",
        "SDF turns terse",
        "words an answer, last over first cycle",
        "below",
        1,
        _measure("n_words_ratio", "sdf", "reinit", ratio=True),
        RATIO,
    ),
    Claim(
        "repetitive",
        "... and repetitive",
        "distinct-2, last minus first cycle",
        "below",
        0,
        _measure("distinct2_change", "sdf", "reinit"),
        "{:+.3f}",
    ),
    Claim(
        "sentences",
        "Sentences get shorter in continual DPO",
        "words a sentence, last over first cycle",
        "below",
        1,
        _measure("sentence_words_ratio", "dpo", "continual", ratio=True),
        RATIO,
    ),
    Claim(
        "false-alarms",
        "The rule is quiet where nothing flows (ours)",
        "share of `retrain` nulls called amplified",
        "below",
        RARE,
        _rate("sft", "retrain null"),
        SHARE,
    ),
)


def table(data: Data, claims: tuple[Claim, ...] = CLAIMS) -> pd.DataFrame:
    """One row a claim: key, claim, quantity, bound in words, estimate, low, high, n, clusters, unit, verdict, and `shown`, the estimate as text."""
    out = []
    for claim in claims:
        found = claim.evidence(data)
        shown = "" if not found.n else claim.form.format(found.estimate)
        if found.n and not np.isnan(found.low):
            shown += f" ({claim.form.format(found.low)} to {claim.form.format(found.high)})"
        out.append(
            {
                "key": claim.key,
                "claim": claim.said,
                "quantity": claim.quantity,
                "claimed": f"{claim.side} {claim.form.format(claim.bound) if claim.bound else '0'}",
                "estimate": found.estimate,
                "low": found.low,
                "high": found.high,
                "n": found.n,
                "clusters": found.clusters,
                "unit": found.unit,
                "shown": shown,
                "verdict": claim.verdict(found),
            }
        )
    return pd.DataFrame(out)


def as_markdown(made: pd.DataFrame) -> str:
    """The rows of `table` as a Markdown table."""
    lines = ["| claim | claimed | measured here (95 % interval) | on | verdict |", "| --- | --- | --- | --- | --- |"]
    for row in made.itertuples():
        n = f"{row.n} {row.unit[:-1] if row.n == 1 else row.unit}" if row.n else ""
        n += f", {row.clusters} {'groups' if row.key == 'brittle' else 'cycle 0s'}" if row.clusters and row.clusters != row.n else ""
        lines.append(f"| {row.claim} | {row.quantity} {row.claimed} | {row.shown} | {n} | **{row.verdict}** |")
    return "\n".join(lines)
