"""A model's layers as decoding runs them: projections that read the same input in one product, LoRA unmerged in the same product.

y = x [W | A], then y_W += y_A B: two kernels for queries, keys and values, where module by module there are fifteen. The adapter is read
anew at every `refresh`, so that it may change in place. Where Unsloth has patched the model's classes, its weights stand in unpatched ones.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from selftrain import trainers
from selftrain.errors import InputError

NOISE = 0.2  # nats: mean difference of log-probs, weighted by probability, that is far above rounding and far below another model's
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # projections that read the same input, in the order of their calls


class Joined:
    """Projections that read the same input. `modules` are called; `sources`, the same or PEFT's of the same weights, hold the adapter.

    `copied`: the weights stand in a copy under each other; else each is multiplied where it is, which saves a large model's memory.
    """

    def __init__(self, modules: Sequence[torch.nn.Module], sources: Sequence[torch.nn.Module], copied: bool):
        bases = [_base(source) for source in sources]
        self.modules, self.sizes, self.out = list(modules), [b.out_features for b in bases], sum(b.out_features for b in bases)
        self.lora = [_lora(source) for source in sources if source is not _base(source)]
        rank = sum(a.shape[0] for a, _, _ in self.lora)
        self.weights, self.biases = [b.weight for b in bases], [b.bias for b in bases]
        self.reduce = self.weights[0].new_zeros(rank, self.weights[0].shape[1])
        self.expand = self.weights[0].new_zeros(rank, self.out)
        self.whole = torch.cat([*self.weights, self.reduce]) if copied else None
        if copied:
            self.weights, self.reduce = [self.whole[: self.out]], self.whole[self.out :]
        self.plain, self.input, self.outputs = False, None, ()

    def refresh(self) -> None:
        """Take the adapter as it is now."""
        row = column = 0
        for (a, b, scaling), size in zip(self.lora, self.sizes, strict=bool(self.lora)):
            self.reduce[row : row + len(a)].copy_(a)
            self.expand[row : row + len(a), column : column + size].copy_(b.t() * scaling)
            row, column = row + len(a), column + size

    def _products(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Every projection's output of x (n, in)."""
        adapted = bool(self.lora) and not self.plain
        if self.whole is None:
            made, parts = None, [x @ weight.t() for weight in self.weights]
        else:
            made = x @ (self.whole if adapted else self.weights[0]).t()
            parts = [made[:, : self.out]]
        if adapted:
            reduced = x @ self.reduce.t() if made is None else made[:, self.out :]
            for part, block in zip(parts, self.expand.split([part.shape[1] for part in parts], 1), strict=True):
                part.addmm_(reduced, block)
        parts = parts if made is None else parts[0].split(self.sizes, 1)
        for part, bias in zip(parts, self.biases, strict=True):
            if bias is not None:
                part += bias
        return list(parts)

    def __call__(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The output of one of the projections, (..., out), of x (..., in). The first that is asked for computes all."""
        if self.input is not x:
            self.input, self.outputs = x, self._products(x.reshape(-1, x.shape[-1]))
        found = self.outputs[index].unflatten(0, x.shape[:-1])
        if index == len(self.sizes) - 1:
            self.input, self.outputs = None, ()
        return found


def _base(module: torch.nn.Module) -> torch.nn.Module:
    """The layer that a LoRA is around, or the module itself."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _lora(module: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A (rank, in), B (out, rank) and scaling of a module's one adapter."""
    (name,) = module.active_adapters
    return module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]


def _fits(module: Any) -> bool:
    """Whether a module is a product with a matrix, with at most one plain LoRA around it and no forward of its own."""
    if type(_base(module)) is not torch.nn.Linear or "forward" in module.__dict__ or "forward" in _base(module).__dict__:
        return False
    if module is _base(module):
        return True
    names = list(module.active_adapters)
    return len(names) == 1 and names[0] in module.lora_A and not (module.merged or module.lora_variant or module.lora_bias[names[0]])


def groups(model: torch.nn.Module, source: torch.nn.Module, copied: bool) -> list[Joined]:
    """The projections of a model's layers, joined where they can be; weights and adapter are those of the same names in `source`."""
    found = []
    for layer, held in zip(layers_of(model), layers_of(source), strict=True):
        for place, part in layer.named_children():
            own = dict(part.named_children())
            named = {name: m for name, m in held.get_submodule(place).named_children() if name in own and _fits(m)}
            for names in SIBLINGS:
                if set(names) <= set(named) and len({named[name] is _base(named[name]) for name in names}) == 1:
                    found.append(Joined([own[n] for n in names], [named.pop(n) for n in names], copied))
            found += [Joined([own[name]], [m], copied) for name, m in named.items()]
    return found


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of a model's decoder, first to last."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    return list(next((m for m in decoder.modules() if isinstance(m, torch.nn.ModuleList)), []))


def unpatched(base: torch.nn.Module) -> torch.nn.Module:
    """The model in classes imported anew, on the same weights: what Unsloth has done to its classes is not in these.

    InputError where the classes are not transformers' own, or a weight is not a plain tensor of the shape that they want (4-bit weights, say).
    The patched classes lose transformers' means to return hidden states layer by layer, which are registered by the name of a class.
    """
    from accelerate import init_empty_weights

    name = type(base).__module__
    if not name.startswith("transformers.models."):
        raise InputError(f"{type(base).__name__} is not a class of transformers but of {name}")
    patched, package = sys.modules[name], sys.modules[name.rpartition(".")[0]]
    try:
        del sys.modules[name]
        made = getattr(importlib.import_module(name), type(base).__name__)
    finally:
        sys.modules[name] = patched
        setattr(package, name.rpartition(".")[2], patched)
    config = copy.deepcopy(base.config)
    config._attn_implementation = "sdpa"
    with init_empty_weights(include_buffers=False):
        model = made(config)
    weights, wanted = _weights(base), dict(model.named_parameters(remove_duplicate=False))
    if odd := sorted(model.state_dict().keys() - wanted):
        raise InputError(f"{odd[0]} is kept with the weights of {type(base).__name__} and is none")
    for key, p in wanted.items():
        held = weights.get(key)
        if held is not None and held.shape == p.shape and held.is_floating_point():
            owner, _, last = key.rpartition(".")
            model.get_submodule(owner)._parameters[last] = held
        elif held is not None or not key.endswith("lm_head.weight"):
            raise InputError(f"{key} is not as {type(base).__name__} has it")
    if any(p.is_meta for p in model.parameters()):
        model.tie_weights()  # a head that the model does not have of its own
    if missing := [key for key, p in model.named_parameters() if p.is_meta]:
        raise InputError(f"{missing[0]} is not as {type(base).__name__} has it")
    return model.to(next(iter(weights.values())).device).eval()


def _weights(base: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model by the names that they have without PEFT."""
    return {key.replace(".base_layer", ""): p for key, p in base.named_parameters() if ".lora_" not in key}


class Layers:
    """What decoding calls: a model without PEFT's wrapping, whose projections are joined while `running`.

    `patched`: another's forward stands in the model's classes, so unpatched ones are taken; InputError where they do not say the same.
    """

    def __init__(self, model: Any, patched: bool = False):
        base = model.get_base_model()
        self.of, self.model = model, unpatched(base) if patched else base
        self.groups = groups(self.model, base, copied=trainers.is_small(model))
        self.addresses = self._addresses()
        if patched:
            self._check(base)

    def _addresses(self) -> tuple[int, ...]:
        return tuple(p.data_ptr() for p in self.of.parameters())

    def moved(self) -> bool:
        """Whether a weight is no longer where it was when these layers were made."""
        return self.addresses != self._addresses()

    @torch.no_grad()
    def _check(self, base: torch.nn.Module) -> None:
        """InputError where a LoRA is not among the groups, or the model's own forward gives other log-probs."""
        adapted = {m for m in base.modules() if hasattr(m, "lora_A")}
        if len(adapted) != sum(len(group.lora) for group in self.groups):
            raise InputError(f"not every LoRA of {type(base).__name__} can be joined")
        off = any(m.disable_adapters for m in adapted)
        ids = torch.arange(100, 164, device=next(self.of.parameters()).device).view(2, 32) % self.model.config.get_text_config().vocab_size
        own = self.of(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().log_softmax(-1)
        self.refresh()
        with self.running(plain=off):
            mine = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float().log_softmax(-1)
        gap = ((own - mine).abs() * own.exp()).sum(-1).mean().item()
        if not gap <= NOISE:
            raise InputError(f"the model and an unpatched one on its weights differ by {gap:.2f} nats a token")

    def refresh(self) -> None:
        """Take the adapter as it is now."""
        for group in self.groups:
            group.refresh()

    @contextlib.contextmanager
    def running(self, plain: bool) -> Iterator[None]:
        """The projections are joined for the length of a with block; `plain`: without the adapter."""
        try:
            for group in self.groups:
                group.plain = plain
                for index, module in enumerate(group.modules):
                    module.forward = functools.partial(group, index)
            yield
        finally:
            for group in self.groups:
                group.input, group.outputs = None, ()
                for module in group.modules:
                    module.__dict__.pop("forward", None)
