"""What a cycle learns from and where it starts: the rules that make SFT, SDF and DPO, reinitialised or continual, and their null arms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from selftrain import draws, seeds
from selftrain.config import ChainConfig
from selftrain.errors import InputError
from selftrain.formats import Item, item_of_seed
from selftrain.training import Settings


@dataclass(frozen=True)
class Plan:
    """What is fixed before the first cycle: the seed items, the training prompts of every cycle, the evaluation prompts."""

    seed_items: list[Item]
    prompts: list[list[dict]]  # by cycle: {id, text}, the prompts that the cycle's model answers for the next one
    evaluation: list[dict]  # {id, text, set}


def seed_items(config: ChainConfig) -> list[Item]:
    """The first n_seed rows of the seed set in the chain's own order; a larger n_seed holds every smaller one."""
    rows = seeds.seed_rows(config.seed_source, config.kind)
    if config.n_seed > len(rows):
        raise InputError(
            f"n_seed {config.n_seed} asks for more than the {len(rows)} rows of {config.seed_source}; lower n_seed or add rows"
        )
    chosen = draws.pick(rows, config.n_seed, config.data_seed, "seed rows")
    return [item_of_seed(row, "seed") for row in chosen]


def prompts_by_cycle(config: ChainConfig) -> list[int]:
    """How many prompts each cycle's model answers for the next one; the last cycle answers none."""
    cycles = 0 if config.null == "retrain" else config.last_cycle
    return [config.branch.n_sampled if config.branch and k < config.branch.at else config.n_sampled for k in range(cycles)]


def check(config: ChainConfig) -> None:
    """InputError for a trait that is not there, or fewer evaluation prompts than asked for: what no teacher model mends."""
    seeds.check_traits(config.trait, *([config.seed_source] if not config.seed_file else []))
    evaluation(config)


def plan(config: ChainConfig) -> Plan:
    """Read and check everything a chain needs from seeds/; InputError before any model is loaded."""
    check(config)
    items = seed_items(config)
    used = {item.prompt for item in items}
    ordered = [row for row in seeds.drawn_prompts(config.kind, config.data_seed) if row["text"] not in used]
    sizes = prompts_by_cycle(config)
    sampling_cycles, needed = len(sizes), sum(sizes)
    if needed > len(ordered):
        raise InputError(
            f"{sampling_cycles} cycles of n_sampled {config.n_sampled} need {needed} prompts, each used once; {len(ordered)} are there: "
            "lower n_sampled or last_cycle, or add prompts under seeds/_prompts"
        )
    ends = list(itertools.accumulate(sizes))
    blocks = [ordered[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    if config.mix and config.mix.source != "base":
        wanted, pool = mixed_count(config), seeds.seed_rows("neutral", config.kind) if config.mix.source == "neutral" else items
        if wanted > len(pool):
            raise InputError(
                f"mix: fraction {config.mix.fraction:g} of n_sampled {config.n_sampled} needs {wanted} {config.mix.source} rows, {len(pool)} are there"
            )
    return Plan(items, blocks, evaluation(config))


def evaluation(config: ChainConfig) -> list[dict]:
    """The evaluation prompts of a chain, {id, text, set}: the first n_questions of the direct ones, then of the others."""
    rows = seeds.openings(config.trait) if config.kind == "documents" else seeds.questions(config.trait)
    direct = [{"id": r["id"], "text": r.get("question", r.get("opening")), "set": r["set"]} for r in rows]
    first = [r for r in direct if r["set"] == "direct"]
    if config.n_questions > len(first):
        raise InputError(f"n_questions {config.n_questions} asks for more than the {len(first)} evaluation prompts of {config.trait}")
    return first[: config.n_questions] + [r for r in direct if r["set"] != "direct"][: config.n_questions]


def starts_fresh(config: ChainConfig, cycle: int) -> bool:
    """Whether a cycle starts from the base model with a fresh adapter; otherwise it goes on from the previous cycle."""
    return cycle == 0 or config.init == "reinit" or config.null == "retrain" or cycle in config.restart_at


def on_seed(config: ChainConfig, cycle: int) -> bool:
    """Whether a cycle is trained on the seed set: cycle 0, and every cycle of a retrain null."""
    return cycle == 0 or config.null == "retrain"


def is_preference(config: ChainConfig, cycle: int) -> bool:
    """Whether a cycle learns from pairs."""
    return config.regime == "dpo" and (not on_seed(config, cycle) or config.cycle0 == "dpo")


def reference(config: ChainConfig, cycle: int) -> str | None:
    """Which policy the pairs of a cycle are weighed against: `base`, `cycle_start`, or None without pairs.

    A continual chain with `reference: base` keeps the base as reference while its weights go on.
    """
    if not is_preference(config, cycle):
        return None
    return "base" if starts_fresh(config, cycle) else config.reference


def settings(config: ChainConfig, cycle: int, n_rows: int) -> Settings:
    """How a cycle is trained. Seed cycles by SFT in a DPO chain use the preset's SFT rate and a constant schedule."""
    seeded = on_seed(config, cycle)
    pairs = is_preference(config, cycle)
    epochs = config.epochs_seed if seeded else config.epochs * (cycle + 1 if config.dose_matched else 1)
    by_sft_in_dpo = config.regime == "dpo" and not pairs
    return Settings(
        lr=config.lr_seed if seeded else config.lr,
        schedule="constant" if by_sft_in_dpo else config.schedule,
        epochs=epochs,
        batch_size=config.batch_size,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=draws.key(config.seed, cycle, "train"),
        beta=config.beta if pairs else None,
        max_steps=None if seeded else config.match_steps,
    )


def mixed_count(config: ChainConfig) -> int:
    """Rows of a later cycle that come from the mix: round(fraction * n_sampled), halves up."""
    return math.floor(config.mix.fraction * config.n_sampled + 0.5) if config.mix else 0


def base_prompts(config: ChainConfig, cycle: int, items: Sequence[Item], prompts: Sequence[dict]) -> list[dict]:
    """Prompts that the base model must answer for a cycle: {id, text}; empty where no base answer is needed."""
    if is_preference(config, cycle):
        return [{"id": item.id, "text": item.prompt} for item in items]
    if config.mix and config.mix.source == "base" and not on_seed(config, cycle):
        return list(prompts)
    return []


def mixed(config: ChainConfig, cycle: int, items: Sequence[Item], seed: Sequence[Item], base: dict[str, Item]) -> list[Item]:
    """A later cycle's items with the mix's share replaced, the places drawn by (seed, cycle)."""
    n = min(mixed_count(config), len(items))
    if not n:
        return list(items)
    out = list(items)
    places = draws.order(len(out), config.seed, cycle, "mix places")[:n]
    if config.mix.source == "base":
        for place in places:
            out[place] = replace(base[out[place].id], source="base")
        return out
    pool = (
        [item_of_seed(row, "neutral") for row in seeds.seed_rows("neutral", config.kind)] if config.mix.source == "neutral" else list(seed)
    )
    for place, item in zip(places, draws.pick(pool, n, config.seed, cycle, "mix rows"), strict=True):
        out[place] = replace(item, source=config.mix.source)
    return out


def pairs(items: Sequence[Item], base: dict[str, Item]) -> tuple[list[tuple[Item, Item]], dict[str, int]]:
    """(chosen, rejected) pairs with the base's answer to the same prompt as rejected; empty or identical sides dropped and counted."""
    kept, dropped = [], {"empty_side": 0, "identical_sides": 0}
    for item in items:
        rejected = base[item.id]
        if not item.answer.strip() or not rejected.answer.strip():
            dropped["empty_side"] += 1
        elif item.answer.strip() == rejected.answer.strip():
            dropped["identical_sides"] += 1
        else:
            kept.append((item, rejected))
    return kept, dropped
