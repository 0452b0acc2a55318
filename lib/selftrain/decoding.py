"""Decoding of a fixed batch: prefill, then one step recorded as a CUDA graph and replayed for every token.

On a host where launching a kernel costs more than running it, a step of a small model is thousands of launches; a replayed graph is one.
The adapter is read at every replay of a prefill, so it may change in place. Norms, MLPs and rotations are compiled, one by one, while
prefill and step are recorded.
On a CPU the same steps run unrecorded.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from selftrain.errors import InputError
from selftrain.joined import Layers, layers_of

GROUPED = "selftrain_grouped"
ALIGNED = 16  # attention kernels copy masks whose rows are no multiple of this
GLANCE = 16  # steps between looks at whether every answer has ended: a look waits for the device
ROTATION = "apply_rotary_pos_emb"  # transformers' name for it in every model's module
RECOMPILED = 4096  # shapes and classes that one function may be compiled for: each recorded shape adds a few, and none must go without
KEPT = 2  # decoders (shapes) kept in memory, each allowed memory.FOR_ANSWERS of it


def grouped_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """Attention of one new token: the query heads that share a key head stand as that head's rows, so that keys and values are read once and never repeated."""
    batch, heads, length, width = query.shape
    if unknown := [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]:
        raise InputError(f"attention has {unknown[0]}")
    if length > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    groups = key.shape[1]
    rows = query.reshape(batch, groups, heads // groups, width)
    mask = attention_mask.expand(batch, groups, heads // groups, key.shape[2])
    out = torch.nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, 1, heads, width), None


ALL_ATTENTION_FUNCTIONS.register(GROUPED, grouped_attention)


class FixedCache(Cache):
    """Keys and values of `length` places, tensors that never move; a prompt fills the first places, a token goes to place `slot` (1,)."""

    def __init__(self, length: int, slot: torch.Tensor):
        super().__init__(layers=[])
        self.length, self.slot = length, slot
        self.held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        if layer_idx not in self.held:
            shape = (*key_states.shape[:2], self.length, key_states.shape[3])
            self.held[layer_idx] = (key_states.new_zeros(shape), value_states.new_zeros((*shape[:3], value_states.shape[3])))
        n = key_states.shape[2]
        for kept, new in zip(self.held[layer_idx], (key_states, value_states), strict=True):
            if n == 1:
                kept.index_copy_(2, self.slot, new)
            else:
                kept[:, :, :n] = new
        return self.held[layer_idx]

    def clear(self) -> None:
        """Forget the last call: a masked place counts nothing, but not if it holds a NaN."""
        for pair in self.held.values():
            for tensor in pair:
                tensor.zero_()


def _configs(model: torch.nn.Module) -> list[Any]:
    """Every config that a module of the model reads its attention from."""
    found = {id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "_attn_implementation")}
    return list(found.values())


@contextlib.contextmanager
def _grouped(model: torch.nn.Module) -> Iterator[None]:
    """grouped_attention in place of the model's own, for the length of a with block."""
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        for config, _ in before:
            config._attn_implementation = GROUPED
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


@functools.cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=False)


@functools.cache
def _side_stream() -> Any:
    """One stream for all warming up: each stream keeps a workspace of its own."""
    return torch.cuda.Stream()


@functools.cache
def _pool_and_keeper() -> tuple[Any, Any]:
    handle, keeper = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(keeper, pool=handle):
        torch.zeros(1, device="cuda")
    return handle, keeper


def pool() -> Any:
    """One pool of memory for all recordings, of answers and of training: they are never replayed at the same time.

    A recording that is kept beside it keeps it alive: a pool dies with its last recording, and its handle is of no use then.
    """
    return _pool_and_keeper()[0]


def leave_pool() -> None:
    """Later recordings take a new pool; the old one's memory is given back with the last recording in it."""
    _pool_and_keeper.cache_clear()


def mend(stream: Any, graphs: Sequence[Any] = ()) -> None:
    """Leave the device as it was before a recording on pool() that failed.

    The recording's stream is still the current one, the allocator still fills the pool, and the random generator believes that it is
    being recorded until a recording ends well.
    """
    torch.cuda.set_stream(stream)
    for graph in graphs:
        with contextlib.suppress(RuntimeError):
            graph.reset()
    if _pool_and_keeper.cache_info().currsize:
        with contextlib.suppress(RuntimeError):  # raises where the allocator knows that recording has ended
            torch._C._cuda_endAllocateToPool(stream.device.index, pool())
            torch._C._cuda_releasePool(stream.device.index, pool())
    leave_pool()
    try:
        torch.cuda.synchronize()
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.zeros(1, device=stream.device)
    except RuntimeError:
        pass
    finally:
        torch.cuda.set_stream(stream)


@contextlib.contextmanager
def fused(model: torch.nn.Module) -> Iterator[None]:
    """Norms, and what else of a layer is not joined, compiled one by one, and the rotation of queries and keys: fewer kernels a step, seconds to compile.

    One compiled function serves the modules of a class and shape; attention, which knows its layer, is opened and its parts are taken.
    """
    changed, attentions = [], {type(m) for m in model.modules() if hasattr(m, "layer_idx")}
    places = {id(place): place for a in attentions if ROTATION in (place := inspect.unwrap(a.forward).__globals__)}.values()
    rotations = [place[ROTATION] for place in places]
    try:
        for place in places:
            place[ROTATION] = _compiled(place[ROTATION])
        for layer in layers_of(model):
            for part in layer.children():
                for module in part.children() if hasattr(part, "layer_idx") else (part,):
                    if list(module.parameters()) and not any("forward" in m.__dict__ for m in module.modules()):
                        module.forward = functools.partial(_compiled(type(module).forward), module)
                        changed.append(module)
        with torch._dynamo.config.patch(recompile_limit=RECOMPILED, accumulated_recompile_limit=RECOMPILED):
            yield
    finally:
        for module in changed:
            del module.forward
        for place, function in zip(places, rotations, strict=True):
            place[ROTATION] = function


def unfit(model: torch.nn.Module, length: int) -> str | None:
    """Why answers of `length` tokens, prompt included, cannot be decoded this way; None if they can."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    if (attention := getattr(config, "_attn_implementation", "sdpa")) not in ("sdpa", GROUPED):
        return f"attention by {attention}, not sdpa"
    if not kinds <= {"full_attention", "sliding_attention"}:
        return f"layers of kind {sorted(kinds - {'full_attention', 'sliding_attention'})[0]}"
    if "sliding_attention" in kinds and window and length > window:
        return f"{length} tokens reach beyond the attention window of {window}"
    if getattr(config, "attn_logit_softcapping", None):
        return "attention scores are capped"
    return None


class Decoder:
    """One shape of batch: `batch` answers of up to `new_tokens` tokens to prompts of up to `prompt_length` tokens.

    `choose(logits (batch, vocabulary), keys (batch,), step (1,), temperature ()) -> (tokens (batch,), log-probs (batch,))` picks each step's tokens.
    InputError where the model's attention does not fit (see unfit), or prompts are a single token.
    """

    def __init__(self, layers: Layers, batch: int, prompt_length: int, new_tokens: int, choose: Any, ends: list[int]):
        why = unfit(layers.model, prompt_length + new_tokens) or ("prompts of a single token" if prompt_length < 2 else None)
        if why:
            raise InputError(why)
        self.layers, self.choose = layers, choose
        weight = next(layers.model.parameters())
        device, self.dtype = weight.device, weight.dtype
        self.recorded = device.type == "cuda"
        room = max(new_tokens, 4)  # recording runs a few steps
        length = -(-(prompt_length + room) // ALIGNED) * ALIGNED

        def long(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self.prompt, self.seen = long(batch, prompt_length), torch.zeros(batch, prompt_length, dtype=torch.bool, device=device)
        self.keys, self.ends = torch.zeros(batch, dtype=torch.int32, device=device), torch.tensor(ends, device=device)
        self.temperature = torch.ones((), device=device)
        self.token, self.position, self.slot, self.step = long(batch, 1), long(batch, 1), long(1), long(1)
        self.mask = torch.zeros(batch, 1, 1, length, dtype=self.dtype, device=device)
        self.new_tokens, self.made, self.logps = new_tokens, long(batch, room), torch.zeros(batch, room, device=device)
        self.ended = torch.zeros(batch, dtype=torch.bool, device=device)
        self.cache = FixedCache(length, self.slot)
        self.graphs: dict[bool, tuple[Any, Any]] = {}

    def _take(self, logits: torch.Tensor) -> None:
        """Pick this step's tokens and move every counter on."""
        tokens, logps = self.choose(logits, self.keys, self.step, self.temperature)
        self.token.copy_(tokens[:, None])
        self.made.index_copy_(1, self.step, tokens[:, None])
        self.logps.index_copy_(1, self.step, logps[:, None])
        self.ended |= (tokens[:, None] == self.ends).any(1)
        self.step += 1

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits (batch, vocabulary) after the last of `ids`."""
        out = self.layers.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        return out.logits[:, -1]

    def _prefill(self) -> None:
        """Take the adapter, read the prompts and pick the first tokens. Padding sees itself alone, so that no row of attention is empty."""
        self.layers.refresh()
        n, low = self.prompt.shape[1], torch.finfo(self.dtype).min
        self.cache.clear()
        self.step.zero_(), self.ended.zero_(), self.slot.fill_(n)
        places = torch.arange(n, device=self.prompt.device)
        visible = (places[:, None] >= places) & self.seen[:, None, :] | (places[:, None] == places)
        self.mask.fill_(low)
        self.mask[:, 0, 0, :n].masked_fill_(self.seen, 0)
        mask = self.mask.expand(-1, 1, n, -1).clone()
        mask[:, 0, :, :n] = torch.where(visible, 0, low).to(self.dtype)
        counted = self.seen.long().cumsum(1)
        self.position.copy_(counted[:, -1:])
        self._take(self._forward(self.prompt, mask, (counted - 1).clamp(min=0)))

    def _next(self) -> None:
        """Read the tokens picked last and pick the next."""
        self.mask.index_fill_(3, self.slot, 0)
        logits = self._forward(self.token, self.mask, self.position)
        self.position += 1
        self.slot += 1
        self._take(logits)

    def _record(self, plain: bool) -> tuple[Any, Any]:
        """Graphs of the prefill and of a step. A failure leaves the device as it was."""
        torch.cuda.empty_cache()  # recording allocates from a pool of its own
        before, graphs = torch.cuda.current_stream(), (torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph())
        try:
            with _grouped(self.layers.model), self.layers.running(plain), fused(self.layers.model):
                self._warm(self._prefill)
                with torch.cuda.graph(graphs[0], pool=pool()):
                    self._prefill()
                graphs[0].replay()
                self._warm(self._next)
                with torch.cuda.graph(graphs[1], pool=pool()):
                    self._next()
        except BaseException:
            mend(before, graphs)
            raise
        return graphs

    def _warm(self, step: Any) -> None:
        """Run a step twice aside: what compiles, allocates or picks a kernel must have done so before it is recorded."""
        side = _side_stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)

    def _ready(self, plain: bool) -> tuple[Any, Any]:
        """The two steps as functions: replays where recorded."""
        if not self.recorded:
            return self._prefill, self._next
        if plain not in self.graphs:
            self.graphs[plain] = self._record(plain)
        prefill, following = self.graphs[plain]
        return prefill.replay, following.replay

    @torch.no_grad()
    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, keys: list[int], temperature: float, plain: bool = False, whole: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and their log-probs at temperature 1, both (batch, new_tokens), for left-padded ids and mask (batch, prompt_length).

        `plain` says that the adapter is switched off now. What follows an end token means nothing; `whole` decodes on beyond it.
        """
        self.prompt.copy_(ids)
        self.seen.copy_(mask.bool())
        self.keys.copy_(torch.tensor(keys, dtype=torch.int64).to(torch.int32))
        self.temperature.fill_(temperature)
        prefill, following = self._ready(plain)
        with contextlib.ExitStack() as stack:
            if not self.recorded:
                stack.enter_context(_grouped(self.layers.model))
                stack.enter_context(self.layers.running(plain))
            prefill()
            for n in range(1, self.new_tokens):
                if n % GLANCE == 0 and not whole and bool(self.ended.all()):
                    break
                following()
        return self.made[:, : self.new_tokens].clone(), self.logps[:, : self.new_tokens].clone()
