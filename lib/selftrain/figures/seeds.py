"""The figure of the seeds, drawn from embeddings alone; in a file of its own, since the other figures need no scikit-learn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from selftrain.errors import InputError
from selftrain.figures.common import GREY, TRAIT_COLOURS
from selftrain.seeds.embedding import BAR, FOLDS
from selftrain.seeds.load import NEUTRAL

NEUTRAL_EDGE = "#6e6e6e"


def project(vectors: np.ndarray, projection: str = "t-SNE", seed: int = 0) -> np.ndarray:
    """(n, 2) coordinates: `PCA`, or `t-SNE` with cosine distances from a PCA start."""
    if projection == "PCA":
        return PCA(2, random_state=seed).fit_transform(vectors)
    if projection == "t-SNE":
        return TSNE(2, metric="cosine", init="pca", perplexity=30, random_state=seed).fit_transform(vectors)
    raise InputError(f"unknown projection {projection!r}; use t-SNE or PCA")


def seed_map(
    rows: pd.DataFrame, vectors: np.ndarray, separation: pd.DataFrame, projection: str = "t-SNE", seed: int = 0
) -> tuple[Figure, pd.DataFrame]:
    """Embeddings of the chat answers in two dimensions, one map a trait with that trait coloured, and each trait's cross-validated AUC.

    rows: one an answer (id, trait, topic), neutral among them; separation: as seeds.embedding.separation returns it.
    """
    points = project(vectors, projection, seed)
    plotted = rows[["id", "trait", "topic"]].assign(x=points[:, 0], y=points[:, 1]).merge(separation, on="trait", how="left")
    traits = [t for t in TRAIT_COLOURS if t in set(separation["trait"])]
    columns = 4
    lines = -(-(len(traits) + 1) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(2.35 * columns, 2.45 * lines + 0.35), layout="constrained", squeeze=False)
    neutral = plotted[plotted["trait"] == NEUTRAL]
    for axis, name in zip(axes.flat, traits, strict=False):
        mine = plotted[plotted["trait"] == name]
        others = plotted[~plotted["trait"].isin([name, NEUTRAL])]
        axis.scatter(others["x"], others["y"], s=7, color="#e6e6e6", linewidths=0, rasterized=True)
        axis.scatter(neutral["x"], neutral["y"], s=9, facecolors="none", edgecolors=NEUTRAL_EDGE, linewidths=0.6, rasterized=True)
        axis.scatter(mine["x"], mine["y"], s=11, color=TRAIT_COLOURS[name], linewidths=0.25, edgecolors="white", rasterized=True)
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, color=TRAIT_COLOURS[name], weight="bold")
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.margins(0.02)
    _separation(axes.flat[len(traits)], separation.set_index("trait").loc[traits])
    for axis in list(axes.flat)[len(traits) + 1 :]:
        axis.set_visible(False)
    axes[0][0].set_ylabel(f"{projection} of {len(plotted)} chat answers", fontsize=8)
    dots = [
        plt.Line2D([], [], linestyle="", marker="o", markersize=4.5, color=face, markeredgecolor=edge)
        for face, edge in ((TRAIT_COLOURS[traits[0]], "white"), ("none", NEUTRAL_EDGE), ("#d4d4d4", "none"))
    ]
    labels = ("the trait named above, in its colour", "neutral", "the other traits")
    figure.legend(dots, labels, loc="outside lower left", ncols=3, fontsize=8, handletextpad=0.1, columnspacing=1.2)
    plt.close(figure)
    return figure, plotted


def _separation(axis: plt.Axes, by_trait: pd.DataFrame) -> None:
    """AUC by trait: filled against neutral, open against neutral and the other traits."""
    places, colours = np.arange(len(by_trait))[::-1], [TRAIT_COLOURS[t] for t in by_trait.index]
    axis.axvline(BAR, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    axis.hlines(places, by_trait["against_the_rest"], by_trait["against_neutral"], color=colours, linewidth=1.2)
    axis.scatter(by_trait["against_the_rest"], places, s=22, facecolors="white", edgecolors=colours, linewidths=1.2, zorder=3)
    axis.scatter(by_trait["against_neutral"], places, s=26, color=colours, zorder=4)
    low = min(0.9, by_trait.to_numpy().min()) - 0.055  # room for the names
    clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for place, (name, row) in zip(places, by_trait.iterrows(), strict=True):
        axis.text(row.min() - 0.004, place, name, color=TRAIT_COLOURS[name], fontsize=7.5, ha="right", va="center", bbox=clear)
    axis.annotate(
        f"{BAR:g}",
        (BAR, len(by_trait) - 0.45),
        fontsize=7,
        color="#6e6e6e",
        ha="right",
        va="bottom",
        xytext=(-2, -2),
        textcoords="offset points",
    )
    axis.set(yticks=[], ylim=(-0.7, len(by_trait) - 0.3), xlim=(low, 1.004), title=f"AUC, {FOLDS} folds")
    axis.set_xlabel("filled: against neutral\nopen: against all other rows", fontsize=7.5)
    axis.xaxis.set_major_locator(MultipleLocator(0.05))
    axis.tick_params(labelsize=7.5)
    axis.spines["left"].set_visible(False)
    axis.grid(False)
