"""Figures: one function each, drawn from tables alone, named like the files they are saved as. `seeds` stays apart, since it alone needs scikit-learn."""

from selftrain.figures.arms import continual_vs_reinit, temperatures
from selftrain.figures.common import ARM_STYLES, GREY, TRAIT_COLOURS, png, save, style
from selftrain.figures.reruns import run_to_run, ways
from selftrain.figures.sweeps import chain_so_far, pages, sweep_map, sweep_scores
from selftrain.figures.tradeoff import coherence_floor, quality_by_cycle, tradeoff_paths
from selftrain.figures.verdicts import example_verdicts, noise_floor, sensitivity

__all__ = [
    "ARM_STYLES",
    "GREY",
    "TRAIT_COLOURS",
    "chain_so_far",
    "coherence_floor",
    "continual_vs_reinit",
    "example_verdicts",
    "noise_floor",
    "pages",
    "png",
    "quality_by_cycle",
    "run_to_run",
    "save",
    "sensitivity",
    "style",
    "sweep_map",
    "sweep_scores",
    "temperatures",
    "tradeoff_paths",
    "ways",
]
