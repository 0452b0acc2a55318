"""How long work takes on a GPU, estimated from a measured machine and the model's size. An estimate, and called one wherever it is shown."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from selftrain import memory, paths, trainers
from selftrain.bench import large, report
from selftrain.bench.floors import Peaks, Shape, peaks_of, sampling_step, training_step
from selftrain.errors import InputError

UTILISATION = 0.4  # share of peak bandwidth and arithmetic that large models are taken to reach where the bench has none of them


@dataclass(frozen=True)
class Machine:
    """Measured seconds of a sampling step (batch and mean length of the measurement) and of a training step (its tokens), of start-up, and where from.

    Of Unsloth's training from CROSSOVER on: `unsloth_step` is its shortest step, launches that no small batch spares, 0 where none was
    measured; `utilisation` the largest share of the peaks that it reached, which is taken for all work of models that large.
    """

    source: str
    shape: Shape
    peaks: Peaks
    batch: int
    length: float
    sampling_step: float
    train_tokens: float
    train_step: float
    startup: float
    unsloth_step: float = 0.0
    utilisation: float = UTILISATION

    @property
    def sampling_host(self) -> float:
        """Seconds a decoding step takes beyond what the hardware needs for it: launches, mostly, whatever the model's size."""
        return max(0.0, self.sampling_step - sampling_step(self.shape, self.batch, self.length, self.peaks) / self.utilisation)

    @property
    def training_host(self) -> float:
        """The same of an optimiser step."""
        return max(0.0, self.train_step - training_step(self.shape, round(self.train_tokens), self.peaks) / self.utilisation)


def machine() -> Machine:
    """The machine of the newest GPU bench whose GPU's peaks are known, one's own before the committed ones; InputError where there is none."""
    benches = [found for committed in (False, True) if (found := report.newest("cuda", committed))]
    known = [(path, result, peaks) for path, result in benches if (peaks := peaks_of(result["device"]["name"]))]
    if not known:
        raise InputError("results/bench has no bench of a GPU that bench/floors.py knows; run `make bench` on one, and add its peaks there")
    path, result, peaks = known[0]
    ours = report.done(result, "ours")
    unsloth = {  # by seconds of a step the share of the peaks that it reached
        (step := report.value(r["train_step_seconds"])): training_step(Shape(**r["shape"]), r["rows_a_step"] * r["length"], peaks) / step
        for _, _, r in report.pairs_of_trainers(result)
        if r["bits"] == 16 and r["shape"]["parameters"] >= trainers.CROSSOVER
    }
    return Machine(
        f"{result['device']['name']}, {result['date']} ({paths.shown(path)})",
        Shape(**ours["shape"]),
        peaks,
        result["sizes"]["batch"],
        ours["mean_sequence"],
        report.value(ours["sample_step_seconds"]),
        ours["train_tokens_a_step"],
        report.value(ours["train_step_seconds"]),
        ours["startup_seconds"] + ours["first_sample_seconds"],
        min(unsloth, default=0.0),
        max(unsloth.values(), default=UTILISATION),
    )


def shape_of(model: str) -> Shape | None:
    """A model's shape without its weights: from its folder, from the published shapes that the bench knows, else by the size in its name; None if unknown."""
    from selftrain.models import EMBEDDED

    count = trainers.parameters_of(model)
    if count is None:
        return None
    path = (EMBEDDED[model].folder if model in EMBEDDED else Path(model).expanduser()) / "config.json"
    known = [shape for size, shape in large.SHAPES.items() if f"qwen3-{size}" in model.lower()]
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else next(iter(known), {})
    if "num_hidden_layers" not in config:
        return Shape(count, trainers.ELEMENT, 0)
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return Shape(count, trainers.ELEMENT, 2 * config["num_hidden_layers"] * heads * size * trainers.ELEMENT)


def _is_small(m: Machine, shape: Shape) -> bool:
    """trainers.is_small of a model on that machine alone."""
    return shape.parameters < trainers.crossover(m.peaks.memory * memory.USABLE)


def sampling_seconds(m: Machine, shape: Shape, answers: int, prompt: float, new_tokens: int) -> float:
    """Seconds to sample answers of full length, as many at once as memory holds (a power of two, at most the measured batch)."""
    each = max(1.0, shape.kv_bytes * (prompt + new_tokens))
    weights = shape.weights * (2 if _is_small(m, shape) else 1)
    batch = max(1, memory.answers_in(m.peaks.memory * memory.USABLE, weights, each, m.batch))
    step = m.sampling_host + sampling_step(shape, min(batch, answers), prompt + new_tokens / 2, m.peaks) / m.utilisation
    return math.ceil(answers / batch) * new_tokens * step


def training_seconds(m: Machine, shape: Shape, steps: int, tokens: float, passes: float = 1.0) -> float:
    """Seconds of optimiser steps on `tokens` tokens each; `passes` counts what a step does beyond one forward and backward."""
    step = m.training_host + training_step(shape, round(tokens), m.peaks) / m.utilisation
    return steps * passes * (step if _is_small(m, shape) else max(step, m.unsloth_step))


def reading_seconds(m: Machine, shape: Shape, tokens: float) -> float:
    """Seconds of likelihood passes over texts: a third of training's operations."""
    return training_step(shape, round(tokens), m.peaks) / 3 / m.utilisation
