"""What several processes share on one device: a cap on each one's memory, the folder of compiled code, and how many answers fit at once."""

from __future__ import annotations

import math
import os
from typing import Any

from selftrain import paths
from selftrain.errors import InputError

SHARE = "SELFTRAIN_MEMORY_SHARE"  # the environment variable that carries the cap to notebook kernels
COMPILED = "TORCHINDUCTOR_CACHE_DIR"
USABLE = 0.95  # share of the device that all processes together may take; the rest is CUDA's own
FOR_ANSWERS = 0.25  # share of what the weights leave that one shape of answers may take; another shape and training need the rest
LOGIT_COPIES = 6  # float32 tensors of one row of the vocabulary that keyed sampling holds at once, rounded up
MOST_ANSWERS = 512


def share_for(jobs: int, share: float | None = None) -> float | None:
    """The share of device memory of one of `jobs` processes: as given, else an equal part; None for a process that has the device alone."""
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: at least 1 process is needed")
    if share is None:
        return round(USABLE / jobs, 4) if jobs > 1 else None
    if not 0 < share <= 1:
        raise InputError(f"--memory-share {share:g} is not a share between 0 and 1")
    if share * jobs > 1:
        raise InputError(f"--memory-share {share:g} times {jobs} jobs is more than the device; lower one of them")
    return share


def environment_for(jobs: int = 1, share: float | None = None) -> dict[str, str]:
    """Environment variables of a worker process: its memory cap, where it has one, and the compile cache that all workers share."""
    found = share_for(jobs, share)
    cache = {COMPILED: os.environ.get(COMPILED) or str(paths.ROOT / ".cache" / "inductor")}
    return cache if found is None else {**cache, SHARE: f"{found:g}"}


def prepare() -> float | None:
    """Apply this process's cap and the shared compile cache, before a model is loaded; the cap, or None where there is none.

    InputError for a cap that is no share. Without CUDA the cap has no effect.
    """
    import torch

    os.environ.setdefault(COMPILED, environment_for()[COMPILED])
    given = os.environ.get(SHARE)
    if not given:
        return None
    try:
        share = share_for(1, float(given))
    except ValueError:  # InputError is one
        raise InputError(f"{SHARE}={given!r} is not a share between 0 and 1; `study run --jobs N` sets it") from None
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)
    return share


def kv_bytes(config: Any, element: int = 2) -> int:
    """Bytes of key-value cache that one token of one sequence takes, from a transformers config; `element` bytes a number."""
    c = config.get_text_config()
    heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return 2 * c.num_hidden_layers * heads * size * element


def answers_in(total: float, weights: float, each: float, most: int = MOST_ANSWERS) -> int:
    """How many answers of `each` bytes go beside the weights into `total` bytes: a power of two, at most `most`; 0 where none does."""
    room = (total - weights) * FOR_ANSWERS / each
    return min(most, 2 ** int(math.log2(room))) if room >= 1 else 0


def room() -> float:
    """Bytes of the CUDA device that this process may take."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory * float(os.environ.get(SHARE) or USABLE)


def answers_at_once(model: Any, length: int, copies: int = 1) -> int:
    """How many answers of `length` tokens, prompt included, a CUDA device samples at once, with the weights there so many times.

    It depends on the device, the cap and the model alone.
    """
    weights = copies * sum(p.numel() * p.element_size() for p in model.parameters())
    each = kv_bytes(model.config) * length + model.config.get_text_config().vocab_size * 4 * LOGIT_COPIES
    found = answers_in(room(), weights, each)
    if not found:
        raise InputError(
            f"no room for one answer of {length} tokens beside {weights / 1e9:.1f} GB of weights; lower --jobs or max_new_tokens"
        )
    return found
