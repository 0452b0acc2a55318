"""Figures: one function each, drawn from tables alone. Named like the files they are saved as."""
from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg", force=False)
import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

# Okabe and Ito's colours, told apart by every reader; one a trait, everywhere.
TRAIT_COLOURS = {"bliss": "#E69F00", "misalignment": "#D55E00", "hopelessness": "#0072B2", "lucky": "#009E73", "sycophancy": "#CC79A7", "nvidia": "#56B4E9",
                 "misanthropy": "#444444"}
GREY = "#8a8a8a"


def chain_so_far(rows: pd.DataFrame, config: Any) -> Figure:
    """Trait score with its interval and coherence by cycle, of one chain; `rows` has one row a cycle, the base as -1."""
    figure, axis = plt.subplots(figsize=(5.2, 2.6))
    colour = TRAIT_COLOURS.get(config.trait, "#333333")
    low, high = (rows[c].astype(float) for c in ("trait_lo", "trait_hi"))
    axis.fill_between(rows["cycle"], low, high, color=colour, alpha=0.2, linewidth=0)
    axis.plot(rows["cycle"], rows["trait_score"], "o-", color=colour, label=config.trait)
    axis.plot(rows["cycle"], rows["coherence"], "s--", color=GREY, label="coherence")
    axis.set(xlim=(-1.3, config.last_cycle + 0.3), ylim=(0, 102), xlabel="cycle", ylabel="score (1-100)", xticks=range(-1, config.last_cycle + 1))
    axis.set_xticklabels(["base", *map(str, range(config.last_cycle + 1))])
    axis.legend(frameon=False, fontsize=8, loc="best")
    axis.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure
