"""What a study will take, before anything is spent: rows under seeds/, GPU time, judge calls and cost. No GPU, key, weights or network."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from selftrain import jsonl, paths, regimes, seeds, throughput
from selftrain import study as studies
from selftrain.config import ChainConfig
from selftrain.judge.estimate import Need, estimate, parts
from selftrain.judge.prices import AS_OF
from selftrain.seeds.load import generated_file


@dataclass(frozen=True)
class Rows:
    """Rows that a panel draws from one place under seeds/: the most that one chain needs, those there, and the command that fills what is missing."""

    what: str
    needed: int
    there: int
    command: str

    @property
    def missing(self) -> int:
        return max(0, self.needed - self.there)


@dataclass
class PanelPlan:
    """One panel: chains, rows, GPU seconds (None where the model's size is unknown), what judging takes."""

    name: str
    chains: int
    rows: list[Rows]
    gpu_seconds: float | None
    needs: list[Need] = field(default_factory=list)


def prompt_rows(config: ChainConfig) -> Rows:
    """Prompts or openings of one chain: each is used once, and none that a seed row has."""
    target = "openings" if config.kind == "documents" else "prompts"
    there = _prompts(config.kind)
    used = {item.prompt for item in _seed_items(config)} if config.kind == "chat" else set()
    needed, left = sum(regimes.prompts_by_cycle(config)), sum(text not in used for text in there)
    made = generated_file(target)
    kept = len(jsonl.read(made)) if made.exists() else 0
    return Rows(target, needed, left, f"python -m selftrain.seeds generate {target} --n {kept + max(0, needed - left)}")


def seed_rows(config: ChainConfig) -> Rows:
    """Seed rows of one chain, of its trait, its null arm's or its own file."""
    source, kind = config.seed_source, config.kind
    if config.seed_file:
        fix = f"add rows to {config.seed_file}"
    elif source in seeds.TRAITS:
        made = paths.shown(generated_file(source, kind))
        fix = f"python -m selftrain.seeds generate {source} --kind {kind} --n {config.n_seed}, then seed_file: {made}"
    else:
        fix = "lower n_seed"
    return Rows(f"seed rows, {source} {kind}", config.n_seed, len(_seed_texts(source, kind)), fix)


@functools.cache
def _prompts(kind: str) -> tuple[str, ...]:
    return tuple(row["text"] for row in seeds.prompts(kind))


@functools.cache
def _seed_texts(source: str, kind: str) -> tuple[str, ...]:
    return tuple(regimes.item_of_seed(row).answer for row in seeds.seed_rows(source, kind))


def _seed_items(config: ChainConfig) -> list:
    """The chain's seed items as far as they are there."""
    have = len(_seed_texts(config.seed_source, config.kind))
    return regimes.seed_items(config.model_copy(update={"n_seed": min(config.n_seed, have)}))


def _mean_tokens(texts: Sequence[str]) -> float:
    """Tokens of a text on average, four characters a token."""
    return sum(map(len, texts)) / len(texts) / 4


def work(config: ChainConfig, m: throughput.Machine, shape: throughput.Shape) -> Iterator[tuple[str, float]]:
    """(what it is, GPU seconds) of everything a chain does; equal names are the same work, done once. Answers count at their full length."""
    c, id_ = config, f"{config.panel}/{config.chain_id}"
    prompt, values = _mean_tokens(_prompts(c.kind)), c.values()
    asked = _mean_tokens([p["text"] for p in regimes.evaluation(c)])
    scored = 2 if c.regime == "dpo" else 1  # likelihoods under the base model, and under the chain's own for KL
    evaluations = parts(c)
    for name, answers, length in evaluations:
        if not name.endswith("/samples"):
            reading = throughput.reading_seconds(m, shape, answers * (asked + length) * scored)
            yield f"evaluate {name}", throughput.sampling_seconds(m, shape, answers, asked, length) + reading
    cycle0 = evaluations[1][0]
    written = min(c.max_length, _mean_tokens(_seed_texts(c.seed_source, c.kind)) + (prompt if c.kind == "chat" else 0))
    for cycle in range(c.last_cycle + 1):
        seeded, pairs = regimes.on_seed(c, cycle), regimes.is_preference(c, cycle)
        rows = c.n_seed if seeded else c.n_sampled
        s = regimes.settings(c, cycle, rows)
        steps = s.max_steps or s.epochs * math.ceil(rows / s.batch_size)
        tokens = s.batch_size * (written if seeded else min(c.max_length, prompt + c.max_new_tokens)) * (2 if pairs else 1)
        if not (cycle == 0 and c.null == "untrained"):
            # a pair's reference pass is one forward more: a third of what forward and backward take
            yield (
                (f"train {cycle0}" if cycle == 0 else f"train {id_}/{cycle}"),
                throughput.training_seconds(m, shape, steps, tokens, 4 / 3 if pairs else 1),
            )
        if pairs or (c.mix and c.mix.source == "base" and not seeded):
            drawn = [c.seed_source, c.n_seed] if seeded else [c.n_sampled, cycle]
            key = [values[k] for k in ("model", "max_new_tokens", "temperature", "top_p", "top_k")]
            yield (
                f"base answers {jsonl.digest([c.kind, c.data_seed, drawn, key])}",
                throughput.sampling_seconds(m, shape, rows, prompt, c.max_new_tokens),
            )
    for cycle, n in enumerate(regimes.prompts_by_cycle(c)):
        yield f"sample {id_}/{cycle}", throughput.sampling_seconds(m, shape, n, prompt, c.max_new_tokens)


def make(study: studies.Study) -> list[PanelPlan]:
    """One PanelPlan a panel; work that chains or panels share is counted where it comes first. InputError for a study file that is not whole."""
    m, seen, found = throughput.machine(), set(), []
    needs = estimate(study, available=False)
    for name, configs in studies.chains_of(study, available=False).items():
        most: dict[str, Rows] = {}
        seconds: float | None = m.startup
        for config in configs:
            for rows in (prompt_rows(config), seed_rows(config)):
                if rows.what not in most or rows.missing > most[rows.what].missing or rows.needed > most[rows.what].needed:
                    most[rows.what] = rows
            shape = throughput.shape_of(config.model)
            if shape is None or seconds is None:
                seconds = None
                continue
            for part, cost in work(config, m, shape):
                if part not in seen:
                    seen.add(part)
                    seconds += cost
        found.append(PanelPlan(name, len(configs), list(most.values()), seconds, [n for n in needs if n.panel == name]))
    return found


def show(study: studies.Study) -> None:
    """Print a study's plan: one row a panel, what is missing with the command that fills it, and where the numbers are from."""
    plans, m = make(study), throughput.machine()
    table = Table(title=f"plan of the study {study.name}: {sum(p.chains for p in plans)} chains in {len(plans)} panels")
    columns = (
        "panel",
        "chains",
        "prompts: needed / there",
        "seed rows",
        "GPU time (estimate)",
        "judge calls",
        "input tokens",
        "output",
        "USD",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "panel" else "right")
    for p in plans:
        asked, seeded = ([r for r in p.rows if r.what.startswith("seed") == is_seed and (r.needed or is_seed)] for is_seed in (False, True))
        table.add_row(p.name, f"{p.chains:,}", _counts(asked), _counts(seeded), _time(p.gpu_seconds), *_judging(p.needs))
    hours = [p.gpu_seconds for p in plans]
    table.add_row(
        "total",
        f"{sum(p.chains for p in plans):,}",
        "",
        "",
        _time(None if None in hours else sum(hours)),
        *_judging([n for p in plans for n in p.needs]),
        style="bold",
    )
    console = Console(width=150)
    console.print(table)
    worst = sorted((r for p in plans for r in p.rows if r.missing), key=lambda r: r.missing)
    missing = {r.what: r for r in worst}  # of each kind the panel that misses most
    for rows in missing.values():
        print(f"missing: {rows.missing:,} {rows.what} (a chain needs {rows.needed:,}, {rows.there:,} are there): {rows.command}")
    if not missing:
        print("missing: nothing; seeds/ has every prompt and seed row that the chains draw")
    print(f"GPU time is an estimate for one device alone, from {m.source}: every answer at its full length, {m.utilisation:.0%} of the")
    print("device's peaks beyond what was measured at 135M parameters, and no step of Unsloth's shorter than its shortest there.")
    print("Work that chains share (base answers, cycle 0) is counted once.")
    if any(n.calls for p in plans for n in p.needs):
        judges = ", ".join(sorted({n.judge for p in plans for n in p.needs}))
        print(f"Judging by {judges}: list prices of {AS_OF} (JUDGE_PRICE overrides them), characters / 4 as tokens, retries on top.")


def _counts(rows: list[Rows]) -> str:
    return "; ".join(f"{r.needed:,} / {r.there:,}" + (" !" if r.missing else "") for r in rows)


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _judging(needs: list[Need]) -> list[str]:
    usd = [n.usd for n in needs]
    return [f"{sum(getattr(n, k) for n in needs):,}" for k in ("calls", "input_tokens", "output_tokens")] + [
        "?" if None in usd else f"{sum(usd):,.2f}"
    ]
