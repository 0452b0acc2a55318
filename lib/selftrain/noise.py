"""The noise floor: how often a rule fires where nothing flows forward, how a score scatters between seeds and answers, and what several seeds buy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from selftrain.analysis import CELL, arm
from selftrain.results import whole_scores
from selftrain.rules import COUNTED, RULES, Rule, Series, rates, verdicts


def null_kind(null: pd.Series) -> pd.Series:
    """`none`, `untrained`, `neutral`, `other` or `retrain`: the kind of null arm without the trait that `other:<trait>` names."""
    return null.str.partition(":")[0]


def false_positives(chains: Iterable[Series], rules: Iterable[Rule] = tuple(RULES.values())) -> pd.DataFrame:
    """Rates of every rule in every null arm and, beside them, in the arms of the study: one row a (rule, kind of null, regime, arm).

    With no false positive in n nulls the upper end of the exact two-sided 95 % interval is about 3.7 / n.
    """
    chains, rules, out = list(chains), list(rules), []
    for rule in rules:
        table = verdicts(chains, rule)
        table = table.assign(null=null_kind(table["null"]))
        kinds = table["init"] + ", " + table["arm"].str.replace(r"^other:\w+", "other", regex=True)
        table["arm"] = table["arm"].where(table["null"] == "none", kinds)
        out.append(rates(table, ["rule", "null", "regime", "arm"]))
    found = pd.concat(out, ignore_index=True)
    found = found.assign(is_null=found["null"] != "none")
    order = found["rule"].map({rule.name: place for place, rule in enumerate(rules)}) * 2 + ~found["is_null"]
    return found.loc[order.sort_values(kind="stable").index].reset_index(drop=True)


def deviations(chains: Iterable[Series], anchor: int = 0) -> pd.DataFrame:
    """Change of every later cycle against the anchor, one row a (chain, cycle): what `retrain` nulls scatter by, although nothing flows."""
    out = []
    for chain in chains:
        cycles, change, low, high = chain.changes(anchor)
        for row in zip(cycles, change, low, high, strict=True):
            out.append(
                {**chain.settings, "score": chain.at(anchor), **dict(zip(("cycle", "change", "low", "high"), map(float, row), strict=True))}
            )
    return pd.DataFrame(out)


def sampling_variance(rows: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Variance of a cycle's trait score that drawing other answers to the same questions would cause: chain, cycle, sampling.

    Mean over questions of the variance within a question over its number of answers, over the number of questions. Needs two answers a
    question and every judged answer's score; other cycles are left out.
    """
    kept = whole_scores(rows, scores)
    kept = kept[(kept["set"] == "direct") & kept["trait_score"].notna()]
    by_question = kept.groupby(["chain", "cycle", "question_id"])["trait_score"].agg(["var", "size"]).dropna().reset_index()
    by_question["error"] = by_question["var"] / by_question["size"]
    out = by_question.groupby(["chain", "cycle"])["error"].agg(["sum", "size"]).reset_index()
    return out.assign(sampling=out["sum"] / out["size"] ** 2)[["chain", "cycle", "sampling"]]


def variance_split(rows: pd.DataFrame, scores: pd.DataFrame, late: int = 4) -> pd.DataFrame:
    """Variance of a late cycle's trait score between re-seeded chains of one cell, split into training seed and sampling of answers.

    One row an arm, pooled over its cells with two training seeds or more, weighted by degrees of freedom: `between_seeds`, the part
    `sampling` that drawing answers explains, the rest `training_seed` (never below 0; empty where sampling is not known), in squared points, and
    `sd`, the root of the first. Judge variance is no part of it: the offline judge scores the same text the same way.
    """
    rows = rows[rows["complete"].astype(bool) & (rows["cycle"] >= late)].assign(arm=lambda t: arm(t))
    rows = rows.merge(sampling_variance(rows, scores), on=["chain", "cycle"], how="left")
    out = []
    for (regime, name), group in rows.groupby(["regime", "arm"], sort=False):
        cells = group.groupby([*CELL, "cycle"], dropna=False)
        some = cells.agg(total=("trait_score", "var"), sampling=("sampling", "mean"), seeds=("seed", "nunique"), chains=("chain", "size"))
        some = some[(some["seeds"] > 1) & (some["seeds"] == some["chains"])].dropna(subset=["total"])
        if len(some):
            weight = some["seeds"] - 1
            total, known = float(np.average(some["total"], weights=weight)), some["sampling"].notna()
            sampling = float(np.average(some.loc[known, "sampling"], weights=weight[known])) if known.all() else float("nan")
            out.append(
                {
                    "regime": regime,
                    "arm": name,
                    "cells": len(some.reset_index()[CELL].drop_duplicates()),
                    "between_seeds": total,
                    "sampling": sampling,
                    "training_seed": np.fmax(0.0, total - sampling) if known.all() else float("nan"),
                    "sd": total**0.5,
                }
            )
    return pd.DataFrame(out, columns=["regime", "arm", "cells", "between_seeds", "sampling", "training_seed", "sd"])


def other_traits(table: pd.DataFrame, threshold: float = 15.0) -> pd.DataFrame:
    """What null chains do under the judges of all traits: a row a null arm and judged trait.

    Changes are those of the cycles from 4 on against the chain's own cycle 0, in points: their root mean square, their range, and `sustained`,
    the chains that stand at least `threshold` points higher at every one of them. Needs columns chain, arm, cycle, judged, trait_score.
    """
    wide = table.pivot(index=["arm", "judged", "chain"], columns="cycle", values="trait_score")
    change = wide[[c for c in wide if c >= 4]].sub(wide[0], axis=0)
    each = ["arm", "judged"]
    by_trait = change.groupby(level=each)
    return pd.DataFrame(
        {
            "chains": by_trait.size(),
            "cycle 0": wide[0].groupby(level=each).mean(),
            "rms change": (change**2).mean(axis=1).groupby(level=each).mean() ** 0.5,
            "lowest": change.min(axis=1).groupby(level=each).min(),
            "highest": change.max(axis=1).groupby(level=each).max(),
            "sustained": (change >= threshold).all(axis=1).groupby(level=each).sum(),
        }
    ).reset_index()


def power(
    sd: float, seeds: Sequence[int] = (2, 3, 4, 5, 6, 8, 10), changes: Sequence[float] = (5, 10, 15, 20, 30), level: float = 0.95
) -> pd.DataFrame:
    """Probability that a t interval over training seeds excludes 0 when the true change is `changes` points and one chain's change scatters by `sd`.

    Two-sided one-sample t test, t being noncentral with n - 1 degrees of freedom and noncentrality change / (sd / sqrt n): a normal tail,
    averaged over the chi-squared distribution of the estimated variance. (scipy.stats.nct gives up at the large noncentralities met here.)
    """
    quantiles = (np.arange(20_000) + 0.5) / 20_000
    out = []
    for n in seeds:
        critical = stats.t.ppf(0.5 + level / 2, n - 1) * np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))
        for change in changes:
            shift = change / (sd / n**0.5)
            power = stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift)
            out.append({"seeds": n, "change": change, "power": float(power.mean())})
    return pd.DataFrame(out)


def pairs(chains: Iterable[Series], rule: Rule = RULES["sustained"]) -> pd.DataFrame:
    """Pairs of chains of different training seeds, in the same cell or one step of N or M apart: group, kind, agree, distance.

    Neighbours are compared across seeds as re-seeded chains are, since chains of one seed share prompts and seed rows. Steps are those of the
    whole grid, whichever chains are left out; chains outside the denominator are. `agree`: the same answer to "amplified?" by point estimate;
    `distance`: of their deciding changes, in points.
    """
    table = verdicts(chains, rule)
    keys = ["trait", "regime", "arm", "model", "cycle0", "lr", "beta"]
    found = []
    for name, group in table.groupby(keys, dropna=False):
        steps = [dict(zip(levels := sorted(group[axis].unique()), levels[1:], strict=False)) for axis in ("n_seed", "n_sampled")]
        some = group[group["verdict"].isin(COUNTED)].to_dict("records")
        for i, a in enumerate(some):
            for j, b in enumerate(some):
                if a["seed"] == b["seed"]:
                    continue
                here, there = (a["n_seed"], a["n_sampled"]), (b["n_seed"], b["n_sampled"])
                kind = None
                if here == there and i < j:
                    kind = "training seed only"
                elif there == (steps[0].get(here[0]), here[1]):
                    kind = "one step of N"
                elif there == (here[0], steps[1].get(here[1])):
                    kind = "one step of M"
                if kind:
                    distance = abs(a["change"] - b["change"])
                    found.append(
                        {**dict(zip(keys, name, strict=True)), "differ in": kind, "agree": a["point"] == b["point"], "distance": distance}
                    )
    return pd.DataFrame(found, columns=[*keys, "differ in", "agree", "distance"])


def agreement(chains: Iterable[Series], rule: Rule = RULES["sustained"]) -> pd.DataFrame:
    """How brittle verdicts are in N and M: one row a kind of pair (see `pairs`) and arm, over the groups that have pairs of both kinds.

    Only if neighbours agree less than re-seeded chains do N and M matter, and not chance.
    """
    table = pairs(chains, rule)
    grouped = table.groupby(["regime", "arm", "differ in"], sort=False)
    return grouped.agg(pairs=("agree", "size"), agree=("agree", "mean"), distance=("distance", "mean")).reset_index()


def scatter(table: pd.DataFrame) -> float:
    """Root mean square of the changes of `retrain` nulls, in points: the scatter of one chain's change where the truth is no change."""
    kept = table.loc[null_kind(table["null"]) == "retrain", "change"].dropna() if len(table) else pd.Series(dtype=float)
    return float(np.sqrt((kept**2).mean())) if len(kept) else float("nan")
