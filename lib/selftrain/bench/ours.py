"""This project on the baseline's work: one resident model, keyed sampling by recorded steps on CUDA, the adapter changed in place."""

from __future__ import annotations

from typing import Any

from selftrain import draws
from selftrain.bench import measure
from selftrain.bench.floors import Shape
from selftrain.bench.sizes import Sizes, config, items, prompts
from selftrain.formats import prompt_ids, training_row
from selftrain.resident import Resident
from selftrain.sampling import Request, Sampled, sample
from selftrain.training import Settings, planned_steps, train


def settings(sizes: Sizes, seed: int) -> Settings:
    """How the bench's cycle is trained: preset small."""
    c = config(sizes)
    return Settings(c.lr, c.schedule, 1, c.batch_size, c.warmup, c.weight_decay, c.max_grad_norm, seed)


def opened(sizes: Sizes, device: str) -> Resident:
    """The resident model, with the trainer that this process gets for it."""
    c = config(sizes)
    return Resident.open(sizes.model, rank=c.lora_rank, alpha=c.lora_alpha, device=device)


def answers(resident: Resident, texts: list[str], sizes: Sizes, temperature: float, *key: object) -> list[Sampled]:
    """One keyed answer a prompt."""
    requests = [Request(text, draws.key("bench", *key, i)) for i, text in enumerate(texts)]
    return sample(resident, requests, kind="chat", max_new_tokens=sizes.new_tokens, temperature=temperature, batch_size=sizes.batch)


def cycle(resident: Resident, sizes: Sizes, seed: int) -> list[float]:
    """One whole cycle on the resident model; seconds of its training steps but the first."""
    c, steps = config(sizes), measure.Steps()
    rows = [training_row(resident.tokenizer, item, c.max_length) for item in items(sizes.n_sampled)]
    resident.fresh(seed)
    train(resident, rows, settings(sizes, seed), progress=steps)
    asked = prompts(sizes.n_sampled + sizes.n_eval)
    answers(resident, asked[: sizes.n_sampled], sizes, c.temperature, "samples", seed)
    answers(resident, asked[sizes.n_sampled :], sizes, c.eval_temperature, "evaluation", seed)
    return steps.seconds()


def decoding_steps(made: list[Sampled], sizes: Sizes) -> int:
    """Steps that a batch took: until its longest answer had ended."""
    return max(min(sizes.new_tokens, s.n_tokens + s.finished) for s in made)


def run(sizes: Sizes, device: str) -> dict[str, Any]:
    """The part `ours` of the bench."""
    c = config(sizes)
    resident = opened(sizes, device)
    ready, shape = measure.since_start(), Shape.of(resident.model)
    resident.fresh(0)
    texts = prompts(sizes.batch)
    first, _ = measure.timed(lambda: answers(resident, texts, sizes, c.temperature, "first"))
    rates, step_times = [], []
    for n in range(sizes.repeats):
        seconds, made = measure.timed(lambda n=n: answers(resident, texts, sizes, c.temperature, "batch", n))
        rates.append(sum(s.n_tokens for s in made) / seconds)
        step_times.append(seconds / decoding_steps(made, sizes))
    first_cycle, cycles, train_steps = measure.timed_cycles(lambda seed: (None, cycle(resident, sizes, seed)), sizes.repeats)
    rows = [training_row(resident.tokenizer, item, c.max_length) for item in items(sizes.n_sampled)]
    return {
        **measure.side(
            rates,
            step_times,
            train_steps,
            cycles,
            startup_seconds=ready,
            first_sample_seconds=first,
            first_cycle_seconds=first_cycle,
            shape=vars(shape),
        ),
        "trainer": resident.trainer,
        "recorded": device == "cuda" and not resident.plain_sampling,
        "replayed": bool(resident.passes),
        "train_tokens_a_step": sum(len(r["input_ids"]) for r in rows) * c.batch_size / len(rows),
        "train_steps_a_cycle": planned_steps(sizes.n_sampled, settings(sizes, 0)),
        "mean_sequence": sum(len(prompt_ids(resident.tokenizer, "chat", t)) for t in texts) / len(texts) + sizes.new_tokens / 2,
    }
