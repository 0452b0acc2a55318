"""What every figure shares: colours, one style, and how a figure is kept."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import matplotlib.colors

matplotlib.use("Agg", force=False)
import matplotlib.pyplot as plt  # noqa: E402
import pandas as pd  # noqa: E402
from IPython import get_ipython  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402

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
ARM_STYLES = {"continual": ("#D55E00", "-", "o"), "reinit": ("#0072B2", "-", "s"), "dose-matched reinit": ("#56B4E9", "--", "^")}


def style() -> None:
    """The study's one style: quiet axes, legible in print. In a notebook a figure that a cell returns is shown as a PNG."""
    if shell := get_ipython():
        shell.display_formatter.formatters["image/png"].for_type(Figure, png)
    plt.rcParams.update(
        {
            "figure.dpi": 110,
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


def png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as a PNG of 256 colours, a third of the size of one of all colours."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(packed, format="png", optimize=True)
    return packed.getvalue()


def save(figure: Figure, name: str, plotted: pd.DataFrame, folder: Path | None = None) -> list[Path]:
    """Write figures/<name>.png, .pdf and .csv, the csv holding exactly what was plotted."""
    folder = folder or paths.FIGURES
    folder.mkdir(parents=True, exist_ok=True)
    out = [folder / f"{name}.{end}" for end in ("png", "pdf", "csv")]
    out[0].write_bytes(png(figure, dpi=200))
    figure.savefig(out[1], bbox_inches="tight", metadata={"CreationDate": None, "Producer": None})
    plotted.to_csv(out[2], index=False, float_format="%.4g")
    return out


def panel_names(rows: pd.DataFrame, beta: bool = True) -> pd.Series:
    """What the panel of each row is called: regime and arm, beta where a regime has several, and a learning rate or a way to cycle 0 that is not the
    most frequent among these rows of the regime."""
    arms = rows["arm"] if "arm" in rows else analysis.arm(rows)  # analysis.changes keeps the arm, but not all that it is made of
    names = rows["regime"].str.upper() + " " + arms
    for key, said in (("beta", "beta {:g}"), ("lr", "lr {:.1g}"), ("cycle0", "cycle 0 by {}")):
        if key not in rows or key == "beta" and not beta:
            continue
        by_regime = rows.groupby("regime")[key]
        several = by_regime.transform("nunique") > 1
        if key != "beta":
            several &= rows[key] != by_regime.transform(lambda values: values.mode().get(0))
        names += rows[key].map(lambda value, said=said: "" if pd.isna(value) else ", " + said.format(value)).where(several, "")
    return names


def panel_order(name: str) -> tuple:
    """SFT, SDF, DPO; reinit before continual, nulls last."""
    regime, _, arm = name.partition(" ")
    return ("SFT", "SDF", "DPO").index(regime), "null" in arm, not arm.startswith("reinit"), name


def shade(colour: str, place: int, of: int) -> tuple:
    """The place-th of `of` shades of a colour, the last one the colour itself."""
    share = (place + 1) / of
    return tuple(1 - share * (1 - v) for v in matplotlib.colors.to_rgb(colour)) if of > 1 else matplotlib.colors.to_rgb(colour)


def cycle_axis(axis: plt.Axes, last: int, first: int = -1) -> None:
    """Cycles as ticks, the base named."""
    axis.set_xticks(range(first, last + 1), ["base" if k < 0 else str(k) for k in range(first, last + 1)])


def traits_in(rows: pd.DataFrame) -> list[str]:
    """The traits of some rows in the study's order."""
    return [t for t in TRAIT_COLOURS if t in set(rows["trait"])]
