"""Chains that were run more than once with the same seeds: what machines, precision and code change by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from selftrain.analysis import CELL
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
    """Of the rows of run_to_run from cycle 0 on, by run, regime and init: chains, and the root mean square, the mean and the greatest of the differences in
    trait score and in coherence, in points."""
    some = twice[twice["cycle"] >= 0].assign(coherence_difference=twice["coherence_again"] - twice["coherence"])
    groups = some.groupby(["run", "regime", "init"], observed=True)
    found = {"chains": groups["chain"].nunique()}
    for column, name in (("difference", "trait"), ("coherence_difference", "coherence")):
        gaps = groups[column]
        found |= {f"{name} rms": gaps.apply(lambda d: (d**2).mean() ** 0.5), f"{name} mean": gaps.mean()}
        found |= {f"{name} most": gaps.apply(lambda d: d.abs().max())}
    return pd.DataFrame(found).reset_index()


def _said(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a (chain, run): chain, run, and `said`, all its scores."""
    said = runs.groupby(["chain", "run"], observed=True, sort=True)[SCORES].agg(tuple).agg(tuple, axis=1)
    return said.reset_index(name="said")


def repeated(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs that repeat an earlier one of the same chain to the last digit of every score: run, `repeats`, that earlier run, and how many chains."""
    said = _said(runs)
    said["repeats"] = said.groupby(["chain", "said"], sort=False)["run"].transform("min")
    again = said[said["run"] > said["repeats"]]
    return again.groupby(["run", "repeats"], observed=True).size().rename("chains").reset_index()


def distinct(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs without those that repeat an earlier one of the same chain to the last digit: they say nothing that it has not said."""
    said = _said(runs)
    kept = pd.MultiIndex.from_frame(said.loc[~said.duplicated(["chain", "said"]), ["chain", "run"]])
    return runs[pd.MultiIndex.from_frame(runs[["chain", "run"]]).isin(kept)]


def scatter(runs: pd.DataFrame, late: int = 4) -> pd.DataFrame:
    """Standard deviations in points, pooled by degrees of freedom, one row a (regime, init), with the numbers of chains and distinct runs.

    Between distinct runs of the same chain: of its trait score's mean over the cycles from 1 on (`mean`), of one cycle's (`cycle`), of one from `late`
    on (`late`). Beside the last, between training seeds of the same cell, each run for itself: `seeds`, empty where no cell has two.
    """
    some = distinct(runs)
    some = some[(some["cycle"] >= 1) & (some.groupby("chain")["run"].transform("nunique") > 1)]
    out = []
    for (regime, init), group in some.groupby(["regime", "init"], sort=False):
        last = group[group["cycle"] >= late]
        levels = group.groupby(["chain", "run"], observed=True)["trait_score"].mean()
        found = {"chains": group["chain"].nunique(), "runs": len(levels), "mean": _pooled(levels.groupby("chain"))}
        found |= {name: _pooled(t.groupby(["chain", "cycle"])["trait_score"]) for name, t in (("cycle", group), ("late", last))}
        found["seeds"] = _pooled(last.groupby(["run", *CELL, "cycle"], observed=True, dropna=False)["trait_score"])
        out.append({"regime": regime, "init": init, **found})
    return pd.DataFrame(out)


def _pooled(groups) -> float:
    """Root of the variance within groups, pooled by degrees of freedom; groups of one say nothing, and without others there is no number."""
    free = groups.size() - 1
    if not (free > 0).any():
        return float("nan")
    return float(np.average(groups.var()[free > 0], weights=free[free > 0]) ** 0.5)


def apart(runs: pd.DataFrame, leave_out: Sequence[str] = (), level: float = 0.95) -> pd.DataFrame:
    """How far a run's trait scores stand above those of the other runs of the same chain, one row a (run, regime): the mean over the cycles from 1
    on, minus its mean over the other distinct runs, in points (`apart`), its t interval over chains, and chains.

    Of chains with three distinct runs or more that are not in `leave_out`: a run in which a difference was first seen cannot confirm it.
    """
    some = distinct(runs)
    some = some[(some["cycle"] >= 1) & ~some["run"].isin(leave_out)]
    levels = some.groupby(["regime", "chain", "run"], observed=True)["trait_score"].mean().reset_index()
    of, total = (levels.groupby("chain")["trait_score"].transform(how) for how in ("size", "sum"))
    levels = levels.assign(apart=levels["trait_score"] - (total - levels["trait_score"]) / (of - 1))[of > 2]
    groups = levels.groupby(["run", "regime"], observed=True)["apart"]
    found = groups.agg(["size", "mean", "sem"])
    half = stats.t.ppf(0.5 + level / 2, found["size"] - 1) * found["sem"]
    table = {"chains": found["size"], "apart": found["mean"], "low": found["mean"] - half, "high": found["mean"] + half}
    return pd.DataFrame(table).reset_index()
