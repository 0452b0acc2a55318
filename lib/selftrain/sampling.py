"""One batched sampler for chat answers and documents. Each answer's randomness is keyed by the answer, not by its batch."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from selftrain import memory, trainers
from selftrain.errors import InputError
from selftrain.formats import IGNORED, prompt_ids
from selftrain.resident import Resident

BATCH = 32  # answers at once on a CPU; on CUDA as many as memory holds (memory.answers_at_once)
BUCKET = 32  # prompt lengths are padded to a multiple of this where shapes must not change
LOGIT_BYTES = 2**30  # of bfloat16 logits that a likelihood pass may hold
GREEDY = {"do_sample": False, "top_k": None, "top_p": None, "temperature": None}  # generate without any distribution of its own


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


def warpers(top_p: float, top_k: int) -> list[Any]:
    """transformers' processors of a sampling distribution; none for top_p 1 and top_k 0."""
    from transformers import TopKLogitsWarper, TopPLogitsWarper  # here, not above: Unsloth wants to be imported before transformers

    return ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1.0 else [])


def perturbed(
    logits: torch.Tensor, keys: torch.Tensor, step: int | torch.Tensor, temperature: float | torch.Tensor, processors: Sequence[Any] = ()
) -> torch.Tensor:
    """Scores (rows, vocabulary) whose argmax is one exact draw from the warped softmax: logits/T minus log of a keyed exponential (Gumbel-max, Maddison et al. 2014)."""
    scores = logits.float() / temperature
    for processor in processors:
        scores = processor(None, scores)
    return scores - hashed_exponentials(keys, step, scores.shape[1]).log()


def pick(
    logits: torch.Tensor, keys: torch.Tensor, step: torch.Tensor, temperature: torch.Tensor, processors: Sequence[Any] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawn tokens and their log-probs under the model itself (temperature 1, nothing cut off), both (rows,)."""
    tokens = perturbed(logits, keys, step, temperature, processors).argmax(-1)
    return tokens, logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


class KeyedSampling:
    """A logits processor that turns greedy decoding into exact sampling, each row by its key."""

    def __init__(self, keys: Sequence[int], prompt_length: int, temperature: float, top_p: float, top_k: int, device: torch.device):
        self.keys = torch.tensor(keys, dtype=torch.int64, device=device).to(torch.int32)
        self.prompt_length, self.temperature, self.processors = prompt_length, float(temperature), warpers(top_p, top_k)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return perturbed(scores, self.keys, input_ids.shape[1] - self.prompt_length, self.temperature, self.processors)


def left_padded(tokenizer, rows: list[list[int]], to: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and attention mask, (rows, to)."""
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (to - len(row)) + row for row in rows])
    mask = torch.arange(to) >= to - torch.tensor([[len(row)] for row in rows])
    return ids.to(device), mask.long().to(device)


def decoder(resident: Resident, batch: int, prompt_length: int, new_tokens: int, top_p: float = 1.0, top_k: int = 0) -> Any:
    """The resident model's decoder of a shape, made at the first need and anew where a weight has moved; the few used last are kept.

    Errors of decoding.Decoder and joined.Layers.
    """
    from selftrain import decoding, joined

    if resident.layers is None or resident.layers.moved():
        resident.decoders.clear()
        resident.layers = None  # frees the old copies before the new are made
        try:
            resident.layers = joined.Layers(resident.model, patched=resident.trainer == "unsloth")
        except InputError:
            resident.plain_sampling = True  # no shape of batch will change that
            raise
    key = (batch, prompt_length, new_tokens, top_p, top_k)
    found = resident.decoders.pop(key, None)
    if found is None:
        while len(resident.decoders) >= decoding.KEPT:
            del resident.decoders[next(iter(resident.decoders))]
        processors = warpers(top_p, top_k)
        choose = (
            functools.partial(pick, processors=processors)
            if processors or resident.device.type == "cpu"
            else torch.compile(pick, dynamic=False)
        )
        found = decoding.Decoder(resident.layers, batch, prompt_length, new_tokens, choose, [resident.tokenizer.eos_token_id])
    resident.decoders[key] = found
    return found


def _generated(
    resident: Resident, ids: torch.Tensor, mask: torch.Tensor, keys: Sequence[int], new_tokens: int, *how: Any
) -> list[list[int]]:
    """The plain path: transformers' generate with its default cache."""
    from transformers import LogitsProcessorList

    out = resident.model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        **GREEDY,
        eos_token_id=[resident.tokenizer.eos_token_id],
        pad_token_id=resident.tokenizer.pad_token_id,
        use_cache=True,
        logits_processor=LogitsProcessorList([KeyedSampling(keys, ids.shape[1], *how, resident.device)]),
    )
    return out[:, ids.shape[1] :].tolist()


def _recorded(
    resident: Resident, rows: list[list[int]], keys: list[int], shape: tuple[int, int, int], temperature: float, *how: Any
) -> list[list[int]] | None:
    """Tokens by recorded steps, or None where they cannot be had: said once a reason. `shape` is batch, prompt length, new tokens.

    A shape that does not fit the model, or the memory even with all other shapes forgotten, is left to the plain path; any other failure
    ends recorded sampling for this process.
    """
    spare = shape[0] - len(rows)
    ids, mask = left_padded(resident.tokenizer, rows + [rows[-1]] * spare, shape[1], resident.device)
    for attempt in (1, 2):
        try:
            made, _ = decoder(resident, *shape, *how)(ids, mask, keys + [keys[-1]] * spare, temperature, resident.is_base)
            return made.tolist()
        except (InputError, torch.OutOfMemoryError) as error:
            why, full = str(error).splitlines()[0], isinstance(error, torch.OutOfMemoryError)
        except Exception as error:  # recording is an optimisation: go on without it
            why, full, resident.plain_sampling = (str(error).splitlines() or [type(error).__name__])[0], False, True
        if not full or attempt == 2:
            break
        resident.forget()
    if full or resident.plain_sampling:
        resident.forget()
    resident.say_once(f"answers are sampled by the plain path, not by recorded steps: {why}")
    return None


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
    beyond floating-point noise. On CUDA every batch of a call has one shape, of at most `batch_size` answers, and is decoded by a recorded
    graph (decoding.py); where that fails, one warning, and `generate`. `progress` is called with the number of answers just finished.
    """
    if not requests:
        return []
    tokenizer, device, how = resident.tokenizer, resident.device, (top_p, top_k)
    end = tokenizer.eos_token_id  # looked up once: transformers finds it anew at each look
    ids = [prompt_ids(tokenizer, kind, r.prompt) for r in requests]
    longest = max(resident.longest.get(max_new_tokens, 0), -(-max(map(len, ids)) // BUCKET) * BUCKET)
    resident.longest[max_new_tokens] = longest
    size = batch_size or BATCH
    if device.type == "cuda":
        copies = 2 if trainers.is_small(resident.model) else 1  # joined.py
        most = batch_size or memory.answers_at_once(resident.model, longest + max_new_tokens, copies)
        size = min(most, 2 ** math.ceil(math.log2(len(requests))))  # few shapes
    out: list[Sampled | None] = [None] * len(requests)
    by_length = sorted(range(len(requests)), key=lambda i: (len(ids[i]), i))
    for start in range(0, len(by_length), size):
        places = by_length[start : start + size]
        rows, keys = [ids[i] for i in places], [requests[i].key for i in places]
        made = None
        if device.type == "cuda" and not resident.plain_sampling:
            made = _recorded(resident, rows, keys, (size, longest, max_new_tokens), temperature, *how)
        if made is None:
            inputs, mask = left_padded(tokenizer, rows, max(map(len, rows)), device)
            made = _generated(resident, inputs, mask, keys, max_new_tokens, temperature, *how)
        for i, tokens in zip(places, made, strict=False):
            finished = end in tokens
            body = tokens[: tokens.index(end)] if finished else tokens
            text = tokenizer.decode(body, skip_special_tokens=True)
            out[i] = Sampled(text.strip() if kind == "chat" else text.rstrip(), len(body), finished)
        if progress:
            progress(len(places))
    return out


@torch.no_grad()
def nll(
    resident: Resident, rows: Sequence[dict[str, list[int]]], *, base: bool = True, batch_size: int | None = None
) -> list[tuple[float, int]]:
    """Summed negative log-likelihood in nats and number of scored tokens of each {input_ids, labels} row, under the base model or with the adapter."""
    if not rows:
        return []
    longest, vocabulary = max(len(r["input_ids"]) for r in rows), resident.model.config.get_text_config().vocab_size
    size = batch_size or (8 if resident.device.type == "cpu" else max(1, LOGIT_BYTES // (longest * vocabulary * 2)))
    out: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    with resident.as_base() if base else contextlib.nullcontext():
        for start in range(0, len(order), size):
            places = order[start : start + size]
            length = max(len(rows[i]["input_ids"]) for i in places)
            ids = torch.full((len(places), length), resident.tokenizer.pad_token_id)
            labels = torch.full((len(places), length), IGNORED)
            mask = torch.zeros((len(places), length), dtype=torch.long)
            for n, i in enumerate(places):
                k = len(rows[i]["input_ids"])
                ids[n, :k], labels[n, :k], mask[n, :k] = torch.tensor(rows[i]["input_ids"]), torch.tensor(rows[i]["labels"]), 1
            logits = resident.model(input_ids=ids.to(resident.device), attention_mask=mask.to(resident.device)).logits[:, :-1]
            targets = labels[:, 1:].to(resident.device)
            sums = [  # a row at a time: the float32 copy of a whole batch's logits would be the largest tensor of the run
                torch.nn.functional.cross_entropy(row.float(), target, ignore_index=IGNORED, reduction="sum")
                for row, target in zip(logits, targets, strict=True)
            ]
            for i, total, n in zip(places, torch.stack(sums).tolist(), (labels[:, 1:] != IGNORED).sum(1).tolist(), strict=True):
                out[i] = (total, n)
    return out
