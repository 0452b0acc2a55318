"""When does a chain count as amplified? Rules as named objects, and the verdict of each chain under a rule. Reads tables only."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from selftrain.analysis import SETTINGS, arm
from selftrain.results import whole_scores

AMPLIFIED, STATIC, DECAYED, COLLAPSED, UNDECIDED = "amplified", "static", "decayed", "collapsed", "undecided"
TOO_SHORT, NOT_TAKEN, NO_HEADROOM, NO_SCORE = "too short", "did not take", "no headroom", "no score"
COUNTED = (AMPLIFIED, STATIC, DECAYED, COLLAPSED, UNDECIDED)
APART = (NOT_TAKEN, NO_HEADROOM, TOO_SHORT, NO_SCORE)  # outside the denominator, counted beside it
LEVEL = 0.95
TIE = 1e-9  # a change of exactly the threshold counts, whatever floating point makes of it


@dataclass(frozen=True)
class Rule:
    """One reading of "amplified". Scores are points of the 1-100 scale, cycles are numbered from 0.

    sustained: every late cycle is at least `threshold` above the anchor cycle; any: one late cycle is;
    slope: the straight line through the cycles from the anchor on rises by at least `threshold` from anchor to last cycle.
    """

    name: str
    said: str
    kind: Literal["sustained", "any", "slope"] = "sustained"
    threshold: float = 15.0
    anchor: int = 0
    first_late: int = 4
    n_late: int = 2
    floor: float = 50.0  # coherence under which a late cycle has collapsed
    took: float = 5.0  # cycle 0 must lie at least this far above the base model
    headroom: float = 80.0  # an anchor above this leaves no room


SUSTAINED = Rule("sustained", "every cycle from 4 on at least 15 above cycle 0")
RULES = {
    rule.name: rule
    for rule in (
        SUSTAINED,
        Rule("any late", "at least one cycle from 4 on at least 15 above cycle 0", kind="any"),
        Rule("anchor 1", "every cycle from 4 on at least 15 above cycle 1", anchor=1),
        Rule("slope", "a straight line through the cycles rises by at least 15", kind="slope"),
        Rule("sustained +10", "every cycle from 4 on at least 10 above cycle 0", threshold=10.0),
    )
}


@dataclass(frozen=True)
class Series:
    """One chain as arrays by cycle, sorted: trait score and coherence (n,), half width of the trait's interval (n,), the question means of
    the trait (n, questions) where every answer's score is kept, else None, and the share of empty answers (n,). Missing values are NaN."""

    settings: dict[str, Any]
    cycles: np.ndarray
    trait: np.ndarray
    coherence: np.ndarray
    half: np.ndarray
    questions: np.ndarray | None = None
    empty: np.ndarray | None = None
    _changes: dict = field(default_factory=dict, init=False, compare=False, repr=False)

    def at(self, cycle: int) -> float:
        """Trait score of a cycle (the base is -1); NaN where it is missing."""
        found = self.trait[self.cycles == cycle]
        return float(found[0]) if len(found) else float("nan")

    def changes(self, anchor: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(cycles, change, low, high) of every later cycle against the anchor cycle, with 95 % t intervals.

        Paired by question where question means are kept; otherwise the two cycles' own intervals are added as independent ones,
        which is the wider of the two where questions keep their order.
        """
        if anchor not in self._changes:
            later, place = self.cycles > anchor, np.flatnonzero(self.cycles == anchor)
            if not len(place):
                empty = np.array([])
                self._changes[anchor] = (empty, empty, empty, empty)
            else:
                change = self.trait[later] - self.trait[place[0]]
                if self.questions is not None:
                    half = t_half(self.questions[later] - self.questions[place[0]])
                else:
                    half = np.hypot(self.half[later], self.half[place[0]])
                self._changes[anchor] = (self.cycles[later], change, change - half, change + half)
        return self._changes[anchor]

    def slope(self, anchor: int) -> tuple[float, float, float]:
        """Rise of the least-squares line from the anchor to the last cycle, with its interval over questions (NaN without them)."""
        kept = (self.cycles >= anchor) & ~np.isnan(self.trait)
        x = self.cycles[kept].astype(float)
        if len(x) < 2:
            return (float("nan"),) * 3
        weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum() * (x.max() - x.min())
        rise = float(weights @ self.trait[kept])
        half = float(t_half((weights @ self.questions[kept])[None, :])[0]) if self.questions is not None else float("nan")
        return rise, rise - half, rise + half


def t_half(values: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Half width of Student's t interval of the mean of each row of (n, clusters); NaN under two clusters. NaN entries are left out."""
    n = (~np.isnan(values)).sum(axis=1)
    enough = n > 1
    out = np.full(len(values), np.nan)
    if enough.any():
        spread = np.nanstd(values[enough], axis=1, ddof=1)
        out[enough] = stats.t.ppf(0.5 + level / 2, n[enough] - 1) * spread / np.sqrt(n[enough])
    return out


def series(rows: pd.DataFrame, scores: pd.DataFrame | None = None) -> list[Series]:
    """Every complete chain of `results.load` rows; `scores` of `results.load_scores` gives question means where all answers are kept."""
    means = None
    if scores is not None and len(scores):
        kept = whole_scores(rows, scores)
        kept = kept[(kept["set"] == "direct") & kept["trait_score"].notna()]
        means = kept.groupby(["chain", "cycle", "question_id"])["trait_score"].mean().unstack() if len(kept) else None
    known = set(means.index) if means is not None else set()
    out = []
    for chain, group in rows[rows["complete"].astype(bool)].groupby("chain", sort=False):
        group = group.sort_values("cycle")
        questions = None
        scored = [(chain, c) for c, score in zip(group["cycle"], group["trait_score"], strict=True) if score == score]
        if scored and known.issuperset(scored):
            table = means.reindex(pd.MultiIndex.from_product([[chain], group["cycle"]])).to_numpy(float)
            questions = table[:, ~np.isnan(table).all(axis=0)]
        first = group.iloc[0]
        out.append(
            Series(
                settings={"chain": chain, "arm": arm(group.iloc[:1]).iloc[0], **{k: first.get(k) for k in SETTINGS}},
                cycles=group["cycle"].to_numpy(int),
                trait=group["trait_score"].to_numpy(float),
                coherence=group["coherence"].to_numpy(float),
                half=((group["trait_hi"].astype(float) - group["trait_lo"].astype(float)) / 2).to_numpy(float),
                questions=questions,
                empty=(group["n_empty"].astype(float) / group["n_requested"].astype(float)).to_numpy(),
            )
        )
    return out


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a chain: the verdict with its uncertainty, whether the point estimates alone amplify, and the deciding change
    (the smallest late change for `sustained`, the largest for `any`, the fitted rise for `slope`) with the same extreme of the intervals' ends."""

    verdict: str
    point: bool = False
    change: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")


def takes_seed(null: str) -> bool:
    """Whether a chain's cycle 0 is meant to show the trait; null arms other than `retrain` are not."""
    return null in ("none", "retrain")


def verdict(chain: Series, rule: Rule = SUSTAINED) -> Verdict:
    """The verdict of one chain. A late cycle whose coherence is under the floor, or most of whose answers are empty, is no evidence of
    amplification; one without a trait or coherence score is missing.

    Amplified by interval: for `sustained` every late interval lies at or above the threshold; not amplified: one lies wholly below it;
    undecided between the two, or where the point estimates amplify and an interval cannot be had. Decayed mirrors this at minus the threshold.
    """
    base, first, anchor = chain.at(-1), chain.at(0), chain.at(rule.anchor)
    if np.isnan([base, first, anchor]).any():
        return Verdict(NO_SCORE)
    if takes_seed(chain.settings["null"]) and first - base < rule.took:
        return Verdict(NOT_TAKEN)
    if anchor > rule.headroom:
        return Verdict(NO_HEADROOM)
    cycles, change, low, high = chain.changes(rule.anchor)
    later = chain.cycles > rule.anchor
    coherence = chain.coherence[later]
    mute = chain.empty[later] > 0.5 if chain.empty is not None else np.zeros(len(cycles), bool)
    late = (cycles >= rule.first_late) & (mute | ~(np.isnan(change) | np.isnan(coherence)))
    if late.sum() < rule.n_late:
        return Verdict(TOO_SHORT)
    change, low, high, mute = change[late], low[late], high[late], mute[late]
    hold = ~mute & (coherence[late] >= rule.floor)
    broken = bool((~hold).any())
    if np.isnan(change).all():
        return Verdict(COLLAPSED)
    if rule.kind == "slope":
        change, low, high = (np.array([value]) for value in chain.slope(rule.anchor))
        hold = np.array([bool(hold.all())])
    every, extreme = (np.any, np.nanmax) if rule.kind == "any" else (np.all, np.nanmin)
    bare, up, down = np.isnan(low) | np.isnan(high), rule.threshold - TIE, -rule.threshold + TIE
    point = bool(every(hold & (change >= up)))
    deciding = {"point": point, "change": float(extreme(change)), "low": float("nan"), "high": float("nan")}
    if not bare.all():
        deciding |= {"low": float(extreme(low)), "high": float(extreme(high))}
    if every(hold & (low >= up)):
        return Verdict(AMPLIFIED, **deciding)
    if broken and not point:
        return Verdict(COLLAPSED, **deciding)
    least, most = np.where(bare, change, low), np.where(bare, change, high)
    if every(hold & (most >= up)) or point:
        return Verdict(UNDECIDED, **deciding)
    if np.all(most <= down):
        return Verdict(DECAYED, **deciding)
    return Verdict(UNDECIDED if np.all(least <= down) else STATIC, **deciding)


def verdicts(chains: Iterable[Series], rule: Rule = SUSTAINED) -> pd.DataFrame:
    """One row a chain: its settings, verdict, `point`, and the deciding change with low and high."""
    out = []
    for chain in chains:
        v = verdict(chain, rule)
        out.append(
            {**chain.settings, "rule": rule.name, "verdict": v.verdict, "point": v.point, "change": v.change, "low": v.low, "high": v.high}
        )
    return pd.DataFrame(out, columns=["chain", "arm", *SETTINGS, "rule", "verdict", "point", "change", "low", "high"])


def exact_interval(k: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Clopper and Pearson's interval of a rate, by the beta distribution, so that k may be a sum of shares; (0, 1) of nothing."""
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, k, n - k + 1) if k > 0 else 0.0
    return float(low), float(stats.beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0


def rates(table: pd.DataFrame, by: Sequence[str] = ("regime", "arm")) -> pd.DataFrame:
    """Chains counted by verdict, and the amplification rate with its exact 95 % interval, one row a group of `verdicts` rows.

    `amplified` is certain (by interval), `point` counts chains whose point estimates alone meet the rule; the denominator n holds the
    verdicts COUNTED. Chains that did not take, had no headroom or were too short stand beside it.
    """
    out = []
    for names, group in table.groupby(list(by), sort=False, dropna=False):
        counts = group["verdict"].value_counts()
        n, k = int(sum(counts.get(v, 0) for v in COUNTED)), int(counts.get(AMPLIFIED, 0))
        point = int(group.loc[group["verdict"].isin(COUNTED), "point"].sum())
        low, high = exact_interval(point, n)
        out.append(
            {
                **dict(zip(by, names, strict=True)),
                "chains": len(group),
                **{v: int(counts.get(v, 0)) for v in (*COUNTED, *APART)},
                "n": n,
                "point": point,
                "rate": point / n if n else float("nan"),
                "rate_lo": low,
                "rate_hi": high,
                "certain_rate": k / n if n else float("nan"),
            }
        )
    names = [*by, "chains", *COUNTED, *APART, "n", "point", "rate", "rate_lo", "rate_hi", "certain_rate"]
    return pd.DataFrame(out, columns=names)


def sensitivity(
    chains: Iterable[Series],
    thresholds: Iterable[float] = range(5, 31),
    anchors: Iterable[int] = (0, 1),
    first_late: Iterable[int] = (3, 4, 5),
    floors: Iterable[float] = (1, 50, 80, 90),
    by: Sequence[str] = ("regime", "arm"),
) -> pd.DataFrame:
    """Verdicts of the default rule under every threshold, anchor, first late cycle and floor on a cycle's mean coherence.

    One row a (setting, group): the number of chains of each verdict, point (amplified by point estimate), the denominator n, and threshold, anchor,
    first_late, floor.
    """
    chains, out = list(chains), []
    groups = [tuple(chain.settings[key] for key in by) for chain in chains]
    for floor, anchor, late, threshold in itertools.product(floors, anchors, first_late, thresholds):
        rule = replace(SUSTAINED, threshold=float(threshold), anchor=anchor, first_late=late, floor=float(floor))
        counts: dict[tuple, Counter] = {group: Counter() for group in groups}
        for group, chain in zip(groups, chains, strict=True):
            found = verdict(chain, rule)
            inside = found.verdict in COUNTED
            counts[group].update({found.verdict: 1, "point": inside and found.point, "n": inside})
        setting = {"threshold": threshold, "anchor": anchor, "first_late": late, "floor": floor}
        for group, found in counts.items():
            out.append({**dict(zip(by, group, strict=True)), **{k: int(found[k]) for k in (*COUNTED, *APART, "point", "n")}, **setting})
    return pd.DataFrame(out, columns=[*by, *COUNTED, *APART, "point", "n", "threshold", "anchor", "first_late", "floor"])
