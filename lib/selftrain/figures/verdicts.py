"""What the rule says: an example of each verdict, the noise floor, and how much hangs on the rule's numbers."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from selftrain.figures.common import GREY, TRAIT_COLOURS, cycle_axis, panel_order
from selftrain.rules import SUSTAINED, Rule, exact_interval

SHOWN = ("amplified", "static", "decayed")


def representatives(table: pd.DataFrame) -> dict[str, pd.Series]:
    """For amplified, static and decayed the chain of `rules.verdicts` rows whose deciding change is the median; amplified by the point
    estimate where none is certain. A verdict that no chain has is absent."""
    table = table[table["null"] == "none"]
    out = {}
    for name in SHOWN:
        some = table[table["verdict"] == name]
        if some.empty and name == "amplified":
            some = table[table["point"] & (table["verdict"] == "undecided")]
        if len(some):
            ranked = some.sort_values(["change", "chain"])
            out[name] = ranked.iloc[(len(ranked) - 1) // 2]
    return out


def _printable(text: str) -> str:
    """Text as the figure's font can draw it: one line, without control characters and emoji."""
    return " ".join("".join(c if c.isprintable() and ord(c) < 0x2600 else " " for c in text).split())


def _said(texts: pd.DataFrame, chain: str, cycles: tuple[int, int], width: int = 46, most: int = 5) -> str:
    """The first and the last cycle's answer to the same question and sample, wrapped and cut to `most` lines."""
    mine = texts[(texts["chain"] == chain) & texts["cycle"].isin(cycles)].sort_values(["sample", "question_id", "cycle"])
    both = mine.groupby(["sample", "question_id"], sort=False).filter(lambda g: g["cycle"].nunique() == 2 and g["answer"].str.strip().all())
    if both.empty:
        return "(no answers kept)"
    # the question whose two answers are nearest to their cycles' mean scores speaks for the chain
    means = both.groupby("cycle")["trait_score"].transform("mean")
    both = both.assign(far=(both["trait_score"] - means).abs())
    place = both.groupby(["sample", "question_id"])["far"].sum().idxmin()
    pair = both.set_index(["sample", "question_id"]).loc[[place]]
    lines = [textwrap.shorten(f"Q: {pair['prompt'].iloc[0]}", 2 * width, placeholder=" ...")]
    for row in pair.itertuples():
        lines.append(f"\ncycle {row.cycle} ({row.trait_score:.0f}): " + _printable(row.answer))
    out = []
    for line in lines:
        wrapped = textwrap.wrap(line.strip().replace("$", r"\$"), width)
        out += [*(wrapped[:most]), ""] if len(wrapped) <= most else [*wrapped[: most - 1], wrapped[most - 1][: width - 4] + " ...", ""]
    return "\n".join(out).rstrip()


def example_verdicts(rows: pd.DataFrame, texts: pd.DataFrame, table: pd.DataFrame, rule: Rule = SUSTAINED) -> tuple[Figure, pd.DataFrame]:
    """An amplified, a static and a decayed chain: trait score and coherence by cycle with the rule's threshold, and beneath each the same
    question answered at cycle 0 and at the last cycle."""
    chosen = representatives(table)
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 4.9), height_ratios=[1.15, 1], squeeze=False)
    plotted = []
    for j, name in enumerate(SHOWN):
        axis, below = axes[0][j], axes[1][j]
        below.axis("off")
        axis.set_title(name, weight="bold")
        if name not in chosen:
            axis.text(0.5, 0.5, f"no chain {name}", transform=axis.transAxes, ha="center", color=GREY)
            axis.set(xticks=[], yticks=[])
            continue
        row = chosen[name]
        chain = rows[rows["chain"] == row["chain"]].sort_values("cycle")
        colour, last = TRAIT_COLOURS[row["trait"]], int(chain["cycle"].max())
        start = chain.loc[chain["cycle"] == rule.anchor, "trait_score"].iloc[0]
        axis.fill_between(
            chain["cycle"], chain["trait_lo"].astype(float), chain["trait_hi"].astype(float), color=colour, alpha=0.18, linewidth=0
        )
        axis.plot(chain["cycle"], chain["trait_score"], "o-", ms=3.5, color=colour)
        axis.plot(chain["cycle"], chain["coherence"], "--", lw=1, color=GREY)
        axis.hlines(start + rule.threshold, rule.first_late - 0.3, last + 0.3, color="#444444", lw=1, linestyle=":")
        axis.set(ylim=(0, 102), xlabel="cycle", ylabel="score (1-100)" if j == 0 else None)
        cycle_axis(axis, last)
        caution = "" if row["verdict"] == name else " (by point estimate)"
        settings = f"{row['trait']}, {row['regime'].upper()} {row['arm']}, N={row['n_seed']}, M={row['n_sampled']}{caution}"
        axis.text(0.5, 1.13, settings, transform=axis.transAxes, ha="center", va="bottom", fontsize=8)
        below.text(0, 0.98, _said(texts, row["chain"], (0, last)), va="top", fontsize=7.2, linespacing=1.25)
        plotted.append(
            chain.assign(verdict=name)[["verdict", "chain", "trait", "regime", "cycle", "trait_score", "trait_lo", "trait_hi", "coherence"]]
        )
    figure.subplots_adjust(left=0.06, right=0.99, top=0.84, bottom=0.02, hspace=0.42, wspace=0.16)
    plt.close(figure)
    return figure, pd.concat(plotted, ignore_index=True) if plotted else pd.DataFrame()


def noise_floor(floor: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Rate of "amplified" under each rule: null arms (open) beside the study's arms (filled), with exact 95 % intervals.

    floor: the rows of noise.false_positives.
    """
    rules = list(dict.fromkeys(floor["rule"]))
    floor = floor[floor["n"] > 0]
    groups = floor.drop_duplicates(["null", "regime", "arm"])[["null", "regime", "arm", "is_null"]].to_dict("records")
    figure, axes = plt.subplots(
        1, len(rules), figsize=(1.75 * len(rules) + 1.9, 0.3 * len(groups) + 1.1), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, rule in zip(axes[0], rules, strict=True):
        for place, group in enumerate(groups):
            found = floor[(floor[["rule", "null", "regime", "arm"]] == [rule, group["null"], group["regime"], group["arm"]]).all(axis=1)]
            y, colour = len(groups) - 1 - place, "#0072B2" if group["is_null"] else "#D55E00"
            for row in found.to_dict("records"):
                axis.hlines(y, row["rate_lo"], row["rate_hi"], color=colour, lw=1.3)
                axis.plot(row["rate"], y, "o", ms=4.5, color=colour, markerfacecolor="white" if group["is_null"] else colour)
                axis.text(
                    1.02,
                    y,
                    f"{row['point']:.0f}/{row['n']:.0f}",
                    fontsize=6.5,
                    va="center",
                    color=GREY,
                    transform=axis.get_yaxis_transform(),
                )
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.6, len(groups) - 0.4), xlabel="share amplified", title=rule)
        axis.set_xticks([0, 0.5, 1])
    axes[0][0].set_yticks(range(len(groups))[::-1], [f"{g['regime'].upper()} {g['arm']}" for g in groups])
    plt.close(figure)
    return figure, floor


def sensitivity(table: pd.DataFrame, floor: float = SUSTAINED.floor) -> tuple[Figure, pd.DataFrame]:
    """Share of chains amplified against the threshold, a panel an arm (nulls among them), a colour an anchor, a line style a first late cycle; bands are
    exact 95 % intervals of the default reading. Drawn at one floor on a cycle's mean coherence; the csv has the verdict counts at all.

    table: the rows of rules.sensitivity.
    """
    table = table.assign(name=table["regime"].str.upper() + " " + table["arm"], share=table["point"] / table["n"].replace(0, np.nan))
    some = table[table["floor"] == floor]
    names = sorted(some.loc[some["n"] > 0, "name"].unique(), key=panel_order)
    lines = max(1, -(-len(names) // 4))
    columns = max(1, -(-len(names) // lines))
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.5 * columns + 1.7, 2.0 * lines + 0.5), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    colours = dict(zip(sorted(some["anchor"].unique()), ("#0072B2", "#D55E00", "#009E73"), strict=False))
    styles = dict(zip(sorted(some["first_late"].unique()), (":", "-", "--"), strict=False))
    for axis, name in zip(axes.flat, names, strict=False):
        mine = some[some["name"] == name]
        for (anchor, late), group in mine.groupby(["anchor", "first_late"]):
            axis.plot(
                group["threshold"], group["share"], styles[late], color=colours[anchor], lw=1.3, label=f"anchor {anchor}, from cycle {late}"
            )
        default = mine[(mine["anchor"] == SUSTAINED.anchor) & (mine["first_late"] == SUSTAINED.first_late) & (mine["n"] > 0)]
        if len(default):
            low, high = zip(*(exact_interval(int(r.point), int(r.n)) for r in default.itertuples()), strict=True)
            axis.fill_between(default["threshold"], low, high, color=colours[SUSTAINED.anchor], alpha=0.12, linewidth=0)
        axis.axvline(SUSTAINED.threshold, color=GREY, lw=0.8, zorder=0)
        axis.set(title=f"{name} (n={mine['n'].max()})", ylim=(-0.03, 1.03))
    for place, axis in enumerate(axes.flat):
        if place >= len(names):
            axis.set_visible(False)
        if place + columns >= len(names):
            axis.set_xlabel("threshold (points)")
            axis.tick_params(labelbottom=True)
    axes[0][0].set_ylabel("share amplified")
    if names:
        axes[0][min(columns, len(names)) - 1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    plt.close(figure)
    return figure, table.drop(columns="name")
