"""The paper's summary as claims that stored chains can hold up or not: an estimate with its interval against a named bound, each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """An estimate with its 95 % interval (NaN where it cannot be had) and the number of units that it rests on."""

    estimate: float
    low: float
    high: float
    n: int
    unit: str


NOTHING = Evidence(float("nan"), float("nan"), float("nan"), 0, "chains")


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


def _rate(regime: str, arm: str) -> Callable[[Data], Evidence]:
    """Share of an arm's countable chains that amplify by point estimate under the default rule, with the exact interval."""

    def found(data: Data) -> Evidence:
        some = _arm(data.verdicts, regime, arm)
        some = some[some["verdict"].isin(rules.COUNTED)]
        k, n = int(some["point"].sum()), len(some)
        return Evidence(k / n, *rules.exact_interval(k, n), n, "chains") if n else NOTHING

    return found


def _mean(values: pd.Series, unit: str = "chains") -> Evidence:
    """Mean with its t interval over units."""
    values = values.dropna()
    if values.empty:
        return NOTHING
    some = analysis.mean_interval(values)
    return Evidence(some["mean"], some["lo"], some["hi"], int(some["n"]), unit)


def _ratio(values: pd.Series) -> Evidence:
    """Geometric mean of ratios with its t interval on the logarithms."""
    found = _mean(np.log(values.dropna().astype(float)))
    return Evidence(*np.exp([found.estimate, found.low, found.high]), found.n, found.unit)


def _continual_minus(other: str) -> Callable[[Data], Evidence]:
    """Continual minus another DPO arm at the last cycle, paired by trait, N, M, beta, learning rate and training seed."""

    def found(data: Data) -> Evidence:
        rows = data.rows[(data.rows["regime"] == "dpo") & (data.rows["null"] == "none") & data.rows["complete"]]
        gaps = analysis.arm_gaps(rows)
        return _mean(gaps[other], "pairs") if other in gaps else NOTHING

    return found


def _cost(column: str, regime: str, arm: str) -> Callable[[Data], pd.Series]:
    return lambda data: _arm(data.costs, regime, arm)[column]


def _amplified(data: Data, regime: str | None = None) -> pd.DataFrame:
    """Chains that amplify by point estimate under the default rule, nulls left out."""
    some = data.costs[data.costs["point"] & (data.costs["null"] == "none")]
    return some if regime is None else some[some["regime"] == regime]


def _sft_costs_more(data: Data) -> Evidence:
    """Coherence change of amplified SFT chains minus that of amplified DPO chains (Welch's t interval)."""
    a, b = (_amplified(data, regime)["coherence_change"].dropna() for regime in ("sft", "dpo"))
    if min(len(a), len(b)) < 2:
        return NOTHING if min(len(a), len(b)) == 0 else Evidence(a.mean() - b.mean(), float("nan"), float("nan"), len(a) + len(b), "chains")
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(rules.LEVEL)
    return Evidence(a.mean() - b.mean(), interval.low, interval.high, len(a) + len(b), "chains")


def _brittle(data: Data) -> Evidence:
    """Agreement of re-seeded chains minus agreement of neighbours in N or M about "amplified?", SFT and SDF reinit (Newcombe's hybrid interval)."""
    table = noise.agreement([c for c in data.chains if c.settings["regime"] in ("sft", "sdf") and c.settings["arm"] == "reinit"])
    if table.empty:
        return NOTHING
    table["hits"] = table["agree"] * table["pairs"]
    seeded = table["differ in"] == "training seed only"
    counts = [(int(round(t["hits"].sum())), int(t["pairs"].sum())) for t in (table[seeded], table[~seeded])]
    if min(n for _, n in counts) == 0:
        return NOTHING
    (p, p_low, p_high), (q, q_low, q_high) = (
        (k / n, *stats.binomtest(k, n).proportion_ci(rules.LEVEL, method="wilson")) for k, n in counts
    )
    low, high = p - q - np.hypot(p - p_low, q_high - q), p - q + np.hypot(p_high - p, q - q_low)
    return Evidence(p - q, low, high, sum(n for _, n in counts), "pairs")


SHARE, POINTS, RATIO = "{:.0%}", "{:+.1f}", "{:.2f}"
CLAIMS = (
    Claim("sft-rare", "Amplification is rare in SFT (reinit)", "share of chains amplified", "below", RARE, _rate("sft", "reinit"), SHARE),
    Claim("sdf-rare", "Amplification is rare in SDF (reinit)", "share of chains amplified", "below", RARE, _rate("sdf", "reinit"), SHARE),
    Claim("brittle", "Amplification is brittle in N and M (SFT, SDF)", "agreement of re-seeded minus neighbouring chains", "above", 0, _brittle, "{:+.2f}"),
    Claim("dpo-reliable", "Continual DPO amplifies reliably", "share of chains amplified", "above", RELIABLE, _rate("dpo", "continual"), SHARE),
    Claim("reinit-cures", "Re-initialising cures it: DPO reinit ends lower", "continual minus reinit, last cycle, points", "above", 0, _continual_minus("reinit"), POINTS),
    Claim("dose", "... and not for want of training", "continual minus dose-matched reinit, points", "above", 0, _continual_minus("dose-matched reinit"), POINTS),
    Claim("sft-continual", "Continual SFT does not amplify", "share of chains amplified", "below", RARE, _rate("sft", "continual"), SHARE),
    Claim("cost", "Amplification costs coherence", "coherence change of amplified chains, points", "below", 0, lambda d: _mean(_amplified(d)["coherence_change"]), POINTS),
    Claim("cost-sft", "... most in SFT, least in DPO", "coherence change, SFT minus DPO, points", "below", 0, _sft_costs_more, POINTS),
    Claim("terse", "SDF turns terse", "words an answer, last over first cycle", "below", 1, lambda d: _ratio(_cost("n_words_ratio", "sdf", "reinit")(d)), RATIO),
    Claim("repetitive", "... and repetitive", "distinct-2, last minus first cycle", "below", 0, lambda d: _mean(_cost("distinct2_change", "sdf", "reinit")(d)), "{:+.3f}"),
    Claim("sentences", "Sentences get shorter in continual DPO", "words a sentence, last over first cycle", "below", 1, lambda d: _ratio(_cost("sentence_words_ratio", "dpo", "continual")(d)), RATIO),
    Claim("false-alarms", "The rule is quiet where nothing flows (`retrain` nulls; ours)", "share of nulls called amplified", "below", RARE, _rate("sft", "retrain null"), SHARE),
)


def table(data: Data, claims: tuple[Claim, ...] = CLAIMS) -> pd.DataFrame:
    """One row a claim: key, claim, quantity, bound in words, estimate, low, high, n, unit, verdict, and `shown`, the estimate as text."""
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
                "unit": found.unit,
                "shown": shown,
                "verdict": claim.verdict(found),
            }
        )
    return pd.DataFrame(out)


def as_markdown(made: pd.DataFrame) -> str:
    """The rows of `table` as a Markdown table."""
    lines = ["| claim | claimed | measured here (95 % interval) | n | verdict |", "| --- | --- | --- | --- | --- |"]
    for row in made.itertuples():
        n = f"{row.n} {row.unit}" if row.n else ""
        lines.append(f"| {row.claim} | {row.quantity} {row.claimed} | {row.shown} | {n} | **{row.verdict}** |")
    return "\n".join(lines)
