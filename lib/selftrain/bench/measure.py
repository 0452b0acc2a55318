"""Timing: repeats with their spread, memory at its peak, seconds since the process began."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest of some measurements, and the measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def synchronize() -> None:
    """Wait until the device has done what it was told."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` took, and what it returned."""
    synchronize()
    started = time.perf_counter()
    made = work()
    synchronize()
    return time.perf_counter() - started, made


def since_start() -> float:
    """Seconds since this process was created."""
    import psutil

    return time.time() - psutil.Process().create_time()


def peak_memory_gb() -> float:
    """Greatest memory so far in GB: what PyTorch reserved on a CUDA device, else the process's resident size."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 1e9
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size * (1 if sys.platform == "darwin" else 1024) / 1e9


def forget_peak() -> None:
    """Let peak_memory_gb begin anew, where the device can."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


class Steps:
    """A progress callback that remembers when each training step ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self, done: int, of: int) -> None:
        synchronize()
        self.at.append(time.perf_counter())

    def seconds(self, skip: int = 1) -> list[float]:
        """Seconds of each step, without the first `skip`, which compile and allocate."""
        return [b - a for a, b in zip(self.at[skip - 1 :], self.at[skip:], strict=False)]


def timed_cycles(cycle: Callable[[int], tuple[Any, list[float]]], repeats: int) -> tuple[float, list[float], list[float]]:
    """Seconds of the first cycle, which pays for imports and compiled shapes once a process, of `repeats` further ones, and of their training steps.

    cycle(seed) returns anything and the seconds of its training steps.
    """
    first, _ = timed(lambda: cycle(0))
    cycles, steps = [], []
    for seed in range(1, repeats + 1):
        seconds, (_, made) = timed(lambda seed=seed: cycle(seed))
        cycles.append(seconds)
        steps += made
    return first, cycles, steps


def side(rates: list[float], step_times: list[float], train_steps: list[float], cycles: list[float], **once: Any) -> dict[str, Any]:
    """What one side of the comparison measured: medians with their spread, and `once`, what was measured once."""
    return {
        **once,
        "sample_tokens_per_second": spread(rates),
        "sample_step_seconds": spread(step_times),
        "train_step_seconds": spread(train_steps),
        "cycle_seconds": spread(cycles),
        "peak_memory_gb": peak_memory_gb(),
    }
