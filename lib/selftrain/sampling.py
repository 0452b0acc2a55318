"""One batched sampler for chat answers and documents. Each answer's randomness is keyed by the answer, not by its batch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from selftrain import memory
from selftrain.formats import prompt_ids
from selftrain.resident import Resident

log = logging.getLogger(__name__)
BATCH = 32  # answers at once on a CPU; on CUDA as many as memory holds (memory.answers_at_once)
BUCKET = 32  # prompt lengths are padded to a multiple of this where shapes must not change


@dataclass(frozen=True)
class Request:
    """One answer to sample: what to answer, and the key of its randomness."""

    prompt: str
    key: int


@dataclass(frozen=True)
class Sampled:
    """One sampled answer; finished is False where the length limit cut it."""

    text: str
    n_tokens: int
    finished: bool


def hashed_exponentials(keys: torch.Tensor, step: int | torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Standard exponential draws, (rows, vocabulary) float32, a pure function of (row key, step, token).

    A 32-bit multiply-xorshift hash (constants of the lowbias32 family) of the three; the top 31 bits are the uniform.
    """

    def mix(h: torch.Tensor) -> torch.Tensor:
        h = (h ^ (h >> 16 & 0xFFFF)) * 0x21F0AAAD
        h = (h ^ (h >> 15 & 0x1FFFF)) * 0x735A2D97
        return h ^ (h >> 15 & 0x1FFFF)

    row = mix(keys.to(torch.int32) + mix(torch.as_tensor(step, device=keys.device, dtype=torch.int32) + 0x3C6EF372))
    token = mix(torch.arange(vocabulary, device=keys.device, dtype=torch.int32) ^ 0x1B873593)
    bits = mix(row[:, None] ^ token[None, :]) & 0x7FFFFFFF
    return -torch.log1p(-(bits.to(torch.float32) + 0.5) * 2.0**-31)


class KeyedSampling:
    """A logits processor that turns greedy decoding into exact sampling: argmax of logits/T minus log of a keyed exponential (Gumbel-max, Maddison et al. 2014)."""

    def __init__(self, keys: Sequence[int], prompt_length: int, temperature: float, top_p: float, top_k: int, device: torch.device):
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self.keys = torch.tensor(keys, dtype=torch.int64, device=device).to(torch.int32)
        self.prompt_length = prompt_length
        warpers = [TemperatureLogitsWarper(float(temperature))] if temperature != 1.0 else []
        warpers += [TopKLogitsWarper(top_k)] if top_k else []
        warpers += [TopPLogitsWarper(top_p)] if top_p < 1.0 else []
        self.warpers = LogitsProcessorList(warpers)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = self.warpers(input_ids, scores.float())
        noise = hashed_exponentials(self.keys, input_ids.shape[1] - self.prompt_length, scores.shape[1])
        return scores - noise.log()


def left_padded(tokenizer, rows: list[list[int]], to: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and attention mask, (rows, to)."""
    ids = torch.full((len(rows), to), tokenizer.pad_token_id)
    mask = torch.zeros((len(rows), to), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, to - len(row) :] = torch.tensor(row)
        mask[i, to - len(row) :] = 1
    return ids.to(device), mask.to(device)


@torch.no_grad()
def sample(
    resident: Resident,
    requests: Sequence[Request],
    *,
    kind: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Sampled]:
    """Sample one answer a request from the resident model, in the order of the requests.

    `kind` is chat or documents (formats.prompt_ids). Batches hold prompts of similar length; an answer does not depend on its batch
    beyond floating-point noise. `progress` is called with the number of answers just finished.
    """
    from transformers import LogitsProcessorList  # here, not above: Unsloth wants to be imported before transformers

    tokenizer, model, device = resident.tokenizer, resident.model, resident.device
    ids = [prompt_ids(tokenizer, kind, r.prompt) for r in requests]
    fixed = device.type == "cuda" and not getattr(resident, "no_static_cache", False)
    size = batch_size or BATCH
    if device.type == "cuda" and not batch_size:
        size = memory.answers_at_once(model, max(map(len, ids), default=0) + BUCKET + max_new_tokens)
    ends = {tokenizer.eos_token_id}
    out: list[Sampled | None] = [None] * len(requests)
    by_length = sorted(range(len(requests)), key=lambda i: (len(ids[i]), i))
    for start in range(0, len(by_length), size):
        places = by_length[start : start + size]
        rows = [ids[i] for i in places]
        length = max(map(len, rows))
        keys = [requests[i].key for i in places]
        if fixed:  # one shape for every batch, so that compiled code and its graphs are used again
            length = -(-length // BUCKET) * BUCKET
            rows, keys = rows + [rows[-1]] * (size - len(rows)), keys + [keys[-1]] * (size - len(keys))
        inputs, mask = left_padded(tokenizer, rows, length, device)
        options = dict(
            input_ids=inputs,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            top_k=None,
            top_p=None,
            temperature=None,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            logits_processor=LogitsProcessorList([KeyedSampling(keys, length, temperature, top_p, top_k, device)]),
        )
        if fixed:
            try:
                generated = model.generate(**options, cache_implementation="static")
            except Exception as error:  # the compiled path is an optimisation: say so once and go on without it
                log.warning(
                    "compiled sampling failed (%s); using the plain path",
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
                resident.no_static_cache = True
                fixed = False
                generated = model.generate(**options)
        else:
            generated = model.generate(**options)
        for i, tokens in zip(places, generated[:, length:].tolist(), strict=False):
            end = next((n for n, token in enumerate(tokens) if token in ends), None)
            body = tokens if end is None else tokens[:end]
            text = tokenizer.decode(body, skip_special_tokens=True)
            out[i] = Sampled(text.strip() if kind == "chat" else text.rstrip(), len(body), end is not None)
        if progress:
            progress(len(places))
    return out


@torch.no_grad()
def nll(
    resident: Resident, rows: Sequence[dict[str, list[int]]], *, base: bool = True, batch_size: int | None = None
) -> list[tuple[float, int]]:
    """Summed negative log-likelihood in nats and number of scored tokens of each {input_ids, labels} row, under the base model or with the adapter."""
    size = batch_size or (8 if resident.device.type == "cpu" else 16)
    out: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    with resident.as_base() if base else contextlib.nullcontext():
        for start in range(0, len(order), size):
            places = order[start : start + size]
            length = max(len(rows[i]["input_ids"]) for i in places)
            ids = torch.full((len(places), length), resident.tokenizer.pad_token_id)
            labels = torch.full((len(places), length), -100)
            mask = torch.zeros((len(places), length), dtype=torch.long)
            for n, i in enumerate(places):
                k = len(rows[i]["input_ids"])
                ids[n, :k], labels[n, :k], mask[n, :k] = torch.tensor(rows[i]["input_ids"]), torch.tensor(rows[i]["labels"]), 1
            logits = resident.model(input_ids=ids.to(resident.device), attention_mask=mask.to(resident.device)).logits[:, :-1]
            target = labels[:, 1:].to(resident.device)
            losses = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]).float(), target.reshape(-1), ignore_index=-100, reduction="none"
            )
            losses = losses.view(target.shape)
            for n, i in enumerate(places):
                out[i] = (float(losses[n].sum()), int((target[n] != -100).sum()))
    return out
