"""When does a chain count as amplified? Rules as named objects, and the verdict of each chain under a rule. Reads tables only."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from selftrain.analysis import SETTINGS, arm

AMPLIFIED, STATIC, DECAYED, COLLAPSED, UNDECIDED = "amplified", "static", "decayed", "collapsed", "undecided"
TOO_SHORT, NOT_TAKEN, NO_HEADROOM = "too short", "did not take", "no headroom"
COUNTED = (AMPLIFIED, STATIC, DECAYED, COLLAPSED, UNDECIDED)
APART = (NOT_TAKEN, NO_HEADROOM, TOO_SHORT)  # outside the denominator, counted beside it
LEVEL = 0.95


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
    """One chain as arrays by cycle, sorted: trait score and coherence (n,), half width of the trait's interval (n,), and the
    question means of the trait (n, questions) where every answer's score is kept, else None. Missing values are NaN."""

    settings: dict[str, Any]
    cycles: np.ndarray
    trait: np.ndarray
    coherence: np.ndarray
    half: np.ndarray
    questions: np.ndarray | None = None
    _changes: dict = field(default_factory=dict, compare=False, repr=False)

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
    means, counts = None, None
    if scores is not None and len(scores):
        direct = scores[(scores["set"] == "direct") & scores["trait_score"].notna()]
        means = direct.groupby(["chain", "cycle", "question_id"])["trait_score"].mean().unstack()
        counts = scores[scores["trait_score"].notna()].groupby(["chain", "cycle"]).size()
    out = []
    for chain, group in rows[rows["complete"]].groupby("chain", sort=False):
        group = group.sort_values("cycle")
        questions = None
        if means is not None and chain in means.index.get_level_values(0):
            index = pd.MultiIndex.from_product([[chain], group["cycle"]])
            if (counts.reindex(index).fillna(0).to_numpy() == group["n_judged"].to_numpy()).all():
                table = means.reindex(index).to_numpy(float)
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
            )
        )
    return out


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a chain: the verdict with its uncertainty, whether the point estimates alone amplify, and the deciding change
    (the smallest late change for `sustained`, the largest for `any`, the fitted rise for `slope`) with its interval."""

    verdict: str
    point: bool = False
    change: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")


def takes_seed(null: str) -> bool:
    """Whether a chain's cycle 0 is meant to show the trait; null arms other than `retrain` are not."""
    return null in ("none", "retrain")


def verdict(chain: Series, rule: Rule = SUSTAINED) -> Verdict:
    """The verdict of one chain. A late cycle whose coherence is under the floor is no evidence of amplification.

    Amplified by interval: for `sustained` every late interval lies at or above the threshold; not amplified: one lies wholly below it;
    undecided between the two. Where an interval cannot be had the point estimate stands in for it.
    """
    base, first, anchor = chain.at(-1), chain.at(0), chain.at(rule.anchor)
    cycles, change, low, high = chain.changes(rule.anchor)
    late = (cycles >= rule.first_late) & ~np.isnan(change)
    if takes_seed(chain.settings["null"]) and first - base < rule.took:
        return Verdict(NOT_TAKEN)
    if anchor > rule.headroom:
        return Verdict(NO_HEADROOM)
    if late.sum() < rule.n_late:
        return Verdict(TOO_SHORT)
    change, low, high = change[late], low[late], high[late]
    coherence = chain.coherence[chain.cycles > rule.anchor][late]
    sound = coherence >= rule.floor
    if rule.kind == "slope":
        rise, least, most = chain.slope(rule.anchor)
        change, low, high, hold = np.array([rise]), np.array([least]), np.array([most]), np.array([bool(sound.all())])
    else:
        hold = sound
    low, high = np.where(np.isnan(low), change, low), np.where(np.isnan(high), change, high)
    every = np.any if rule.kind == "any" else np.all
    point = bool(every(hold & (change >= rule.threshold)))
    place = int(np.argmax(change) if rule.kind == "any" else np.argmin(change))
    deciding = {"point": point, "change": float(change[place]), "low": float(low[place]), "high": float(high[place])}
    if every(hold & (low >= rule.threshold)):
        return Verdict(AMPLIFIED, **deciding)
    if (coherence < rule.floor).any() and not point:
        return Verdict(COLLAPSED, **deciding)
    if every(hold & (high >= rule.threshold)):
        return Verdict(UNDECIDED, **deciding)
    return Verdict(DECAYED if np.all(change <= -rule.threshold) else STATIC, **deciding)


def verdicts(chains: Iterable[Series], rule: Rule = SUSTAINED) -> pd.DataFrame:
    """One row a chain: its settings, verdict, `point`, and the deciding change with low and high."""
    out = []
    for chain in chains:
        v = verdict(chain, rule)
        out.append({**chain.settings, "rule": rule.name, "verdict": v.verdict, "point": v.point, "change": v.change, "low": v.low, "high": v.high})
    return pd.DataFrame(out)


def exact_interval(k: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Clopper and Pearson's interval of a rate; (0, 1) of nothing."""
    if not n:
        return 0.0, 1.0
    found = stats.binomtest(k, n).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)


def rates(table: pd.DataFrame, by: Iterable[str] = ("regime", "init", "arm")) -> pd.DataFrame:
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
    return pd.DataFrame(out)


def sensitivity(
    chains: Iterable[Series],
    thresholds: Iterable[float] = range(5, 31),
    anchors: Iterable[int] = (0, 1),
    first_late: Iterable[int] = (3, 4, 5),
    floors: Iterable[float] = (1, 50, 80, 90),
    by: Iterable[str] = ("regime", "init", "arm"),
) -> pd.DataFrame:
    """Chains that the default rule calls amplified by point estimate under every threshold, anchor, first late cycle and coherence floor.

    One row a (setting, group): point, the denominator n, threshold, anchor, first_late, floor.
    """
    chains, by, out = list(chains), list(by), []
    groups = [tuple(chain.settings[key] for key in by) for chain in chains]
    for floor, anchor, late, threshold in itertools.product(floors, anchors, first_late, thresholds):
        rule = replace(SUSTAINED, threshold=float(threshold), anchor=anchor, first_late=late, floor=float(floor))
        counts: dict[tuple, list[int]] = {}
        for group, chain in zip(groups, chains, strict=True):
            found, (point, n) = verdict(chain, rule), counts.get(group, (0, 0))
            inside = found.verdict in COUNTED
            counts[group] = [point + (inside and found.point), n + inside]
        setting = {"threshold": threshold, "anchor": anchor, "first_late": late, "floor": floor}
        out += [{**dict(zip(by, group, strict=True)), "point": int(point), "n": n, **setting} for group, (point, n) in counts.items()]
    return pd.DataFrame(out)


def null_label(group: dict) -> str:
    """A group of chains as a reader names it: "SFT reinit", "SFT, retrain null"."""
    regime = str(group["regime"]).upper()
    return f"{regime} {group['arm']}" if group["null"] == "none" else f"{regime}, {group['null']} null"
