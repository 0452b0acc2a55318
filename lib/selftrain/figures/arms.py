"""Going on against starting afresh, side by side."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from selftrain import analysis
from selftrain.errors import InputError
from selftrain.figures.common import ARM_STYLES, cycle_axis, traits_in


def continual_vs_reinit(rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Trait score, coherence, sentence length and, where there are pairs, reward margin by cycle, for the chains of one regime.

    A row of panels a trait, one line an arm, on the settings that several arms have (analysis.matched) and that have the most training seeds:
    mean over seeds of the mean over settings, with a 95 % t interval over seeds, each seed as a thin line. InputError where no setting has two arms.
    """
    measures = {
        "trait_score": "trait score",
        "coherence": "coherence",
        "sentence_words": "words a sentence",
        "reward_margin": "reward margin",
    }
    measures = {name: label for name, label in measures.items() if name in rows and rows[name].notna().any()}
    rows = analysis.matched(rows)
    rows = analysis.most_seeds(rows[rows["arm"].isin(ARM_STYLES)])
    if rows.empty:
        raise InputError("no setting was run both continual and reinitialised; there is nothing to compare")
    long = rows.melt(id_vars=["trait", "arm", "seed", "cycle"], value_vars=list(measures), var_name="measure", value_name="value").dropna(
        subset=["value"]
    )
    seeds = long.groupby(["trait", "measure", "arm", "cycle", "seed"])["value"].mean()
    points = seeds.groupby(level=["trait", "measure", "arm", "cycle"]).apply(analysis.mean_interval).unstack().reset_index()
    traits = traits_in(rows)
    figure, axes = plt.subplots(
        len(traits),
        len(measures),
        figsize=(2.6 * len(measures) + 0.4, 2.2 * len(traits) + 0.7),
        sharex=True,
        sharey="col",
        squeeze=False,
        layout="constrained",
    )
    last = int(rows["cycle"].max())
    for i, trait in enumerate(traits):
        for j, (measure, label) in enumerate(measures.items()):
            axis = axes[i][j]
            for name, (colour, line, marker) in ARM_STYLES.items():
                some = points[(points["trait"] == trait) & (points["measure"] == measure) & (points["arm"] == name)].sort_values("cycle")
                if some.empty:
                    continue
                axis.fill_between(some["cycle"], some["lo"], some["hi"], color=colour, alpha=0.15, linewidth=0)
                for _, one in seeds[trait, measure, name].groupby(level="seed"):
                    axis.plot(one.index.get_level_values("cycle"), one, linestyle=line, lw=0.6, alpha=0.6, color=colour)
                axis.plot(some["cycle"], some["mean"], linestyle=line, marker=marker, ms=3.5, color=colour, label=name)
            if measure in ("trait_score", "coherence"):
                axis.set_ylim(0, 102)
            else:  # as the chains need it: an interval over three seeds can reach far beyond anything seen
                drawn = seeds[seeds.index.get_level_values("measure") == measure]
                room = 0.08 * (drawn.max() - drawn.min() or 1.0)
                axis.set_ylim(drawn.min() - room, drawn.max() + room)
            cycle_axis(axis, last)
            if i == 0:
                axis.set_title(label)
            if j == 0:
                axis.set_ylabel(trait)
            if i == len(traits) - 1:
                axis.set_xlabel("cycle")
    named = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, loc="outside lower center", ncols=3, fontsize=8)
    plt.close(figure)
    return figure, points
