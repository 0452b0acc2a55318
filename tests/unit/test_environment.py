"""The plain ways on CUDA, asked for by SELFTRAIN_PLAIN: understood, refused, taken and written down."""

from __future__ import annotations

import pytest
import torch
from selftrain import environment, passes, store, training
from selftrain.bench import __main__ as bench
from selftrain.chain import Chain
from selftrain.errors import InputError
from selftrain.resident import Resident


@pytest.fixture
def asked(monkeypatch):
    def ask(words):
        monkeypatch.setenv(environment.PLAIN, words)
        environment.environment.cache_clear()

    yield ask
    environment.environment.cache_clear()


def test_ways_are_read_in_order_and_written_down(asked):
    asked("")
    assert environment.plain() == () and "plain" not in environment.environment()
    asked(" sampling,training, ")
    assert environment.plain() == ("training", "sampling") and environment.environment()["plain"] == "training,sampling"


@pytest.mark.parametrize(
    "words, said", [("traning", "no way 'traning'; ways: training, sampling, float32"), ("float32", "needs training, too")]
)
def test_what_cannot_be_asked_is_said(asked, words, said):
    asked(words)
    with pytest.raises(InputError, match=said):
        environment.plain()


def test_a_resident_model_takes_the_ways(asked, tiny, monkeypatch):
    loaded = {}

    def load(name, device=None, dtype=None, loader=None):
        loaded["dtype"] = dtype
        raise InputError("far enough")

    monkeypatch.setattr("selftrain.models.load", load)
    given = dict(name="tiny", fingerprint="", kind="instruct", rank=tiny.rank, alpha=tiny.alpha)
    for words, in_training, in_sampling, dtype in (
        ("", False, False, None),
        ("training,float32", True, False, "float32"),
        ("sampling", False, True, None),
    ):
        asked(words)
        made = Resident(tiny.model, tiny.tokenizer, **given)
        assert (made.plain_training, made.plain_sampling) == (in_training, in_sampling)
        with pytest.raises(InputError, match="far enough"):
            Resident.open("tiny", rank=4, alpha=8, device="cpu")
        assert loaded["dtype"] == dtype
    asked("training")
    monkeypatch.setattr("selftrain.trainers.choose", lambda trainer, name: "unsloth")
    with pytest.raises(InputError, match="say trainer: trl"):
        Resident.open("tiny", rank=4, alpha=8)
    monkeypatch.setattr(Resident, "device", property(lambda self: torch.device("cuda")))
    assert passes._why_not(made, 8) != ""
    made.plain_training = True
    assert passes._why_not(made, 8) == ""


def test_what_was_made_the_fast_way_is_not_taken_for_the_plain_one(asked, small, tiny, results):
    def stages(panel):
        ran = []
        chain = Chain(**small | dict(panel=panel), resident=tiny, on_stage=lambda cycle, stage: ran.append((cycle, stage)))
        for cycle in (-1, 0):
            chain.run_cycle(cycle)
        return chain, ran

    asked("")
    first, ran = stages("first")
    assert (0, "train") in ran and (0, "train") not in stages("second")[1], "cycle 0 is shared by chains with the same causes"
    asked("training")
    plain, ran = stages("third")
    assert (0, "train") in ran and (-1, "evaluate") in ran
    markers = [store.read_marker(chain.cycle_folder(0))["train"]["inputs"] for chain in (first, plain)]
    assert markers[1] == markers[0] | {"plain": ["training"]}
    assert plain.manifest()["environments"][-1]["plain"] == "training"


def test_arithmetic_goes_by_the_weights(tiny, monkeypatch):
    assert not training._by_autocast(tiny)
    monkeypatch.setattr(Resident, "device", property(lambda self: torch.device("cuda")))
    assert not training._by_autocast(tiny), "weights in float32"
    weight = next(tiny.model.get_base_model().parameters())
    kept = weight.data
    weight.data = kept.to(torch.bfloat16)
    try:
        assert training._by_autocast(tiny)
    finally:
        weight.data = kept


def test_the_bench_refuses_a_plain_way(asked):
    asked("training")
    with pytest.raises(InputError, match="unset it"):
        bench.run("cpu", True, None, False, None)
