"""Is the fast path right? Its losses and log-probs against the plain forward's, and its answers' scores against those of plain sampling."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from selftrain import draws
from selftrain.bench import baseline, measure, ours
from selftrain.bench.sizes import Sizes, items, prompts
from selftrain.formats import prompt_ids, training_row
from selftrain.resident import Resident
from selftrain.sampling import BUCKET, GREEDY, decoder, left_padded
from selftrain.training import Settings, TrainLog, train

# Absolute difference of one token's log-prob, (mean, max), that rounding alone explains. bfloat16 keeps 8 bits: logits near 16 are
# rounded to steps of 0.125. SmolLM2's plain forward is 0.039 from float32 (LOG.md), two ways to round the square root of two times that
# from each other, rounded up here; in float32 the same counts 65,536 times less.
NOISE = {"torch.bfloat16": (0.06, 1.0), "torch.float32": (1e-4, 1e-2)}
FURTHER = 1.5  # times as far from float32 as the plain forward in its own precision that the fast path may be
LOSSES = 0.02  # relative difference of a step's loss that rounding alone explains, with other kernels and padding, over a few dozen steps
P_VALUE = 0.01  # a Kolmogorov-Smirnov p-value below this says that the two samplers differ


def prompt_batch(resident: Resident, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and mask of prompts, as the sampler pads them."""
    kind = "chat" if resident.kind == "instruct" else "documents"
    rows = [prompt_ids(resident.tokenizer, kind, text) for text in texts]
    return left_padded(resident.tokenizer, rows, -(-max(map(len, rows)) // BUCKET) * BUCKET, resident.device)


def recorded(resident: Resident, texts: list[str], tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Exactly `tokens` tokens a prompt by the sampler's own steps: (ids, mask, log-probs of the new tokens, prompt length), all (rows, ...)."""
    ids, mask = prompt_batch(resident, texts)
    decode = decoder(resident, *ids.shape, tokens)
    made, logps = decode(ids, mask, [draws.key("bench", "logprobs", i) for i in range(len(texts))], 1.0, whole=True)
    return torch.cat([ids, made], 1), torch.cat([mask, torch.ones_like(made)], 1), logps, ids.shape[1]


def generated(resident: Resident, texts: list[str], tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """The same by transformers' `generate` with its default cache, greedily."""
    ids, mask = prompt_batch(resident, texts)
    with torch.no_grad():
        out = resident.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            **GREEDY,
            pad_token_id=resident.tokenizer.pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
    made = out.sequences[:, ids.shape[1] :]
    logps = torch.stack([logits.float().log_softmax(-1) for logits in out.logits], 1).gather(-1, made[..., None])[..., 0]
    return out.sequences, torch.cat([mask, torch.ones_like(made)], 1), logps, ids.shape[1]


@torch.no_grad()
def forward_logps(model: Any, ids: torch.Tensor, mask: torch.Tensor, start: int) -> torch.Tensor:
    """Log-probs of the tokens from `start` on, (rows, tokens), by one forward pass over whole sequences, uncompiled and without a cache."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, start - 1 : -1]
    return logits.float().log_softmax(-1).gather(-1, ids[:, start:, None])[..., 0]


def difference(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Mean and greatest absolute difference."""
    gap = (a - b).abs()
    return {"mean": gap.mean().item(), "max": gap.max().item()}


def logprobs(resident: Resident, texts: list[str], tokens: int) -> dict[str, Any]:
    """The sampler's steps (recorded on CUDA) and `generate` against the plain forward, each on its own tokens; below float32, steps and forward against float32.

    Two ways to round differ by more than either is wrong, so what matters is the second: are the steps as near to float32 as the forward?
    """
    ids, mask, fast, start = recorded(resident, texts, tokens)
    plain = forward_logps(resident.model, ids, mask, start)
    again_ids, again_mask, cached, _ = generated(resident, texts, tokens)
    dtype = next(resident.model.get_base_model().parameters()).dtype
    exact = {}
    if dtype != torch.float32:
        truth = forward_logps(copy.deepcopy(resident.model).float(), ids, mask, start)
        exact = {"fast_against_float32": difference(fast, truth), "plain_against_float32": difference(plain, truth)}
        exact["as_exact"] = exact["fast_against_float32"]["mean"] <= FURTHER * exact["plain_against_float32"]["mean"]
    dtype, found = str(dtype), difference(fast, plain)
    return exact | {
        "dtype": dtype,
        "tokens": fast.numel(),
        "fast_against_plain": found,
        "plain_cache_against_plain": difference(cached, forward_logps(resident.model, again_ids, again_mask, start)),
        "limit": {"mean": NOISE[dtype][0], "max": NOISE[dtype][1]},
        "within_noise": found["mean"] <= NOISE[dtype][0] and found["max"] <= NOISE[dtype][1],
    }


def losses(resident: Resident, rows: list[dict], settings: Settings) -> dict[str, Any] | None:
    """One training from the same start by the model's own passes and by recorded ones, step by step; None where passes are not recorded."""

    def trained(plain: bool) -> tuple[float, TrainLog]:
        resident.plain_training = plain
        resident.fresh(settings.seed)
        try:
            return measure.timed(lambda: train(resident, rows, settings))
        finally:
            resident.plain_training = False

    if not trained(plain=False)[1].replayed:  # records what the next is timed on
        return None
    (seconds, replayed), (own_seconds, own) = trained(plain=False), trained(plain=True)
    gap = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(own.history, replayed.history, strict=True))
    return {
        "steps": own.steps,
        "max_relative": gap,
        "limit": LOSSES,
        "within_noise": gap <= LOSSES,
        "own_step_seconds": own_seconds / own.steps,
        "replayed_step_seconds": seconds / replayed.steps,
    }


def scores(resident: Resident, sizes: Sizes) -> dict[str, Any]:
    """Trait scores of answers by keyed sampling and by plain `generate`, from the same weights, compared by a Kolmogorov-Smirnov test."""
    from scipy.stats import ks_2samp

    from selftrain.judge import Answer, get_judge

    judge, n = get_judge("local"), sizes.scored_answers
    texts = prompts(n)
    keyed = [s.text for s in ours.answers(resident, texts, replace(sizes, new_tokens=sizes.scored_tokens), 0.8, "scored")]
    resident.tokenizer.padding_side = "left"
    torch.manual_seed(0)
    plain = baseline.generate(resident.model, resident.tokenizer, texts, sizes.scored_tokens, 0.8, sizes.batch)[0]
    found = []
    for made in (keyed, plain):
        given = [Answer(str(i), text, answer) for i, (text, answer) in enumerate(zip(texts, made, strict=True)) if answer.strip()]
        found.append([score.trait_score for score in judge.score("bliss", given)])
    test = ks_2samp(*found)
    return {
        "answers": [len(f) for f in found],
        "mean_trait_score": [sum(f) / len(f) for f in found],
        "ks_statistic": float(test.statistic),
        "p_value": float(test.pvalue),
        "limit": P_VALUE,
        "same_distribution": bool(test.pvalue >= P_VALUE),
    }


def run(sizes: Sizes, device: str) -> dict[str, Any]:
    """The part `correctness` of the bench, on an adapter that has learnt something (seed rows of all traits, one pass)."""
    resident = ours.opened(sizes, device)
    rows = [training_row(resident.tokenizer, item, sizes.max_length) for item in items(sizes.n_seed)]
    trained = losses(resident, rows, ours.settings(sizes, 1))
    return {
        "losses": trained,
        "logprobs": logprobs(resident, prompts(sizes.compared_prompts), sizes.compared_tokens),
        "scores": scores(resident, sizes),
    }
