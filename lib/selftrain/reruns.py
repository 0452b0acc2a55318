"""Chains that were run more than once with the same seeds: what machines, precision and code change by themselves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from selftrain.errors import InputError

KEYS = ["chain", "regime", "init", "cycle"]
SCORES = ["trait_score", "coherence"]


def every_run(rows: pd.DataFrame, again: Mapping[str, pd.DataFrame], first: str = "first run") -> pd.DataFrame:
    """Every run of the chains that were run again, below each other: the rows of complete chains, and `run`, a category in the order given.

    `again`: results of further runs by what to call them. InputError where a further run has no complete chain of `rows`.
    """
    tables = []
    for name, table in {first: rows, **again}.items():
        whole = table[table["complete"].astype(bool) & table["chain"].isin(rows.loc[rows["complete"].astype(bool), "chain"])]
        if whole.empty:
            raise InputError(f"{name}: no complete chain is in both results; a chain's id holds its settings, so run the same panel again")
        tables.append(whole.assign(run=name).dropna(axis=1, how="all"))
    runs = pd.concat(tables, ignore_index=True)
    runs = runs[runs.groupby("chain")["run"].transform("nunique") > 1]
    return runs.assign(run=pd.Categorical(runs["run"], [first, *again], ordered=True)).sort_values([*KEYS, "run"]).reset_index(drop=True)


def run_to_run(runs: pd.DataFrame) -> pd.DataFrame:
    """The first run of each chain beside each later one, cycle by cycle: run, chain, regime, init, cycle, trait_score and coherence of both, and
    `difference` of the trait score, later minus first, in points."""
    first = runs["run"] == runs["run"].cat.categories[0]
    both = runs.loc[first, [*KEYS, *SCORES]].merge(runs.loc[~first, ["run", *KEYS, *SCORES]], on=KEYS, suffixes=("", "_again"))
    return both.assign(difference=both["trait_score_again"] - both["trait_score"]).sort_values(["run", *KEYS]).reset_index(drop=True)


def by_regime(twice: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of run_to_run from cycle 0 on, by run, regime and init: chains, how many of them repeat to the last digit, and the root mean square,
    the mean and the greatest of the differences in trait score and in coherence, in points."""
    some = twice[twice["cycle"] >= 0].assign(coherence_difference=twice["coherence_again"] - twice["coherence"])
    by = ["run", "regime", "init"]
    apart = (some["difference"] != 0) | (some["coherence_difference"] != 0)
    equal = ~apart.groupby([some[key] for key in [*by, "chain"]], observed=True).any()
    groups = some.groupby(by, observed=True)
    found = {"chains": groups["chain"].nunique(), "equal": equal.groupby(level=by, observed=True).sum()}
    for column, name in (("difference", "trait"), ("coherence_difference", "coherence")):
        gaps = groups[column]
        found |= {f"{name} rms": gaps.apply(lambda d: (d**2).mean() ** 0.5), f"{name} mean": gaps.mean()}
        found |= {f"{name} most": gaps.apply(lambda d: d.abs().max())}
    return pd.DataFrame(found).reset_index()


def distinct(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs without those that repeat an earlier one of the same chain to the last digit: they say nothing that it has not said."""
    said = runs.groupby(["chain", "run"], observed=True, sort=True)[SCORES].agg(tuple).agg(tuple, axis=1)
    kept = ~said.reset_index(name="said").duplicated(["chain", "said"]).set_axis(said.index)
    return runs[kept.loc[pd.MultiIndex.from_frame(runs[["chain", "run"]])].to_numpy()]


def scatter(runs: pd.DataFrame) -> pd.DataFrame:
    """Standard deviation between distinct runs of the same chain, pooled over chains by degrees of freedom, one row a (regime, init): of a cycle's
    trait score (`cycle`), of its mean over the cycles from 1 on (`mean`), both in points; and how many chains and runs."""
    some = distinct(runs)
    some = some[(some["cycle"] >= 1) & (some.groupby("chain")["run"].transform("nunique") > 1)]
    out = []
    for (regime, init), group in some.groupby(["regime", "init"], sort=False):
        levels = group.groupby(["chain", "run"], observed=True)["trait_score"].mean()
        sds = {"cycle": _pooled(group.groupby(["chain", "cycle"])["trait_score"]), "mean": _pooled(levels.groupby("chain"))}
        out.append({"regime": regime, "init": init, "chains": group["chain"].nunique(), "runs": len(levels), **sds})
    return pd.DataFrame(out)


def _pooled(groups) -> float:
    """Root of the variance within groups, pooled by degrees of freedom; groups of one say nothing."""
    free = groups.size() - 1
    return float(np.average(groups.var()[free > 0], weights=free[free > 0]) ** 0.5)


def apart(runs: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """How far a run's trait scores stand above those of the other runs of the same chain, one row a (run, regime): the mean over the cycles from 1
    on, minus its mean over the other distinct runs, in points (`apart`), its t interval over chains, and chains."""
    some = distinct(runs)
    levels = some[some["cycle"] >= 1].groupby(["regime", "chain", "run"], observed=True)["trait_score"].mean().reset_index()
    of, total = (levels.groupby("chain")["trait_score"].transform(how) for how in ("size", "sum"))
    levels = levels.assign(apart=levels["trait_score"] - (total - levels["trait_score"]) / (of - 1))[of > 1]
    groups = levels.groupby(["run", "regime"], observed=True)["apart"]
    found = groups.agg(["size", "mean", "sem"])
    half = stats.t.ppf(0.5 + level / 2, found["size"] - 1) * found["sem"]
    table = {"chains": found["size"], "apart": found["mean"], "low": found["mean"] - half, "high": found["mean"] + half}
    return pd.DataFrame(table).reset_index()
