"""The noise floor: how often a rule fires where nothing flows forward, how large the run-to-run error is, and what several seeds buy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from selftrain.rules import AMPLIFIED, COUNTED, RULES, Rule, Series, rates, verdicts

CELL = ["trait", "regime", "init", "arm", "model", "lr", "beta", "n_seed", "n_sampled"]


def null_kind(null: pd.Series) -> pd.Series:
    """`none`, `untrained`, `neutral`, `other` or `retrain`: the kind of null arm without the trait that `other:<trait>` names."""
    return null.str.partition(":")[0]


def false_positives(chains: Iterable[Series], rules: Iterable[Rule] = tuple(RULES.values())) -> pd.DataFrame:
    """Rates of every rule in every null arm and, beside them, in the arms of the study: one row a (rule, kind of null, regime, arm).

    `bound` is the upper end of the exact 95 % interval: with no false positive in n nulls it is about 3.7 / n (two-sided).
    """
    chains, rules, out = list(chains), list(rules), []
    for rule in rules:
        table = verdicts(chains, rule)
        if len(table):
            out.append(rates(table.assign(null=null_kind(table["null"])), ["rule", "null", "regime", "arm"]))
    if not out:
        return pd.DataFrame()
    found = pd.concat(out, ignore_index=True)
    found = found.assign(bound=found["rate_hi"], is_null=found["null"] != "none")
    order = found["rule"].map({rule.name: place for place, rule in enumerate(rules)}) * 2 + ~found["is_null"]
    return found.loc[order.sort_values(kind="stable").index].reset_index(drop=True)


def deviations(chains: Iterable[Series], anchor: int = 0) -> pd.DataFrame:
    """Change of every later cycle against the anchor, one row a (chain, cycle): what `retrain` nulls scatter by, although nothing flows."""
    out = []
    for chain in chains:
        cycles, change, low, high = chain.changes(anchor)
        for row in zip(cycles, change, low, high, strict=True):
            out.append({**chain.settings, "score": chain.at(anchor), **dict(zip(("cycle", "change", "low", "high"), map(float, row), strict=True))})
    return pd.DataFrame(out)


def sampling_variance(scores: pd.DataFrame) -> pd.DataFrame:
    """Variance of a cycle's trait score that drawing other answers to the same questions would cause: one row a (chain, cycle).

    Mean over questions of the variance within a question over its number of answers, over the number of questions; needs two answers a question.
    """
    kept = scores[(scores["set"] == "direct") & scores["trait_score"].notna()]
    by_question = kept.groupby(["chain", "cycle", "question_id"])["trait_score"].agg(["var", "size"]).dropna().reset_index()
    by_question["error"] = by_question["var"] / by_question["size"]
    out = by_question.groupby(["chain", "cycle"])["error"].agg(["sum", "size"]).reset_index()
    return out.assign(sampling=out["sum"] / out["size"] ** 2)[["chain", "cycle", "sampling"]]


def variance_split(rows: pd.DataFrame, scores: pd.DataFrame, late: int = 4) -> pd.DataFrame:
    """Variance of a late cycle's trait score between re-seeded chains of one cell, split into training seed and sampling of answers.

    One row an arm, pooled over cells with several seeds and over cycles from `late` on: total between seeds, the part that sampling answers explains, the
    rest (training seed; never below 0), in squared points. The offline judge scores the same text the same way, so its part is 0
    by construction; an API judge's shows where a text was judged twice.
    """
    from selftrain.analysis import arm

    rows = rows[rows["complete"] & (rows["cycle"] >= late)].assign(arm=lambda t: arm(t))
    rows = rows.merge(sampling_variance(scores), on=["chain", "cycle"], how="left")
    out = []
    for name, group in rows.groupby(["regime", "arm"], sort=False):
        cells = group.groupby([*CELL, "cycle"], dropna=False)
        some = cells.agg(total=("trait_score", "var"), sampling=("sampling", "mean"), seeds=("seed", "nunique")).dropna(subset=["total"])
        if len(some):
            total, sampling = float(some["total"].mean()), float(some["sampling"].mean())
            out.append(
                {
                    "regime": name[0],
                    "arm": name[1],
                    "cells": some.reset_index()[CELL].drop_duplicates().shape[0],
                    "between_seeds": total,
                    "sampling": sampling,
                    "training_seed": max(0.0, total - sampling),
                    "sd": total**0.5,
                }
            )
    return pd.DataFrame(out)


def power(sd: float, seeds: Sequence[int] = (2, 3, 4, 5, 6, 8, 10), changes: Sequence[float] = (5, 10, 15, 20, 30), level: float = 0.95) -> pd.DataFrame:
    """Probability that a t interval over training seeds excludes 0 when the true change is `changes` points and one chain's change scatters by `sd`.

    Two-sided one-sample t test; noncentral t distribution with n - 1 degrees of freedom and noncentrality change / (sd / sqrt n).
    """
    out = []
    for n in seeds:
        critical = stats.t.ppf(0.5 + level / 2, n - 1)
        for change in changes:
            shift = change / (sd / n**0.5)
            out.append({"seeds": n, "change": change, "power": float(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))})
    return pd.DataFrame(out)


def agreement(chains: Iterable[Series], rule: Rule = RULES["sustained"]) -> pd.DataFrame:
    """How brittle verdicts are in N and M: pairs of chains that differ in one step of N, one step of M, or only in the training seed.

    One row a kind of pair and arm: pairs, share with the same answer to "amplified?", and the mean distance of their deciding changes
    in points. Neighbours agreeing no less than re-seeded chains means that N and M matter no more than chance. Chains outside the denominator are left out.
    """
    table = verdicts(chains, rule)
    if table.empty:
        return pd.DataFrame()
    table = table[table["verdict"].isin(COUNTED)].reset_index(drop=True)
    keys = ["trait", "regime", "init", "arm", "model", "lr", "beta"]
    found = []
    for _, group in table.groupby(keys, dropna=False):
        for kind, fixed, moved in (("N", ["n_sampled", "seed"], "n_seed"), ("M", ["n_seed", "seed"], "n_sampled"), ("seed", ["n_seed", "n_sampled"], "seed")):
            for _, line in group.groupby(fixed):
                line = line.sort_values(moved)
                places = [(i, j) for i in range(len(line)) for j in range(i + 1, len(line)) if kind == "seed" or j == i + 1]
                for i, j in places:
                    a, b = line.iloc[i], line.iloc[j]
                    found.append(
                        {
                            "regime": a["regime"],
                            "arm": a["arm"],
                            "differ in": {"N": "one step of N", "M": "one step of M", "seed": "training seed only"}[kind],
                            "agree": (a["verdict"] == AMPLIFIED or a["point"]) == (b["verdict"] == AMPLIFIED or b["point"]),
                            "distance": abs(a["change"] - b["change"]),
                        }
                    )
    if not found:
        return pd.DataFrame(columns=["regime", "arm", "differ in", "pairs", "agree", "distance"])
    pairs = pd.DataFrame(found).groupby(["regime", "arm", "differ in"], sort=False)
    return pairs.agg(pairs=("agree", "size"), agree=("agree", "mean"), distance=("distance", "mean")).reset_index()


def scatter(table: pd.DataFrame) -> float:
    """Root mean square of the changes of `retrain` nulls, in points: the scatter of one chain's change where the truth is no change."""
    kept = table.loc[null_kind(table["null"]) == "retrain", "change"].dropna()
    return float(np.sqrt((kept**2).mean())) if len(kept) else float("nan")
