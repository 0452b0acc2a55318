"""From score tables to statements about chains. Reads tables only; imports no torch."""
from __future__ import annotations

import pandas as pd

SETTINGS = ["study", "panel", "trait", "regime", "init", "null", "model", "n_seed", "n_sampled", "beta", "seed"]


def changes(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a complete chain: base, first (cycle 0) and last score, and `change` = last minus first, in points of the 1-100 score."""
    out = []
    for chain, group in rows[rows["complete"]].groupby("chain", sort=False):
        cycles = group.set_index("cycle").sort_index()
        last = cycles.index.max()
        if 0 not in cycles.index or last < 1:
            continue
        out.append({"chain": chain, **{k: cycles.iloc[0].get(k) for k in SETTINGS}, "base": cycles["trait_score"].get(-1), "first": cycles["trait_score"][0],
                    "last": cycles["trait_score"][last], "last_cycle": last, "change": cycles["trait_score"][last] - cycles["trait_score"][0],
                    "coherence_first": cycles["coherence"][0], "coherence_last": cycles["coherence"][last]})
    return pd.DataFrame(out)
