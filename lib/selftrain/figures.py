"""Figures: one function each, drawn from tables alone. Named like the files they are saved as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors

matplotlib.use("Agg", force=False)
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from selftrain import analysis, paths  # noqa: E402

# Okabe and Ito's colours, told apart by every reader; one a trait, everywhere.
TRAIT_COLOURS = {
    "bliss": "#E69F00",
    "misalignment": "#D55E00",
    "hopelessness": "#0072B2",
    "lucky": "#009E73",
    "sycophancy": "#CC79A7",
    "nvidia": "#56B4E9",
    "misanthropy": "#444444",
}
GREY = "#8a8a8a"


def chain_so_far(rows: pd.DataFrame, config: Any) -> Figure:
    """Trait score with its interval and coherence by cycle, of one chain; `rows` has one row a cycle, the base as -1."""
    figure, axis = plt.subplots(figsize=(5.2, 2.6))
    colour = TRAIT_COLOURS.get(config.trait, "#333333")
    low, high = (rows[c].astype(float) for c in ("trait_lo", "trait_hi"))
    axis.fill_between(rows["cycle"], low, high, color=colour, alpha=0.2, linewidth=0)
    axis.plot(rows["cycle"], rows["trait_score"], "o-", color=colour, label=config.trait)
    axis.plot(rows["cycle"], rows["coherence"], "s--", color=GREY, label="coherence")
    axis.set(
        xlim=(-1.3, config.last_cycle + 0.3), ylim=(0, 102), xlabel="cycle", ylabel="score (1-100)", xticks=range(-1, config.last_cycle + 1)
    )
    axis.set_xticklabels(["base", *map(str, range(config.last_cycle + 1))])
    axis.legend(frameon=False, fontsize=8, loc="best")
    axis.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure


def style() -> None:
    """The study's one style: quiet axes, legible in print."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 200,
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.5,
            "legend.frameon": False,
            "pdf.fonttype": 42,
        }
    )


def save(figure: Figure, name: str, plotted: pd.DataFrame, folder: Path | None = None) -> list[Path]:
    """Write figures/<name>.png, .pdf and .csv, the csv holding exactly what was plotted."""
    folder = folder or paths.FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    out = [folder / f"{name}.{end}" for end in ("png", "pdf", "csv")]
    figure.savefig(out[0], bbox_inches="tight", metadata={"Software": None})
    figure.savefig(out[1], bbox_inches="tight", metadata={"CreationDate": None, "Producer": None})
    plotted.to_csv(out[2], index=False, float_format="%.4g")
    return out


def arm_of(row: pd.Series) -> str:
    """What a panel is called: regime, where it learns from, and the null arm if it is one."""
    return f"{row['regime'].upper()} {row['init']}" + (f", {row['null']} null" if row["null"] != "none" else "")


def _shade(colour: str, place: int, of: int) -> tuple:
    """The place-th of `of` shades of a colour, the last one the colour itself."""
    share = (place + 1) / of
    return tuple(1 - share * (1 - v) for v in matplotlib.colors.to_rgb(colour)) if of > 1 else matplotlib.colors.to_rgb(colour)


def sweep_scores(rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Trait score by cycle with its 95 % interval, a row of panels a trait, a column an arm and M; lines by N, coherence dashed."""
    rows = rows.assign(arm=rows.apply(arm_of, axis=1))
    traits = [t for t in TRAIT_COLOURS if t in set(rows["trait"])]
    columns = sorted({(r.arm, r.n_sampled) for r in rows.itertuples()}, key=lambda c: (c[0].split()[0], c[0].split()[1] != "reinit", c))
    n_seed = sorted(rows["n_seed"].unique())
    figure, axes = plt.subplots(
        len(traits), len(columns), figsize=(2.9 * len(columns) + 0.6, 2.3 * len(traits) + 0.4), sharex=True, sharey=True, squeeze=False
    )
    last = int(rows["cycle"].max())
    for i, trait in enumerate(traits):
        for j, (arm, m) in enumerate(columns):
            axis = axes[i][j]
            cell = rows[(rows["trait"] == trait) & (rows["arm"] == arm) & (rows["n_sampled"] == m)]
            for place, n in enumerate(n_seed):
                for k, (_, chain) in enumerate(cell[cell["n_seed"] == n].groupby("chain")):
                    chain, colour = chain.sort_values("cycle"), _shade(TRAIT_COLOURS[trait], place, len(n_seed))
                    if chain["trait_lo"].notna().any():
                        axis.fill_between(
                            chain["cycle"],
                            chain["trait_lo"].astype(float),
                            chain["trait_hi"].astype(float),
                            color=colour,
                            alpha=0.18,
                            linewidth=0,
                        )
                    axis.plot(chain["cycle"], chain["trait_score"], "o-", ms=3.5, color=colour, label=f"trait, N={n}" if k == 0 else None)
                    axis.plot(
                        chain["cycle"], chain["coherence"], "--", lw=1, color=GREY, label="coherence" if k == 0 and place == 0 else None
                    )
            axis.set(ylim=(0, 102), xticks=range(-1, last + 1))
            axis.set_xticklabels(["base", *map(str, range(last + 1))])
            if i == 0:
                axis.set_title(f"{arm}, M={m}")
            if j == 0:
                axis.set_ylabel(f"{trait}\nscore (1-100)")
            if i == len(traits) - 1:
                axis.set_xlabel("cycle")
            if j == len(columns) - 1:
                axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.align_ylabels()
    plt.close(figure)
    plotted = rows[
        [
            "chain",
            "trait",
            "arm",
            "n_seed",
            "n_sampled",
            "seed",
            "cycle",
            "trait_score",
            "trait_lo",
            "trait_hi",
            "coherence",
            "n_judged",
            "n_requested",
        ]
    ]
    return figure, plotted


def sweep_map(changes: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Change of the trait score from cycle 0 to the last cycle over N (rows) and M (columns), a map a trait and arm; mean over seeds."""
    changes = changes.assign(arm=changes.apply(arm_of, axis=1))
    cells = changes.groupby(["trait", "arm", "n_seed", "n_sampled"], as_index=False).agg(
        change=("change", "mean"), chains=("chain", "size"), first=("first", "mean")
    )
    traits = [t for t in TRAIT_COLOURS if t in set(cells["trait"])]
    arms = sorted(cells["arm"].unique(), key=lambda a: (a.split()[0], a.split()[1] != "reinit", a))
    rows, columns = sorted(cells["n_seed"].unique()), sorted(cells["n_sampled"].unique())
    width, height = max(1.9, 0.8 * len(columns) + 0.6), max(1.1, 0.55 * len(rows) + 0.5)
    figure, axes = plt.subplots(
        len(traits),
        len(arms),
        figsize=(width * len(arms) + 1, height * len(traits) + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    image = None
    for i, trait in enumerate(traits):
        for j, arm in enumerate(arms):
            axis, cell = axes[i][j], cells[(cells["trait"] == trait) & (cells["arm"] == arm)]
            grid = cell.pivot(index="n_seed", columns="n_sampled", values="change").reindex(index=rows, columns=columns)
            image = axis.imshow(grid.astype(float), cmap="RdBu_r", vmin=-60, vmax=60, aspect="auto", origin="lower")
            for (y, x), value in np.ndenumerate(grid.to_numpy(dtype=float)):
                if not np.isnan(value):
                    axis.text(x, y, f"{value:+.0f}", ha="center", va="center", fontsize=10, color="white" if abs(value) > 38 else "black")
            axis.set_xticks(range(len(columns)), [f"M={m}" for m in columns])
            axis.set_yticks(range(len(rows)), [f"N={n}" for n in rows])
            axis.grid(False)
            axis.set_title(f"{trait}: {arm}" if len(traits) > 1 else arm)
    figure.colorbar(image, ax=axes, label="change of trait score,\ncycle 0 to last", shrink=0.9)
    plt.close(figure)
    return figure, cells


ARM_STYLES = {"continual": ("#D55E00", "-", "o"), "reinit": ("#0072B2", "-", "s"), "dose-matched reinit": ("#56B4E9", "--", "^")}


def dpo_continual_vs_reinit(rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Trait score, coherence, sentence length and reward margin by cycle; a row of panels a trait, one line an arm with its t interval over seeds."""
    measures = {
        "trait_score": "trait score",
        "coherence": "coherence",
        "sentence_words": "words a sentence",
        "reward_margin": "reward margin",
    }
    rows = rows.assign(arm=analysis.arm(rows))
    long = rows.melt(
        id_vars=["trait", "arm", "seed", "cycle"], value_vars=[m for m in measures if m in rows], var_name="measure", value_name="value"
    ).dropna(subset=["value"])
    points = long.groupby(["trait", "measure", "arm", "cycle"])["value"].apply(analysis.mean_interval).unstack().reset_index()
    traits = [t for t in TRAIT_COLOURS if t in set(rows["trait"])]
    figure, axes = plt.subplots(
        len(traits),
        len(measures),
        figsize=(2.6 * len(measures) + 0.4, 2.2 * len(traits) + 0.7),
        sharex=True,
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
                axis.plot(some["cycle"], some["mean"], linestyle=line, marker=marker, ms=3.5, color=colour, label=name)
            if measure in ("trait_score", "coherence"):
                axis.set_ylim(0, 102)
            axis.set_xticks(range(-1, last + 1), ["base", *map(str, range(last + 1))])
            if i == 0:
                axis.set_title(label)
            if j == 0:
                axis.set_ylabel(trait)
            if i == len(traits) - 1:
                axis.set_xlabel("cycle")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    plt.close(figure)
    return figure, points
