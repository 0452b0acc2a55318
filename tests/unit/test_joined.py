"""Joined projections say what PEFT's modules say, one by one; unpatched classes say what patched ones did before."""

from __future__ import annotations

import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from selftrain import joined, trainers
from selftrain.errors import InputError
from selftrain.joined import Joined, Layers, layers_of
from selftrain.sampling import decoder

SIZE = dict(
    vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0
)
IDS = torch.arange(24).view(2, 12) + 3


def model_of(kind: str):
    import transformers

    more = {"Gemma3": dict(head_dim=8, sliding_window=512), "Qwen3": dict(head_dim=8)}.get(kind, {})
    config = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")(
        **SIZE, **more, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def adapted(kind: str, targets="all-linear"):
    """A PEFT model whose adapter says something, and whose biases, where it has them, are not zero."""
    model = get_peft_model(model_of(kind), LoraConfig(r=4, lora_alpha=12, target_modules=targets)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or name.endswith("bias"):
                p.normal_(0, 0.3)
    return model


@torch.no_grad()
def said(layers, plain=False):
    layers.refresh()
    with layers.running(plain):
        return layers.model(IDS).logits


@torch.no_grad()
@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize(
    ("kind", "targets", "groups"),
    [
        ("Llama", "all-linear", 4),
        ("Qwen2", "all-linear", 4),  # biases
        ("Qwen3", "all-linear", 4),
        ("Gemma3", "all-linear", 4),
        ("Llama", ["q_proj", "v_proj", "down_proj"], 6),  # k has no adapter: not joined with its siblings
        ("Llama", ["gate_proj", "up_proj"], 4),
    ],
)
def test_joined_layers_say_what_the_modules_say(monkeypatch, kind, targets, groups, copied):
    monkeypatch.setattr(trainers, "CROSSOVER", 1e9 if copied else 1)
    model = adapted(kind, targets)
    layers = Layers(model)
    assert len(layers.groups) == 2 * groups and (layers.groups[0].whole is not None) is copied
    own = model(IDS).logits
    with model.disable_adapter():
        base = model(IDS).logits
    assert (own - base).abs().max() > 0.05
    torch.testing.assert_close(said(layers), own, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(said(layers, plain=True), base, atol=1e-5, rtol=1e-4)
    assert torch.equal(model(IDS).logits, own), "the modules are as before"


@torch.no_grad()
def test_a_refresh_takes_the_adapter_as_it_is_now():
    model = adapted("Llama")
    layers, before = Layers(model), model(IDS).logits
    layers.refresh()
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.mul_(-1.5)
    with layers.running(plain=False):
        torch.testing.assert_close(layers.model(IDS).logits, before, atol=1e-5, rtol=1e-4)
    after = said(layers)
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(after, model(IDS).logits, atol=1e-5, rtol=1e-4)


def test_siblings_are_computed_once_an_input():
    linear = [torch.nn.Linear(8, n, bias=False) for n in (4, 6)]
    group, calls = Joined(linear, linear, copied=True), []
    products = group._products
    group._products = lambda x: calls.append(1) or products(x)
    for _ in range(2):
        x = torch.randn(3, 5, 8)
        for i, module in enumerate(linear):
            torch.testing.assert_close(group(i, x), module(x))
    assert len(calls) == 2 and group.input is None


@torch.no_grad()
def test_what_cannot_be_joined_goes_its_own_way():
    class Odd(torch.nn.Linear):
        """Weights that are not what a product would take them for, as 4-bit ones."""

        def forward(self, x):
            return super().forward(x) * 2

    model = model_of("Llama")
    for layer in layers_of(model):
        layer.mlp.down_proj.__class__ = Odd
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)).eval()
    layers = Layers(model)
    assert len(layers.groups) == 2 * 3
    torch.testing.assert_close(said(layers), model(IDS).logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Gemma3"])
def test_patched_classes_are_passed_by(monkeypatch, kind):
    """Attention and MLP are patched, as Unsloth does; the layers are not, and hold the very same weights."""
    model = adapted(kind)
    own, base = model(IDS).logits, model.get_base_model()
    module = sys.modules[type(base).__module__]
    for part in (layers_of(base)[0].self_attn, layers_of(base)[0].mlp):
        monkeypatch.setattr(type(part), "forward", lambda self, *given, **named: 1 / 0)
    monkeypatch.setattr(Layers, "_check", lambda self, base: None)  # the patched model says nothing at all here
    layers = Layers(model, patched=True)
    assert sys.modules[module.__name__] is module and type(layers.model) is not type(base)
    assert {p.data_ptr() for p in layers.model.parameters()} == {p.data_ptr() for n, p in base.named_parameters() if ".lora_" not in n}
    torch.testing.assert_close(said(layers), own, atol=1e-5, rtol=1e-4)
    with pytest.raises(ZeroDivisionError):
        model(IDS)


@torch.no_grad()
def test_unpatched_classes_that_say_something_else_are_refused(monkeypatch):
    model = adapted("Llama")
    monkeypatch.setattr(joined, "NOISE", 1e-4)  # a tiny model's words are all about as likely
    assert Layers(model, patched=True).model is not model.get_base_model()
    with model.disable_adapter():
        assert Layers(model, patched=True).groups
    mlp = type(layers_of(model)[0].mlp)
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: forward(self, x) * 2)
    with pytest.raises(InputError, match="nats a token"):
        Layers(model, patched=True)


def test_unpatched_classes_without_all_of_the_adapter_are_refused():
    model = get_peft_model(model_of("Llama"), LoraConfig(r=4, target_modules="all-linear", use_dora=True)).eval()
    with pytest.raises(InputError, match="not every LoRA of LlamaForCausalLM"):
        Layers(model, patched=True)


def test_weights_of_another_form_are_refused():
    model = adapted("Llama")
    down = layers_of(model)[0].mlp.down_proj.base_layer
    down.weight = torch.nn.Parameter(torch.zeros(7, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(InputError, match="down_proj.weight is not as LlamaForCausalLM has it"):
        Layers(model, patched=True)


def test_classes_of_another_package_are_refused():
    base = model_of("Llama")
    base.__class__ = type("Compiled", (type(base),), {"__module__": "unsloth_compiled_module_llama"})
    with pytest.raises(InputError, match="is not a class of transformers but of unsloth_compiled_module_llama"):
        joined.unpatched(base)


@torch.no_grad()
@pytest.mark.parametrize("own", [True, False])
def test_a_head_is_tied_only_where_the_model_has_none_of_its_own(own):
    base = model_of("Gemma3")  # tied by its config
    if own:
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.clone() * 2)
    assert torch.equal(joined.unpatched(base)(IDS).logits, base(IDS).logits)


@torch.no_grad()
def test_modules_are_as_before_after_a_failure():
    model = adapted("Llama")
    layers, own = Layers(model), model(IDS).logits
    with pytest.raises(RuntimeError, match="stop"), layers.running(plain=False):
        layers.groups[0](0, torch.ones(1, 1, 32))
        raise RuntimeError("stop")
    assert layers.groups[0].input is None and layers.groups[0].outputs == ()
    assert torch.equal(model(IDS).logits, own)


def test_layers_are_made_anew_where_a_weight_has_moved(tiny):
    tiny.fresh(0)
    first = decoder(tiny, 1, 8, 4)
    layers = tiny.layers
    assert decoder(tiny, 1, 8, 4) is first and tiny.layers is layers
    moved = next(iter(tiny.tensors().values()))
    moved.data = moved.data.clone()
    again = decoder(tiny, 1, 8, 4)
    assert again is not first and again.layers is tiny.layers is not layers
    tiny.forget()
    assert tiny.layers is None


def test_a_refusal_is_remembered(tiny, monkeypatch):
    def refuse(*given, **named):
        raise InputError("no")

    tiny.forget()
    monkeypatch.setattr(joined, "Layers", refuse)
    try:
        with pytest.raises(InputError, match="no"):
            decoder(tiny, 1, 8, 4)
        assert tiny.plain_sampling and tiny.layers is None
    finally:
        tiny.plain_sampling = False
