"""What the hardware allows: the least time of a sampling or training step, from bytes moved and operations done."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from selftrain import memory


@dataclass(frozen=True)
class Peaks:
    """A device's peak memory bandwidth (bytes a second), dense arithmetic at the precision used (operations a second), where both are from, its memory (bytes)."""

    bandwidth: float
    flops: float
    source: str
    memory: float = 0.0


# Vendor's data sheets, dense bfloat16, without sparsity. The first name that a device's name contains counts.
PEAKS = {
    "H200": Peaks(4.8e12, 989e12, "NVIDIA H200 data sheet, SXM", 141e9),
    "H100 PCIe": Peaks(2.0e12, 756e12, "NVIDIA H100 data sheet, PCIe", 80e9),
    "H100": Peaks(3.35e12, 989e12, "NVIDIA H100 data sheet, SXM", 80e9),
}


@dataclass(frozen=True)
class Shape:
    """What a floor needs to know of a model: parameters, bytes a parameter, bytes of key-value cache a token."""

    parameters: int
    element: int
    kv_bytes: int

    @classmethod
    def of(cls, model: Any) -> Shape:
        """The shape of a loaded model, without its adapter."""
        base = [p for name, p in model.named_parameters() if "lora_" not in name]
        element = base[0].element_size()
        return cls(sum(p.numel() for p in base), element, memory.kv_bytes(model.config, element))

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.parameters * self.element


def peaks_of(name: str) -> Peaks | None:
    """Peaks of a GPU by its name; None for one that is not in the table."""
    return next((peaks for key, peaks in PEAKS.items() if key.lower() in name.lower()), None)


def measured_cpu(seconds: float = 0.5) -> Peaks:
    """A CPU's bandwidth (a copy larger than its caches, read and written) and arithmetic (a float32 product), best of what fits in a second."""
    import torch

    def best(work, amount: float) -> float:
        rates, until = [], time.perf_counter() + seconds
        while not rates or time.perf_counter() < until:
            started = time.perf_counter()
            work()
            rates.append(amount / (time.perf_counter() - started))
        return max(rates)

    source, target = torch.ones(2**25), torch.empty(2**25)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    bandwidth = best(lambda: target.copy_(source), 2 * source.numel() * 4)
    flops = best(lambda: a @ b, 2 * 1024**3)
    return Peaks(bandwidth, flops, f"measured here, {torch.get_num_threads()} threads, float32")


def sampling_step(shape: Shape, batch: int, length: float, peaks: Peaks) -> float:
    """Least seconds of one token for each of `batch` answers: weights and caches of `length` tokens read once, or the products, whichever is longer."""
    moved = shape.weights + batch * length * shape.kv_bytes
    return max(moved / peaks.bandwidth, 2 * shape.parameters * batch / peaks.flops)


def training_step(shape: Shape, tokens: int, peaks: Peaks) -> float:
    """Least seconds of one optimiser step on `tokens` tokens: 6 operations a parameter and token (forward and backward; a LoRA needs fewer)."""
    return 6 * shape.parameters * tokens / peaks.flops


def described(shape: Shape, peaks: Peaks | None) -> dict[str, Any]:
    """Shape and peaks as JSON values."""
    return {"shape": asdict(shape), "peaks": asdict(peaks) if peaks else None}
