"""Chains that were run more than once with the same seeds."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from selftrain.figures.common import GREY, cycle_axis

RUN_COLOURS = {
    ("sft", "reinit"): "#0072B2",
    ("sft", "continual"): "#D55E00",
    ("sdf", "reinit"): "#009E73",
    ("sdf", "continual"): "#CC79A7",
    ("dpo", "reinit"): "#56B4E9",
    ("dpo", "continual"): "#E69F00",
}
WAY_COLOURS = ("#444444", "#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7")
MARKERS = "osD^vPX"


def run_to_run(twice: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Trait score and coherence of the first and a later run of the same chains, a point a cycle from 0 on, the last one of a chain filled; on the line nothing differs.

    twice: the rows of reruns.run_to_run.
    """
    twice = twice[twice["cycle"] >= 0]
    arms = [arm for arm in RUN_COLOURS if arm in set(zip(twice["regime"], twice["init"], strict=True))]
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.3), layout="constrained")
    for axis, (column, label) in zip(axes, (("trait_score", "trait score"), ("coherence", "coherence")), strict=True):
        axis.plot([0, 100], [0, 100], color=GREY, lw=0.8, zorder=0)
        for regime, init in arms:
            mine = twice[(twice["regime"] == regime) & (twice["init"] == init)]
            last, colour = (
                mine["cycle"] == mine.groupby(["run", "chain"], observed=True)["cycle"].transform("max"),
                RUN_COLOURS[regime, init],
            )
            for some, face in ((mine[~last], "none"), (mine[last], colour)):
                axis.scatter(some[column], some[f"{column}_again"], s=16, linewidths=0.9, edgecolors=colour, facecolors=face)
        axis.set(
            xlim=(0, 102), ylim=(0, 102), aspect="equal", xlabel=f"{label}, first run", ylabel="again" if column == "trait_score" else None
        )
    named = [
        plt.Line2D([], [], marker="o", ls="", ms=4.5, color=RUN_COLOURS[arm], label=f"{arm[0].upper()} {arm[1]} ({n} chains)")
        for arm in arms
        for n in [twice.loc[(twice["regime"] == arm[0]) & (twice["init"] == arm[1]), "chain"].nunique()]
    ]
    figure.legend(handles=named, loc="outside right center", fontsize=8)
    plt.close(figure)
    return figure, twice


def ways(runs: pd.DataFrame, least: int = 4) -> tuple[Figure, pd.DataFrame]:
    """Trait score by cycle of chains that were run several times with the same seeds, a panel a chain, a line a run; a run that repeats an earlier one lies on its line.

    runs: the rows of reruns.every_run; chains of fewer than `least` runs are left out.
    """
    some = runs[(runs["cycle"] >= 0) & (runs.groupby("chain")["run"].transform("nunique") >= least)]
    chains = some.drop_duplicates("chain").sort_values(
        ["regime", "init", "trait", "n_seed", "seed"], ascending=[True, False, True, True, True]
    )
    names = [name for name in runs["run"].cat.categories if name in set(some["run"])]
    looks = {name: dict(marker=MARKERS[n % 7], color=WAY_COLOURS[n % 7], mfc="none" if n % 2 else None) for n, name in enumerate(names)}
    columns = min(3, len(chains))
    rows = -(-len(chains) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.5 * columns, 2.1 * rows), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, chain in zip(axes.flat, chains.itertuples(), strict=False):
        for name, look in looks.items():
            mine = some[(some["chain"] == chain.chain) & (some["run"] == name)]
            axis.plot(mine["cycle"], mine["trait_score"], ms=3.5, lw=1.1, **look)
        axis.set_title(f"{chain.trait}, {chain.init}, N={chain.n_seed}, seed {chain.seed}")
        cycle_axis(axis, int(some["cycle"].max()), first=0)
    for axis in axes.flat[len(chains) :]:
        axis.set_visible(False)
    figure.supylabel("trait score", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("cycle")
    named = [plt.Line2D([], [], ms=4.5, label=name, **look) for name, look in looks.items()]
    figure.legend(handles=named, loc="outside lower center", ncols=2, fontsize=8)
    plt.close(figure)
    return figure, some[["run", "chain", "cycle", "trait_score", "coherence"]]
