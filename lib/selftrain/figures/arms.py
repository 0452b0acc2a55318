"""Going on against starting afresh, side by side."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from selftrain import analysis
from selftrain.errors import InputError
from selftrain.figures.common import ARM_STYLES, GREY, cycle_axis, traits_in

MEASURES = {"trait_score": "trait score", "coherence": "coherence", "sentence_words": "words a sentence", "reward_margin": "reward margin"}
MANY = 3  # traits; more of them do not fit beneath each other on a page
VARIETY = {"trait_score": "trait score", "coherence": "coherence", "distinct2": "distinct-2", "n_words": "words an answer"}


def continual_vs_reinit(rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Trait score, coherence, sentence length and, where there are pairs, reward margin by cycle, for the chains of one regime, a line an arm.

    InputError where no setting has two arms.
    """
    rows = analysis.matched(rows[analysis.arm(rows).isin(ARM_STYLES)])
    if rows.empty:
        raise InputError("no setting was run both continual and reinitialised; there is nothing to compare")
    return by_arm(rows, MEASURES, ARM_STYLES)


def temperatures(rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Trait score, coherence, distinct-2 and words an answer by cycle, for the chains of one regime, a line an arm, on the settings that were drawn at several
    temperatures (analysis.several_temperatures): dashed what was not drawn at the presets', null arms grey. InputError where no setting was."""
    rows = analysis.several_temperatures(rows)
    styles = {}
    for arm in sorted(set(rows["arm"]), key=lambda arm: (arm.count(","), arm)):
        colour, line, marker = ARM_STYLES.get(arm.partition(",")[0], (GREY, "-", "v"))
        styles[arm] = (colour, "--" if "temperature" in arm else line, marker)
    if rows.empty:
        raise InputError("no setting was drawn at several temperatures; there is nothing to compare")
    return by_arm(rows, VARIETY, styles)


def _size(rows: pd.DataFrame) -> str:
    """N and M of some rows; of several the least and the greatest."""
    ends = [(name, rows[key].min(), rows[key].max()) for name, key in (("N", "n_seed"), ("M", "n_sampled"))]
    return ", ".join(f"{name}={low}" if low == high else f"{name}={low}-{high}" for name, low, high in ends)


def by_arm(rows: pd.DataFrame, measures: dict[str, str], styles: dict[str, tuple[str, str, str]]) -> tuple[Figure, pd.DataFrame]:
    """A row of panels a trait, a column a measure (column: label), one line an arm (`arm`: colour, line, marker), by cycle; of many traits the other way round.

    Only the settings with the most training seeds are drawn: mean over seeds of the mean over settings, with a 95 % t interval over seeds
    where there are three, each seed as a thin line.
    """
    measures = {name: label for name, label in measures.items() if name in rows and rows[name].notna().any()}
    rows = analysis.most_seeds(rows)
    long = rows.melt(id_vars=["trait", "arm", "seed", "cycle"], value_vars=list(measures), var_name="measure", value_name="value").dropna(
        subset=["value"]
    )
    seeds = long.groupby(["trait", "measure", "arm", "cycle", "seed"])["value"].mean()
    points = seeds.groupby(level=["trait", "measure", "arm", "cycle"]).apply(analysis.mean_interval).unstack().reset_index()
    traits = traits_in(rows)
    across = len(traits) > MANY  # a column a trait
    size = (1.75 * len(traits) + 0.5, 1.7 * len(measures) + 0.7) if across else (2.6 * len(measures) + 0.4, 2.2 * len(traits) + 0.7)
    shape = (len(measures), len(traits)) if across else (len(traits), len(measures))
    figure, axes = plt.subplots(*shape, figsize=size, sharex=True, sharey="row" if across else "col", squeeze=False, layout="constrained")
    last = int(rows["cycle"].max())
    for i, trait in enumerate(traits):
        for j, measure in enumerate(measures):
            axis = axes[j][i] if across else axes[i][j]
            for name, (colour, line, marker) in styles.items():
                some = points[(points["trait"] == trait) & (points["measure"] == measure) & (points["arm"] == name)].sort_values("cycle")
                if some.empty:
                    continue
                if some["n"].min() > 2:  # an interval over two seeds hides everything
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
            axis.tick_params(axis="x", labelsize=6.5 if across else None)
    sized = [f"{trait}\n{_size(rows[rows['trait'] == trait])}" for trait in traits]
    titles, labels = (sized, measures.values()) if across else (measures.values(), traits)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    for axis in axes[-1]:
        axis.set_xlabel("cycle")
    named = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, loc="outside lower center", ncols=4, fontsize=8)
    plt.close(figure)
    return figure, points
