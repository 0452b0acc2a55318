"""Forward and backward passes of one batch shape, recorded as CUDA graphs, so that TRL trains a small model without launching its kernels.

A training step of a small model is thousands of launches that cost more than their work. Here the layers between embedding and head are
recorded once (torch.cuda.make_graphed_callables), norms, projections and MLPs compiled, and replayed; head, loss, clipping and optimiser
stay TRL's. Rows and places beyond a batch are padding, and what comes out of them is cut off. On a CPU the same padded passes can run
unrecorded, for tests.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from selftrain import decoding, trainers
from selftrain.resident import Resident

BUCKET = 32  # lengths are padded to a multiple of this
READ = {"input_ids", "attention_mask"}  # arguments that a recorded pass reads
ABOUT_THE_LOSS = {"num_items_in_batch"}  # arguments that no layer reads


def hidden_states(inner: torch.nn.Module, weights: dict[str, torch.Tensor], ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """What the layers make of token ids and mask (rows, length) with `weights` in place of their own: (rows, length, width). Padding sees itself alone."""
    places = torch.arange(ids.shape[1], device=ids.device)
    visible = (places[:, None] >= places) & seen[:, None, :] | (places[:, None] == places)
    asked = {"input_ids": ids, "attention_mask": visible[:, None], "position_ids": places[None], "use_cache": False}
    return torch.func.functional_call(inner, weights, (), asked).last_hidden_state


def inner_of(model: Any) -> torch.nn.Module:
    """The layers of a PEFT model's base, without its head."""
    base = model.get_base_model()
    return getattr(base, base.base_model_prefix)


class Passes:
    """Passes of up to `rows` sequences of up to `length` tokens through the adapter "default", bfloat16 by autocast on CUDA."""

    def __init__(self, model: Any, rows: int, length: int):
        device = next(model.parameters()).device
        self.ids = torch.zeros(rows, length, dtype=torch.long, device=device)
        self.seen = torch.zeros(rows, length, dtype=torch.bool, device=device)
        self.addresses = addresses(model)
        inner = inner_of(model)
        self.trained = {name: p for name, p in inner.named_parameters() if p.requires_grad}
        # leaves of its own at the same addresses: what autograd keeps for a parameter belongs to the stream that trained it last
        leaves = [p.detach().requires_grad_() for p in self.trained.values()]

        def run(ids: torch.Tensor, seen: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
            return hidden_states(inner, dict(zip(self.trained, weights, strict=True)), ids, seen)

        self.run: Any = run
        if device.type != "cuda":
            return
        before = torch.cuda.current_stream()
        try:
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False), decoding.fused(model.get_base_model()):
                self.run = torch.cuda.make_graphed_callables(run, (self.ids, self.seen, *leaves), num_warmup_iters=2, pool=decoding.pool())
        except BaseException:
            decoding.mend(before)
            raise

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Hidden states (rows, length, width) of ids and mask (rows, length); valid until the next call."""
        rows, length = ids.shape
        self.ids.zero_()[:rows, :length] = ids
        self.seen.zero_()[:rows, :length] = mask.bool()
        return self.run(self.ids, self.seen, *self.trained.values())[:rows, :length]

    def fit(self, ids: torch.Tensor) -> bool:
        """Whether a batch is no larger than what was recorded."""
        return all(n <= m for n, m in zip(ids.shape, self.ids.shape, strict=True))


def addresses(model: Any) -> tuple[int, ...]:
    """Where a model's frozen weights and its adapter "default" are: a recording reads these places."""
    return tuple(p.data_ptr() for name, p in model.named_parameters() if ".lora_" not in name or ".default." in name)


def _why_not(resident: Resident, length: int) -> str | None:
    """Why training does not replay recorded passes; "" where there is nothing to say about it, None where it does."""
    model = resident.model
    if resident.device.type != "cuda" or resident.trainer != "trl" or resident.checkpointing or resident.plain_training:
        return ""
    if not trainers.is_small(model):
        return ""  # recorded activations stay, and memory is wanted for its weights
    if any(isinstance(m, torch.nn.Dropout) and m.p for m in model.modules()) or getattr(model.config, "attention_dropout", 0):
        return "the model has dropout"
    return decoding.unfit(model, length)


def _passes(resident: Resident, rows: int, length: int) -> Passes:
    """Recorded passes for such a batch: those kept for `rows` if they are long enough and no weight has moved, else new ones."""
    resident.longest_row = max(resident.longest_row, -(-length // BUCKET) * BUCKET)
    kept = resident.passes.get(rows)
    if kept is None or kept.ids.shape[1] < length or kept.addresses != addresses(resident.model):
        kept = None
        if resident.passes.pop(rows, None):
            gc.collect()  # a recording holds itself in a cycle
        resident.passes[rows] = Passes(resident.model, rows, resident.longest_row)
    return resident.passes[rows]


def _recorded(resident: Resident, rows: int, length: int) -> Passes | None:
    """The passes of a shape, or None where they cannot be had. A reason worth a word is said once; a failure ends recorded training for this process."""
    why = _why_not(resident, length)
    if why:
        resident.say_once(f"training runs without recorded passes: {why}")
    if why is not None:
        return None
    for attempt in (1, 2):
        try:
            return _passes(resident, rows, length)
        except Exception as error:  # recording is an optimisation: go on without it
            full = isinstance(error, torch.OutOfMemoryError)
            why = (str(error).splitlines() or [type(error).__name__])[0]
        resident.forget()
        if not full or attempt == 2:
            break
    resident.plain_training = True
    resident.say_once(f"training runs without recorded passes: {why}")
    return None


@contextlib.contextmanager
def replayed(resident: Resident, rows: int, length: int) -> Iterator[bool]:
    """The resident model's layers replaced by recorded passes for the length of a with block; yields whether they are.

    Batches of up to `rows` sequences and `length` tokens are replayed through the adapter "default"; any other call goes the model's own
    way. Small models on CUDA only, under TRL.
    """
    found = _recorded(resident, rows, length)
    if found is None:
        yield False
        return
    inner = inner_of(resident.model)
    own = inner.forward

    def forward(*args: Any, **given: Any) -> Any:
        said = {name for name, value in given.items() if value is not None and value is not False} - ABOUT_THE_LOSS
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        plain = args or ids is None or mask is None or mask.dim() != 2 or not said <= READ or not found.fit(ids)
        if plain or resident.is_base or resident.model.active_adapter != "default":
            return own(*args, **given)
        return BaseModelOutputWithPast(last_hidden_state=found(ids, mask))

    inner.forward = forward
    try:
        yield True
    finally:
        del inner.forward


@torch.no_grad()
def reference_logps(resident: Resident, trainer: Any, rows: Sequence[dict], reference: str, batch_size: int) -> list[tuple[float, float]]:
    """Summed log-probs (nats) of each pair's chosen and rejected answer under the policy as it is now, or under the base.

    A fresh adapter is the base, so it is taken as it is.
    """
    from trl.trainer.utils import selective_log_softmax

    device, found = resident.device, []
    base = reference == "base" and not resident.is_zero()
    with (
        resident.as_base() if base else contextlib.nullcontext(),
        torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
    ):
        for start in range(0, len(rows), batch_size):
            batch = {k: v.to(device) for k, v in trainer.data_collator(list(rows[start : start + batch_size])).items()}
            ids, counted = batch["input_ids"], batch["completion_mask"][:, 1:]
            logits = resident.model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits[:, :-1].float()
            chosen, rejected = selective_log_softmax(logits, ids[:, 1:], row_mask=counted).sum(1).chunk(2)
            found += zip(chosen.tolist(), rejected.tolist(), strict=True)
    return found
