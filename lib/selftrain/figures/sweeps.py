"""Score by cycle, and the map of change: what a grid of chains did."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from selftrain import analysis
from selftrain.figures.common import GREY, TRAIT_COLOURS, cycle_axis, panel_names, panel_order, shade, traits_in

ABREAST = 4  # maps in a row
WIDE = 14  # inches that maps without gaps may fill
SPARSE = 2 / 3  # share of a trait-by-arm grid of maps below which those that were run stand side by side, without gaps
FEWEST_SEEDS = 3  # that get a band: the t interval of two is twelve standard errors wide and hides what it is drawn around


def chain_so_far(rows: pd.DataFrame, config: Any) -> Figure:
    """Trait score with its interval and coherence by cycle, of one chain; `rows` has one row a cycle, the base as -1."""
    figure, axis = plt.subplots(figsize=(5.2, 2.6))
    colour = TRAIT_COLOURS.get(config.trait, "#333333")
    low, high = (rows[c].astype(float) for c in ("trait_lo", "trait_hi"))
    axis.fill_between(rows["cycle"], low, high, color=colour, alpha=0.2, linewidth=0)
    axis.plot(rows["cycle"], rows["trait_score"], "o-", color=colour, label=config.trait)
    axis.plot(rows["cycle"], rows["coherence"], "s--", color=GREY, label="coherence")
    axis.set(xlim=(-1.3, config.last_cycle + 0.3), ylim=(0, 102), xlabel="cycle", ylabel="score (1-100)")
    cycle_axis(axis, config.last_cycle)
    axis.legend(frameon=False, fontsize=8, loc="best")
    axis.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure


def _cell(axis: plt.Axes, cell: pd.DataFrame, colour: tuple, label: str) -> None:
    """One N of one panel: a chain with its interval over questions, or several seeds with their mean and, from three on, its interval over seeds."""
    chains = [chain.sort_values("cycle") for _, chain in cell.groupby("chain")]
    if len(chains) == 1:
        line = chains[0].set_index("cycle")[["trait_score", "trait_lo", "trait_hi"]].astype(float)
    else:
        for chain in chains:
            axis.plot(chain["cycle"], chain["trait_score"], "-", lw=0.6, alpha=0.6, color=colour)
        line = cell.groupby("cycle")["trait_score"].apply(analysis.mean_interval).unstack()[["mean", "lo", "hi"]]
    if len(chains) == 1 or len(chains) >= FEWEST_SEEDS:
        axis.fill_between(line.index, line.iloc[:, 1], line.iloc[:, 2], color=colour, alpha=0.18, linewidth=0)
    axis.plot(line.index, line.iloc[:, 0], "o-", ms=3.5, color=colour, label=label)


def sweep_scores(rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Trait score by cycle, a row of panels a trait, a column an arm and M; lines by N, coherence dashed.

    Bands are 95 % t intervals: over questions where a cell has one chain, over training seeds (thin lines) where it has three or more.
    """
    rows = rows.assign(arm=panel_names(rows))
    traits, n_seed, last = traits_in(rows), sorted(rows["n_seed"].unique()), int(rows["cycle"].max())
    columns = sorted({(r.arm, r.n_sampled) for r in rows.itertuples()}, key=lambda c: (panel_order(c[0]), c[1]))
    figure, axes = plt.subplots(
        len(traits), len(columns), figsize=(2.9 * len(columns) + 0.6, 2.3 * len(traits) + 0.4), sharex=True, sharey=True, squeeze=False
    )
    for i, trait in enumerate(traits):
        for j, (arm, m) in enumerate(columns):
            axis = axes[i][j]
            panel = rows[(rows["trait"] == trait) & (rows["arm"] == arm) & (rows["n_sampled"] == m)]
            for place, n in enumerate(n_seed):
                cell = panel[panel["n_seed"] == n]
                if len(cell):
                    _cell(axis, cell, shade(TRAIT_COLOURS[trait], place, len(n_seed)), f"trait, N={n}")
                    coherence = cell.groupby("cycle")["coherence"].mean()
                    axis.plot(
                        coherence.index,
                        coherence,
                        "--",
                        lw=1,
                        color=GREY,
                        label="coherence" if cell["n_seed"].iloc[0] == panel["n_seed"].min() else None,
                    )
            axis.set_ylim(0, 102)
            cycle_axis(axis, last)
            if panel.empty:
                axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", va="center", color=GREY, fontsize=8)
            if i == 0:
                axis.set_title(textwrap.fill(f"{arm}, M={m}", 34))
            if j == 0:
                axis.set_ylabel(f"{trait}\nscore (1-100)")
            if i == len(traits) - 1:
                axis.set_xlabel("cycle")
        named = {label: handle for axis in axes[i] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        named["coherence"] = named.pop("coherence")  # last
        axes[i][-1].legend(named.values(), named, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.align_ylabels()
    plt.close(figure)
    names = "chain trait arm n_seed n_sampled seed cycle trait_score trait_lo trait_hi coherence n_judged n_requested"
    return figure, rows[names.split()]


def pages(rows: pd.DataFrame, most: int = 24) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, rows) of the figures that a study's rows should be drawn as: one a regime, and where that would have more than `most` panels one a regime and trait."""
    for regime, group in rows.groupby("regime"):
        columns = len(set(zip(panel_names(group), group["n_sampled"], strict=True)))
        if columns * group["trait"].nunique() <= most:
            yield regime, group
        else:
            for trait in traits_in(group):
                yield f"{regime}_{trait}", group[group["trait"] == trait]


def sweep_map(changes: pd.DataFrame, by: str = "n_seed") -> tuple[Figure, pd.DataFrame]:
    """Change of the trait score from cycle 0 to the last cycle over N or beta (rows, `by`) and M (columns), a map a trait and arm; mean over
    seeds, and over N where `by` is beta."""
    changes = changes.assign(arm=panel_names(changes, beta=by != "beta"))
    cells = changes.groupby(["trait", "arm", by, "n_sampled"], as_index=False).agg(
        change=("change", "mean"), chains=("chain", "size"), first=("first", "mean")
    )
    traits = traits_in(cells)
    arms = sorted(cells["arm"].unique(), key=panel_order)
    rows, columns = sorted(cells[by].unique()), sorted(cells["n_sampled"].unique())
    width, height = max(1.9, 0.8 * len(columns) + 0.6), max(1.1, 0.55 * len(rows) + 0.5)
    run, maps = set(zip(cells["trait"], cells["arm"], strict=True)), [(trait, arm) for trait in traits for arm in arms]
    across = len(arms) * min(len(traits), max(1, ABREAST // len(arms)))
    if len(run) < SPARSE * len(maps):
        maps, across = [pair for pair in maps if pair in run], min(len(run), max(1, int(WIDE // width)))
    down = -(-len(maps) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(width * across + 1, height * down + 0.5), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    image = None
    for place, ((trait, arm), axis) in enumerate(zip(maps, axes.flat, strict=False)):
        cell = cells[(cells["trait"] == trait) & (cells["arm"] == arm)]
        grid = cell.pivot(index=by, columns="n_sampled", values="change").reindex(index=rows, columns=columns)
        image = axis.imshow(grid.astype(float), cmap="RdBu_r", vmin=-60, vmax=60, aspect="auto", origin="lower")
        for (y, x), value in np.ndenumerate(grid.to_numpy(dtype=float)):
            if not np.isnan(value):
                axis.text(x, y, f"{value:+.0f}", ha="center", va="center", fontsize=10, color="white" if abs(value) > 38 else "black")
        axis.set_xticks(range(len(columns)), [f"M={m}" for m in columns])
        axis.set_yticks(range(len(rows)), [f"{'N' if by == 'n_seed' else by}={n:g}" for n in rows])
        axis.grid(False)
        if cell.empty:
            axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", va="center", color=GREY, fontsize=8)
        axis.set_title(textwrap.fill(f"{trait}: {arm}", max(16, int(width * 9))), fontsize=8)
        axis.tick_params(labelbottom=place + across >= len(maps))
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    figure.colorbar(image, ax=axes, label="change of trait score,\ncycle 0 to last", shrink=min(0.9, 3.2 / figure.get_figheight()))
    plt.close(figure)
    return figure, cells
