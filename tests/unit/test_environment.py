"""The plain ways on CUDA, asked for by SELFTRAIN_PLAIN: understood, refused, taken and written down."""

from __future__ import annotations

import pytest
import torch
from selftrain import environment, passes
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
    for words, training, sampling, dtype in (
        ("", False, False, None),
        ("training,float32", True, False, "float32"),
        ("sampling", False, True, None),
    ):
        asked(words)
        made = Resident(tiny.model, tiny.tokenizer, **given)
        assert (made.plain_training, made.plain_sampling) == (training, sampling)
        with pytest.raises(InputError, match="far enough"):
            Resident.open("tiny", rank=4, alpha=8, device="cpu")
        assert loaded["dtype"] == dtype
    asked("training,float32")
    monkeypatch.setattr("selftrain.trainers.choose", lambda trainer, name: "unsloth")
    with pytest.raises(InputError, match="say trainer: trl"):
        Resident.open("tiny", rank=4, alpha=8)
    monkeypatch.setattr(Resident, "device", property(lambda self: torch.device("cuda")))
    assert passes._why_not(made, 8) != ""
    made.plain_training = True
    assert passes._why_not(made, 8) == ""
