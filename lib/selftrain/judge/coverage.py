"""How much of what was asked for a judge has to score before a cycle counts as judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from selftrain.errors import InputError

FLOOR = 0.95


def coverage(rows: Sequence[dict]) -> float:
    """Share of non-empty answers with both scores; 1 where there are none."""
    full = [row for row in rows if row["status"] != "empty"]
    return sum(row["trait_score"] is not None and row["coherence"] is not None for row in full) / len(full) if full else 1.0


def check_coverage(rows: Sequence[dict], where: str, floor: float = FLOOR) -> None:
    """InputError where a judge scored less than `floor` of the non-empty answers: the counts, the first reason, and how to go on."""
    share = coverage(rows)
    if share >= floor:
        return
    missing = [row for row in rows if row["status"] != "empty" and (row["trait_score"] is None or row["coherence"] is None)]
    counts = Counter(row["status"] if row["trait_score"] is None else row["reason"].partition(":")[0] for row in missing)
    said = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    raise InputError(
        f"{where}: the judge scored {share:.1%} of the answers, under the floor of {floor:.0%} ({said}; first: {missing[0]['reason']}); "
        "run again to ask only for what is missing, or lower the floor"
    )
