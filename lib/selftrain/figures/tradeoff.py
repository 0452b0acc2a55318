"""What amplification costs: trait against coherence, perplexity, length and variety."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from selftrain import analysis, tradeoff
from selftrain.figures.common import GREY, TRAIT_COLOURS, cycle_axis, panel_order, traits_in

MEASURES = {
    "trait_score": "trait score",
    "coherence": "coherence",
    "perplexity": "perplexity (base model)",
    "sentence_words": "words a sentence",
    "n_words": "words an answer",
    "truncated": "share cut at the limit",
    "distinct2": "distinct-2",
}


def tradeoff_paths(rows: pd.DataFrame, floor: float = 50.0) -> tuple[Figure, pd.DataFrame]:
    """Every chain as an arrow from cycle 0 to its last cycle through trait (x) and coherence (y), a panel an arm, traits by colour; the
    step line is the Pareto front of all points of the panel, the dotted line the coherence floor."""
    points = tradeoff.paths(rows)
    points["name"] = points["regime"].str.upper() + " " + points["arm"]
    names = sorted(points["name"].unique(), key=panel_order)
    lines = -(-len(names) // 4)
    columns = -(-len(names) // lines)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.55 * columns + 0.5, 2.35 * lines + 0.6), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    points["on_front"] = False
    for axis, name in zip(axes.flat, names, strict=False):
        some = points[points["name"] == name]
        front = tradeoff.pareto(some)
        points.loc[front.index, "on_front"] = True
        axis.step(front["trait_score"], front["coherence"], where="pre", color=GREY, lw=0.9, zorder=1)
        axis.axhline(floor, color=GREY, lw=0.8, linestyle=":", zorder=0)
        for _, chain in some.groupby("chain"):
            colour = TRAIT_COLOURS[chain["trait"].iloc[0]]
            x, y = chain["trait_score"].to_numpy(), chain["coherence"].to_numpy()
            axis.plot(x, y, "-", color=colour, lw=0.9, alpha=0.85)
            axis.plot(x[0], y[0], "o", ms=4, color=colour, markerfacecolor="white", zorder=3)
            if len(x) > 1:
                axis.annotate("", (x[-1], y[-1]), (x[-2], y[-2]), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 0.9}, zorder=3)
        axis.set_title(name)
    for axis in list(axes.flat)[len(names) :]:
        axis.set_visible(False)
    for place, axis in enumerate(axes.flat):
        if place + columns >= len(names):
            axis.set_xlabel("trait score")
            axis.tick_params(labelbottom=True)
        if place % columns == 0:
            axis.set_ylabel("coherence")
    axes[0][0].set(xlim=(0, 102), ylim=(min(45.0, points["coherence"].min() - 3), 101))
    traits = traits_in(points)
    handles = [plt.Line2D([], [], color=TRAIT_COLOURS[t], marker="o", markerfacecolor="white", ms=4, lw=0.9) for t in traits]
    figure.legend(
        handles,
        [f"{t} (ring: cycle 0, arrow: last)" if k == 0 else t for k, t in enumerate(traits)],
        loc="outside lower center",
        ncols=len(traits),
        fontsize=7.5,
    )
    plt.close(figure)
    return figure, points


def quality_by_cycle(rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Trait score, coherence, perplexity, lengths, the share of answers cut at the length limit and distinct-2 by cycle: a row of panels an arm, a line a
    trait (mean over its chains, of perplexities the geometric one, as far as all of them go), so that what a trait gained and what the text lost stand in one row."""
    rows = rows[rows["complete"].astype(bool)].assign(arm=lambda t: analysis.arm(t), truncated=lambda t: t["n_truncated"] / t["n_drawn"])
    names = sorted({(r.regime, r.arm) for r in rows.itertuples()}, key=lambda n: panel_order(f"{n[0].upper()} {n[1]}"))
    rows = rows.assign(perplexity=np.log(rows["perplexity"].astype(float)))  # or one broken chain would be the mean
    points = rows.groupby(["regime", "arm", "trait", "cycle"], as_index=False)[list(MEASURES)].mean()
    points["perplexity"] = np.exp(points["perplexity"])
    here = rows.groupby(["regime", "arm", "trait", "cycle"])["chain"].nunique().rename("chains").reset_index()
    points = points.merge(here)
    points = points[points["chains"] == points.groupby(["regime", "arm", "trait"])["chains"].transform("max")]
    last = int(rows["cycle"].max())
    decades = np.log10(points["perplexity"].max() / points["perplexity"].min())
    figure, axes = plt.subplots(
        len(names),
        len(MEASURES),
        figsize=(1.75 * len(MEASURES) + 0.4, 1.6 * len(names) + 0.6),
        sharex=True,
        sharey="col",
        squeeze=False,
        layout="constrained",
    )
    for i, (regime, arm) in enumerate(names):
        for j, (measure, label) in enumerate(MEASURES.items()):
            axis = axes[i][j]
            some = points[(points["regime"] == regime) & (points["arm"] == arm)]
            for trait in traits_in(some):
                line = some[some["trait"] == trait].sort_values("cycle")
                axis.plot(line["cycle"], line[measure], "o-", ms=2.8, lw=1.1, color=TRAIT_COLOURS[trait], label=trait)
            if measure in ("trait_score", "coherence"):
                axis.set_ylim(0, 102)
            if measure == "truncated":
                axis.set_ylim(-0.03, 1.03)
            if measure == "perplexity":
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
                axis.yaxis.set_major_formatter(EngFormatter(sep=""))
                axis.yaxis.set_minor_formatter(NullFormatter())
            cycle_axis(axis, last)
            axis.tick_params(labelsize=7)
            if i == 0:
                axis.set_title(label)
            if j == 0:
                axis.set_ylabel(f"{regime.upper()}\n{arm}", fontsize=8)
            if i == len(names) - 1:
                axis.set_xlabel("cycle")
    handles = [plt.Line2D([], [], color=TRAIT_COLOURS[t], marker="o", ms=3) for t in traits_in(rows)]
    figure.legend(handles, traits_in(rows), loc="outside lower center", ncols=7, fontsize=8)
    plt.close(figure)
    return figure, points


def coherence_floor(changes: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Change of the trait score from cycle 0 to the last cycle, counting only text whose coherence is at least a floor (x), and beneath it
    the share of the last cycle's text that is kept; a line an arm, the mean over its chains that have text left at every floor.

    changes: the first table of tradeoff.by_floor. The csv says by floor how many chains have text left.
    """
    table = changes.assign(name=changes["regime"].str.upper() + " " + changes["arm"], left=changes["change"].notna())
    lasting = table.groupby("chain")["left"].transform("all")
    points = table.assign(change=table["change"].where(lasting)).groupby(["name", "floor"], as_index=False)
    points = points.agg(
        change=("change", "mean"),
        kept=("kept", "mean"),
        chains=("chain", "nunique"),
        chains_left=("left", "sum"),
        chains_drawn=("change", "count"),
    )
    figure, axes = plt.subplots(2, 1, figsize=(5.8, 4.2), sharex=True, height_ratios=[1.6, 1], layout="constrained")
    names = sorted(points["name"].unique(), key=panel_order)
    colours = plt.get_cmap("cividis").resampled(len(names) + 1)
    for place, name in enumerate(names):
        line, marker = points[points["name"] == name], "os^Dv<>PX*"[place % 10]
        label = f"{name} ({line['chains_drawn'].max()} of {line['chains'].max()})"
        axes[0].plot(line["floor"], line["change"], marker + "-", ms=4, color=colours(place), label=label)
        axes[1].plot(line["floor"], line["kept"], marker + "-", ms=4, color=colours(place))
    axes[0].axhline(0, color=GREY, lw=0.8)
    axes[0].set_ylabel("change of trait score,\ncycle 0 to last")
    axes[1].set(ylabel="share of text kept", xlabel="coherence floor", ylim=(-0.03, 1.03))
    if names:
        axes[0].legend(
            fontsize=7, title="arm (chains with text left at every floor)", title_fontsize=7, loc="upper left", bbox_to_anchor=(1, 1)
        )
    plt.close(figure)
    return figure, points
