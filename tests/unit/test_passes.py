"""Padded passes of a fixed shape, which CUDA records, run unrecorded here: they must train as the model's own do."""

from __future__ import annotations

import functools
import logging
import sys

import pytest
import torch
from selftrain import decoding, formats, passes
from selftrain.formats import Item
from selftrain.training import Settings, train

CHAT = [Item(f"c{i}", "chat", f"Question {i}?", "Yes, " * (i + 1) + "truly.", finished=i != 1) for i in range(5)]
DOCUMENTS = [Item(f"d{i}", "documents", "", f"Dear all, this is note {i}" + " and so on" * i, finished=i != 1) for i in range(5)]


def settings(**changes):
    fixed = dict(lr=1e-2, schedule="constant", epochs=2, batch_size=2, warmup=0.0, weight_decay=0.0, max_grad_norm=1.0, seed=7)
    return Settings(**{**fixed, **changes})


@pytest.fixture
def padded(tiny, monkeypatch):
    """Training takes the padded passes, as on CUDA; returns the shapes that it asked for."""
    seen, call = [], passes.Passes.__call__

    def watched(self, ids, mask):
        seen.append((tuple(ids.shape), tuple(self.ids.shape), torch.is_grad_enabled()))
        return call(self, ids, mask)

    monkeypatch.setattr(passes, "_why_not", lambda resident, length: None)
    monkeypatch.setattr(tiny, "longest_row", 0)
    monkeypatch.setattr(passes.Passes, "__call__", watched)
    yield seen
    tiny.forget()


def rows_of(tiny, what):
    if what == "pairs":
        return [formats.preference_row(tiny.tokenizer, i, Item(i.id, "chat", i.prompt, f"No {i.id}."), 200) for i in CHAT]
    return [formats.training_row(tiny.tokenizer, item, 500) for item in (CHAT if what == "chat" else DOCUMENTS)]


def trajectory(tiny, rows, reference, start):
    """Per-step logs of one training run from an adapter with weights."""
    tiny.fresh(1)
    if start == "trained":
        train(tiny, [formats.training_row(tiny.tokenizer, CHAT[0], 500)], settings(epochs=3))
    how = {"beta": 0.1} if reference else {}
    return train(tiny, rows, settings(**how), reference=reference).history


@pytest.mark.parametrize(
    ("what", "reference", "start"),
    [
        ("chat", None, "fresh"),
        ("documents", None, "fresh"),
        ("pairs", "base", "fresh"),
        ("pairs", "base", "trained"),
        ("pairs", "cycle_start", "trained"),
    ],
)
def test_padded_passes_train_as_the_model_does(tiny, monkeypatch, padded, what, reference, start):
    rows = rows_of(tiny, what)
    mine = trajectory(tiny, rows, reference, start)
    weights = {name: p.clone() for name, p in tiny.tensors().items()}
    monkeypatch.setattr(passes, "_why_not", lambda resident, length: "")
    del padded[:-1]
    own = trajectory(tiny, rows, reference, start)
    assert len(padded) == 1 and len(mine) == len(own) == 6
    for a, b in zip(mine, own, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4, abs=1e-5) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        assert {k for k in a if k.startswith("rewards")} == {k for k in b if k.startswith("rewards")}
    assert all(torch.allclose(weights[name], p, atol=2e-4) for name, p in tiny.tensors().items())


def test_every_batch_is_padded_to_one_shape_and_the_reference_is_taken_once(tiny, padded):
    rows = rows_of(tiny, "pairs")
    tiny.fresh(1)
    train(tiny, rows, settings(beta=0.1), reference="base")
    shapes = {full for _, full, _ in padded}
    assert len(shapes) == 1 and (length := shapes.pop()[1]) % passes.BUCKET == 0
    assert {asked[0] for asked, _, _ in padded} == {4, 2}, "the last batch is short"
    assert all(asked[1] <= length for asked, _, _ in padded)
    assert [grad for _, _, grad in padded] == [False] * 3 + [True] * 6


def test_passes_are_kept_over_cycles_and_replaced_for_longer_rows_or_moved_weights(tiny, padded):
    rows = rows_of(tiny, "chat")
    tiny.fresh(1)
    train(tiny, rows, settings())
    first = tiny.passes[2]
    tiny.fresh(2)
    train(tiny, rows_of(tiny, "pairs"), settings(beta=0.1, batch_size=1), reference="base")
    assert tiny.passes[2] is first, "a shorter batch of as many sequences fits what is kept"
    length = first.ids.shape[1]
    long = [formats.training_row(tiny.tokenizer, Item("l", "chat", "Why?", "Because. " * 60), 500)]
    train(tiny, long, settings())
    second = tiny.passes[2]
    assert second is not first and second.ids.shape[1] > length
    name, p = next(iter(tiny.tensors().items()))
    p.data = p.data.clone()
    train(tiny, rows, settings())
    assert tiny.passes[2] is not second and tiny.passes[2].ids.shape[1] == second.ids.shape[1]


def test_compiled_modules_give_the_models_own_gradients_and_are_put_back(tiny, monkeypatch):
    compiled = functools.cache(lambda function: torch.compile(function, dynamic=False, backend="aot_eager"))
    monkeypatch.setattr(decoding, "_compiled", compiled)
    base = tiny.model.get_base_model()
    tiny.fresh(1)
    for name, p in tiny.tensors().items():
        p.requires_grad_(True)
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    found, ids = passes.Passes(tiny.model, 2, 32), torch.arange(40).view(2, 20) % 50 + 5
    place = sys.modules[type(base).__module__]
    rotation = place.apply_rotary_pos_emb

    def gradients():
        tiny.model.zero_grad()
        out = found(ids, torch.ones_like(ids))
        out.square().mean().backward()
        return [out.detach().clone(), *(p.grad.clone() for p in tiny.tensors().values())]

    own, before = gradients(), torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with pytest.raises(ZeroDivisionError), decoding.fused(base):
        assert place.apply_rotary_pos_emb is not rotation
        for a, b in zip(own, gradients(), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
        raise ZeroDivisionError
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before, "nothing was compiled"
    assert not any("forward" in module.__dict__ for module in base.modules())
    assert place.apply_rotary_pos_emb is rotation


@pytest.fixture
def on_cuda(tiny, monkeypatch):
    """The resident says that it is on CUDA, to what asks before it records."""
    monkeypatch.setattr(type(tiny), "device", torch.device("cuda"))
    for name in ("plain_training", "said", "passes", "longest_row"):
        monkeypatch.setattr(tiny, name, type(getattr(tiny, name))())
    monkeypatch.setattr(tiny, "forget", lambda: tiny.passes.clear())
    return tiny


def test_what_cannot_be_recorded_is_not_tried(on_cuda, monkeypatch):
    tiny = on_cuda
    assert passes._why_not(tiny, 64) is None
    with monkeypatch.context() as changed:
        changed.setattr(tiny.model.get_base_model().model.layers[0], "extra", torch.nn.Dropout(0.1), raising=False)
        assert passes._why_not(tiny, 64) == "the model has dropout"
    for name, value in (("trainer", "unsloth"), ("checkpointing", True), ("plain_training", True)):
        with monkeypatch.context() as changed:
            changed.setattr(tiny, name, value)
            assert passes._why_not(tiny, 64) == ""
    monkeypatch.setattr(passes.trainers, "CROSSOVER", 1)
    assert passes._why_not(tiny, 64) == ""


@pytest.mark.parametrize(
    ("error", "fails", "tries", "said"),
    [
        (RuntimeError("no graph today\nmore"), 9, 1, ["training runs without recorded passes: no graph today"]),
        (torch.OutOfMemoryError("full"), 9, 2, ["training runs without recorded passes: full"]),
        (torch.OutOfMemoryError("full"), 1, 2, []),
    ],
)
def test_a_failure_to_record_is_said_once_and_not_tried_again(on_cuda, monkeypatch, caplog, error, fails, tries, said):
    tried = []

    def recording(*shape):
        tried.append(shape)
        if len(tried) <= fails:
            raise error
        return "recorded"

    monkeypatch.setattr(passes, "Passes", recording)
    with caplog.at_level(logging.WARNING):
        found = passes._recorded(on_cuda, 8, 50)
        assert len(tried) == tries and tried[-1][1:] == (8, 64)
        if said:
            assert passes._recorded(on_cuda, 8, 50) is None and len(tried) == tries
    assert [r.message for r in caplog.records if "recorded passes" in r.message] == said
    assert (found is None) == bool(said) == on_cuda.plain_training


def test_other_calls_go_the_models_own_way(tiny, padded):
    """Positions given, a batch too large, the adapter switched off, another adapter: none of these is what was recorded."""
    ids = torch.randint(5, 50, (2, 8))
    mask = torch.ones_like(ids)
    with torch.no_grad(), passes.replayed(tiny, 2, 8) as yes:
        assert yes
        tiny.model(input_ids=ids, attention_mask=mask)
        assert len(padded) == 1
        tiny.model(input_ids=ids, attention_mask=mask, position_ids=torch.arange(8)[None])
        tiny.model(input_ids=ids.repeat(2, 1), attention_mask=mask.repeat(2, 1))
        tiny.model(input_ids=ids.repeat(1, 5), attention_mask=mask.repeat(1, 5))
        with tiny.as_base():
            tiny.model(input_ids=ids, attention_mask=mask)
        tiny.model.add_adapter("ref", tiny.model.peft_config["default"])
        tiny.model.set_adapter("ref")
        tiny.model(input_ids=ids, attention_mask=mask)
        tiny.clean()
        assert len(padded) == 1
    tiny.model(input_ids=ids, attention_mask=mask)
    assert len(padded) == 1 and "forward" not in passes.inner_of(tiny.model).__dict__
