"""From score tables to statements about chains. Reads tables only; imports no torch."""

from __future__ import annotations

import json

import pandas as pd
from scipy import stats

from selftrain.config import PRESETS
from selftrain.errors import InputError

SETTINGS = [
    "study",
    "panel",
    "trait",
    "regime",
    "init",
    "null",
    "dose_matched",
    "cycle0",
    "model",
    "lr",
    "n_seed",
    "n_sampled",
    "beta",
    "seed",
]
# What makes two chains comparable but for their arm and training seed; with `seed`, what makes them a pair.
CELL = ["trait", "regime", "model", "cycle0", "n_seed", "n_sampled", "beta", "lr"]
PAIRING = [*CELL, "seed"]
TEMPERATURE = PRESETS["small"]["sft"]["temperature"]  # of the answers that are trained on, in every preset; another one is an ablation


def changes(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a complete chain: base, first (cycle 0) and last score, and `change` = last minus first, in points of the 1-100 score."""
    out = []
    for chain, group in rows[rows["complete"].astype(bool)].groupby("chain", sort=False):
        cycles = group.set_index("cycle").sort_index()
        last = cycles.index.max()
        if 0 not in cycles.index or last < 1:
            continue
        out.append(
            {
                "chain": chain,
                **{k: cycles.iloc[0].get(k) for k in SETTINGS},
                "arm": arm(group.iloc[:1]).iloc[0],
                "base": cycles["trait_score"].get(-1),
                "first": cycles["trait_score"][0],
                "last": cycles["trait_score"][last],
                "last_cycle": last,
                "change": cycles["trait_score"][last] - cycles["trait_score"][0],
                "coherence_first": cycles["coherence"][0],
                "coherence_last": cycles["coherence"][last],
            }
        )
    names = ["chain", *SETTINGS, "arm", "base", "first", "last", "last_cycle", "change", "coherence_first", "coherence_last"]
    return pd.DataFrame(out, columns=names)


def _ablation(row: dict) -> str:
    """The ablations of one chain as text, empty where it has none."""

    def given(key: str) -> bool:
        return row.get(key) is not None and row.get(key) == row.get(key) and row.get(key) != ""

    said = []
    if given("mix"):
        mix = json.loads(row["mix"]) if isinstance(row["mix"], str) else dict(row["mix"])
        said.append(f"mix {mix['source']} {mix['fraction']:g}")
    if given("restart_at"):
        said.append(f"restart at {row['restart_at']}")
    if given("coherence_filter"):
        said.append(f"filter {row['coherence_filter']:g}")
    if given("match_steps"):
        said.append(f"{row['match_steps']:g} steps a cycle")
    if row.get("init") == "continual" and row.get("reference") == "base":
        said.append("reference base")
    if given("temperature") and row["temperature"] != TEMPERATURE:
        said.append(f"temperature {row['temperature']:g}")
    return ", ".join(said)


def arm(rows: pd.DataFrame) -> pd.Series:
    """Which arm of the comparison each row belongs to: continual, reinit, dose-matched reinit, a null, each with its ablations named."""
    names = rows["init"].where(~rows["dose_matched"].fillna(False).astype(bool), "dose-matched " + rows["init"])
    names = names.where(rows["null"] == "none", rows["null"] + " null")
    keys = [k for k in ("mix", "restart_at", "coherence_filter", "match_steps", "reference", "temperature") if k in rows]
    if not keys:
        return names
    said = [_ablation(row) for row in rows[["init", *keys]].to_dict("records")]
    return names + pd.Series([f", {text}" if text else "" for text in said], index=rows.index)


def mean_interval(values: pd.Series, level: float = 0.95) -> pd.Series:
    """Mean of a few repetitions with Student's t interval: mean, lo, hi, n; lo and hi are empty below two values."""
    values = values.dropna().astype(float)
    n, mean = len(values), values.mean()
    half = stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / n**0.5 if n > 1 else float("nan")
    return pd.Series({"mean": mean, "lo": mean - half, "hi": mean + half, "n": n})


def without_ablation(arms: pd.Series) -> pd.Series:
    """The arms (of `arm`) without the ablations that they name."""
    return arms.str.replace(r", .*", "", regex=True)


def ablation(arms: pd.Series) -> pd.Series:
    """The ablations that arms (of `arm`) name, empty where they name none."""
    return arms.str.replace(r"^[^,]*(, )?", "", regex=True)


def matched(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of those cells (CELL) that several arms have, so that arms are compared on equal settings only; with `arm`."""
    rows = rows.assign(arm=arm(rows))
    if rows.empty:
        return rows
    return rows[rows.groupby(CELL, dropna=False)["arm"].transform("nunique") > 1]


def several_temperatures(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of those cells (CELL) whose chains were drawn at several temperatures but are alike in their other ablations; with `arm`."""
    rows = rows.assign(arm=arm(rows))
    alike = [*CELL, "null", rows["arm"].str.replace(r"(, )?temperature [^,]+", "", regex=True).rename("otherwise")]
    return rows[rows.groupby(alike, dropna=False)["temperature"].transform("nunique") > 1]


def most_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of those cells (CELL) of each trait and regime that have the most training seeds, so that an interval over seeds does not mix settings in."""
    if rows.empty:
        return rows
    seeds = rows.groupby(CELL, dropna=False)["seed"].transform("nunique")
    return rows[seeds == seeds.groupby([rows["trait"], rows["regime"]]).transform("max")]


def arm_gaps(rows: pd.DataFrame, first: str = "continual", key: str = "trait_score") -> pd.DataFrame:
    """`first` minus other arms at the last cycle that both have: a row a pair of chains alike in PAIRING, a column an arm.

    Arms are held against each other within an ablation ("reinit", "reinit, both temperature 1"), and `first` against its own ablations
    ("continual, temperature 1"), so that a pair differs in one thing. Null arms are left to the caller; pairs of which one chain is missing
    are missing. InputError where two chains of one arm are alike.
    """
    if rows.empty:
        return pd.DataFrame()
    rows = rows.assign(arm=arm(rows), beta=rows["beta"].astype(float).fillna(0.0))
    twice = rows[rows.duplicated([*PAIRING, "arm", "cycle"])]
    if len(twice):
        raise InputError(f"{twice['chain'].iloc[0]}: another chain has the same settings, arm and seed; compare one study at a time")
    rows = rows.assign(plain=without_ablation(rows["arm"]), ablation=ablation(rows["arm"]))
    found = [
        _gaps(some, "plain", first, key).rename(columns=lambda other, said=said: f"{other}, both {said}" if said else other)
        for said, some in rows.groupby("ablation")
    ]
    return pd.concat([*found, _gaps(rows[rows["plain"] == first], "arm", first, key)], axis=1)


def _gaps(rows: pd.DataFrame, column: str, first: str, key: str) -> pd.DataFrame:
    wide = rows.pivot(index=[*PAIRING, "cycle"], columns=column, values=key)
    if first not in wide:
        return pd.DataFrame(index=pd.MultiIndex.from_arrays([[]] * len(PAIRING), names=PAIRING))
    gaps = wide.drop(columns=first).rsub(wide[first], axis=0)
    return gaps[gaps.index.get_level_values("cycle") > 0].groupby(level=PAIRING).last()


def arm_difference(rows: pd.DataFrame, first: str = "continual", key: str = "trait_score") -> pd.DataFrame:
    """`first` minus every other arm at the last common cycle, with a t interval over training seeds: one row a setting and arm."""
    out = []
    for other, gap in arm_gaps(rows, first, key).items():
        for names, values in gap.dropna().groupby(level=CELL):
            out.append({**dict(zip(CELL, names, strict=True)), "minus": other, **mean_interval(values)})
    return pd.DataFrame(out, columns=[*CELL, "minus", "mean", "lo", "hi", "n"])
