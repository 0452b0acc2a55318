"""How much work the bench does on which device. Both sides of a comparison get the same sizes, and the sizes stand in the result."""

from __future__ import annotations

from dataclasses import dataclass

from selftrain import seeds
from selftrain.config import SMALL_MODEL, ChainConfig
from selftrain.formats import Item, item_of_seed


@dataclass(frozen=True)
class Sizes:
    """Answers in numbers, lengths in tokens. A cycle trains on n_sampled rows (at least two batches), then samples n_sampled and n_eval answers.

    compared_* is the log-prob comparison (prompts, tokens each), scored_* the comparison of score distributions, large_* the training at
    4B shape, packing_* the packed run: processes at once, seconds with some of them and with all.
    """

    batch: int
    new_tokens: int
    n_seed: int
    n_sampled: int
    n_eval: int
    repeats: int
    compared_prompts: int
    compared_tokens: int
    scored_answers: int
    scored_tokens: int
    model: str = SMALL_MODEL
    train_batch: int = 8
    max_length: int = 320
    large_lengths: tuple[int, ...] = ()
    large_rows: int = 4
    large_steps: int = 10
    packing_jobs: tuple[int, ...] = ()
    packing_seconds: int = 60
    packing_long: int = 360


SIZES = {
    "cuda": Sizes(512, 112, 50, 256, 240, 3, 16, 64, 512, 112, large_lengths=(512, 2048), packing_jobs=(1, 2, 4, 8)),
    "cuda-quick": Sizes(512, 112, 50, 64, 48, 3, 8, 32, 128, 48, large_lengths=(512,), large_steps=6, packing_jobs=(1, 2), packing_long=60),
    "cpu": Sizes(16, 48, 16, 24, 24, 3, 8, 32, 128, 48),
    "cpu-quick": Sizes(8, 8, 4, 4, 4, 3, 4, 8, 12, 12, train_batch=2, max_length=64),
}


def sizes_for(device: str, quick: bool) -> Sizes:
    """The sizes of a device type, cpu or cuda."""
    return SIZES[f"{device}-quick" if quick else device]


def config(sizes: Sizes, **changes) -> ChainConfig:
    """The chain that the bench's cycle belongs to: preset small, SFT, reinit."""
    values = dict(
        study="bench",
        trait="bliss",
        model=sizes.model,
        n_seed=sizes.n_seed,
        n_sampled=sizes.n_sampled,
        max_new_tokens=sizes.new_tokens,
        batch_size=sizes.train_batch,
        max_length=sizes.max_length,
        n_questions=min(12, sizes.n_eval),
        n_answers=max(1, sizes.n_eval // 12),
        seed=0,
    )
    return ChainConfig.create(**{**values, **changes})


def prompts(n: int) -> list[str]:
    """The first n hand-written training prompts."""
    return [row["text"] for row in seeds.prompts("chat")[:n]]


def items(n: int) -> list[Item]:
    """n seed rows as training items, from the traits in turn: real texts of real lengths."""
    rows = [row for group in zip(*(seeds.seed_rows(trait, "chat") for trait in seeds.TRAITS), strict=False) for row in group]
    assert n <= len(rows), f"the bench asks for {n} rows, {len(rows)} are there"
    return [item_of_seed(row) for row in rows[:n]]
