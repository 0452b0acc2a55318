"""The golden trajectory: per-step losses of a short run on fixed rows, to compare two trainers, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

from selftrain.formats import Item, preference_row, training_row
from selftrain.resident import Resident
from selftrain.training import Settings, train

# Between Unsloth's kernels and TRL's at bfloat16. Found on an H100: 0.003 (SFT) and 0.013 (DPO) a step, 0.004 in the mean. Not tighter: a DPO
# step of 4 pairs strays by up to 0.043 from ln 2 with hardly any learning rate (float32: 0.003), of 16 pairs by half of that.
STEP_TOLERANCE, MEAN_TOLERANCE = 0.05, 0.02
SETTINGS = Settings(lr=1e-3, schedule="cosine", epochs=2, batch_size=4, warmup=0.1, weight_decay=0.01, max_grad_norm=1.0, seed=11)


def losses(resident: Resident, rows: list[dict], settings: Settings = SETTINGS, reference: str | None = None) -> list[float]:
    """Per-step losses of training a fresh adapter (seed 5) on token rows."""
    resident.fresh(5)
    return [h["loss"] for h in train(resident, rows, settings, reference=reference).history]


def rows_for(tokenizer: Any, regime: str, items: list[Item], max_length: int = 320) -> list[dict]:
    """Token rows of a regime: `sft` answers, or `dpo` pairs of an item's answer and the next item's."""
    if regime == "sft":
        return [training_row(tokenizer, item, max_length) for item in items]
    others = items[1:] + items[:1]
    return [
        preference_row(tokenizer, a, Item(a.id, a.kind, a.prompt, b.answer, b.finished), max_length)
        for a, b in zip(items, others, strict=True)
    ]


def run(model: str, trainer: str) -> dict[str, Any]:
    """By regime the losses of 8 steps on a real model with the trainer asked for: 2 passes over 16 seed rows in 4s (`sft`) or 64 pairs in 16s (`dpo`);
    what `python -m selftrain.bench trajectory` prints as JSON. TRL trains without recorded passes here: this compares trainers; what
    recording changes is compared with TRL's own passes (bench part `correctness`)."""
    from selftrain.bench.sizes import items

    resident = Resident.open(model, rank=16, alpha=32, trainer=trainer)
    resident.plain_training = True
    found: dict[str, Any] = {"trainer": resident.trainer}
    for regime, n, reference, changes in (("sft", 16, None, {}), ("dpo", 64, "base", {"beta": 0.1, "lr": 3e-4, "batch_size": 16})):
        rows = rows_for(resident.tokenizer, regime, items(n))
        found[regime] = losses(resident, rows, replace(SETTINGS, **changes), reference)
    return found


def in_a_process(model: str, trainer: str) -> dict[str, Any]:
    """The same in a process of its own; RuntimeError with the last lines of its output where it fails."""
    command = [sys.executable, "-m", "selftrain.bench", "trajectory", "--model", model, "--trainer", trainer]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.strip().splitlines()[-5:]))
    return json.loads(done.stdout.strip().splitlines()[-1])


def agree(one: list[float], other: list[float]) -> str | None:
    """None where two trajectories agree within the stated tolerance, else what differs, in a line."""
    if len(one) != len(other):
        return f"{len(one)} steps against {len(other)}"
    gaps = [abs(a - b) for a, b in zip(one, other, strict=True)]
    mean = abs(sum(one) - sum(other)) / len(one)
    if max(gaps) > STEP_TOLERANCE:
        return f"step {gaps.index(max(gaps)) + 1} differs by {max(gaps):.4f} (tolerance {STEP_TOLERANCE})"
    return f"the mean differs by {mean:.4f} (tolerance {MEAN_TOLERANCE})" if mean > MEAN_TOLERANCE else None
