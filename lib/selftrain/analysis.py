"""From score tables to statements about chains. Reads tables only; imports no torch."""

from __future__ import annotations

import pandas as pd
from scipy import stats

SETTINGS = ["study", "panel", "trait", "regime", "init", "null", "dose_matched", "model", "lr", "n_seed", "n_sampled", "beta", "seed"]
PAIRING = ["trait", "regime", "n_seed", "n_sampled", "beta", "lr", "seed"]


def changes(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a complete chain: base, first (cycle 0) and last score, and `change` = last minus first, in points of the 1-100 score."""
    out = []
    for chain, group in rows[rows["complete"]].groupby("chain", sort=False):
        cycles = group.set_index("cycle").sort_index()
        last = cycles.index.max()
        if 0 not in cycles.index or last < 1:
            continue
        out.append(
            {
                "chain": chain,
                **{k: cycles.iloc[0].get(k) for k in SETTINGS},
                "base": cycles["trait_score"].get(-1),
                "first": cycles["trait_score"][0],
                "last": cycles["trait_score"][last],
                "last_cycle": last,
                "change": cycles["trait_score"][last] - cycles["trait_score"][0],
                "coherence_first": cycles["coherence"][0],
                "coherence_last": cycles["coherence"][last],
            }
        )
    return pd.DataFrame(out)


def arm(rows: pd.DataFrame) -> pd.Series:
    """Which arm of the comparison each row belongs to: continual, reinit, dose-matched reinit, or a null."""
    names = rows["init"].where(~rows["dose_matched"].fillna(False).astype(bool), "dose-matched " + rows["init"])
    return names.where(rows["null"] == "none", rows["null"] + " null")


def mean_interval(values: pd.Series, level: float = 0.95) -> pd.Series:
    """Mean of a few repetitions with Student's t interval: mean, lo, hi, n; lo and hi are empty below two values."""
    values = values.dropna().astype(float)
    n, mean = len(values), values.mean()
    half = stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / n**0.5 if n > 1 else float("nan")
    return pd.Series({"mean": mean, "lo": mean - half, "hi": mean + half, "n": n})


def arm_gaps(rows: pd.DataFrame, first: str = "continual", key: str = "trait_score") -> pd.DataFrame:
    """`first` minus every other arm at the last cycle: a row a pair of chains alike in (trait, regime, N, M, beta, lr, seed), a column an arm.

    Null arms are left to the caller. Pairs of which one chain is missing are missing.
    """
    rows = rows.assign(arm=arm(rows), beta=rows["beta"].fillna(0.0) if "beta" in rows else 0.0)
    last = rows[rows["cycle"] == rows.groupby("chain")["cycle"].transform("max")]
    wide = last.pivot_table(index=PAIRING, columns="arm", values=key)
    if first not in wide:
        return pd.DataFrame()
    return wide.drop(columns=first).rsub(wide[first], axis=0)


def arm_difference(rows: pd.DataFrame, first: str = "continual", key: str = "trait_score") -> pd.DataFrame:
    """`first` minus every other arm at the last cycle, with a t interval over training seeds: one row a setting and arm."""
    out = []
    for other, gap in arm_gaps(rows, first, key).items():
        for names, values in gap.dropna().groupby(level=PAIRING[:-1]):
            out.append({**dict(zip(PAIRING, names, strict=False)), "minus": other, **mean_interval(values)})
    return pd.DataFrame(out)
