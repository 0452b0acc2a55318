"""Every random draw of the study, derived from what it is for: (seed, cycle, stage, item). Nothing depends on history or batching."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def key(*parts: object, bits: int = 31) -> int:
    """A stable integer in [0, 2**bits) for a tuple of names and numbers (first bits of its sha256)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - bits)


def order(n: int, *parts: object) -> list[int]:
    """A permutation of range(n) that depends on the parts alone."""
    return np.random.default_rng(key(*parts, bits=63)).permutation(n).tolist()


def pick(rows: Sequence, n: int, *parts: object) -> list:
    """The first n rows of a keyed permutation: a larger n holds every smaller one."""
    return [rows[i] for i in order(len(rows), *parts)[:n]]
