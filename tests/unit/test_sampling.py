"""The sampler: exact in distribution, keyed by item, independent of batching."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from scipy import stats
from selftrain import decoding
from selftrain.errors import InputError
from selftrain.joined import Layers
from selftrain.sampling import KeyedSampling, Request, _generated, decoder, hashed_exponentials, left_padded, nll, sample


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    n = 40_000
    sampler = KeyedSampling(list(range(n)), 0, temperature=0.8, top_p=1.0, top_k=0, device=torch.device("cpu"))
    picked = sampler(torch.zeros(n, 1, dtype=torch.long), logits.repeat(n, 1)).argmax(-1)
    expected = torch.softmax(logits.double() / 0.8, -1).numpy() * n
    assert stats.chisquare(np.bincount(picked.numpy(), minlength=5), expected).pvalue > 1e-3


def test_noise_is_exponential_and_uncorrelated_between_rows_steps_and_tokens():
    a = hashed_exponentials(torch.arange(200), 3, 500)
    assert stats.kstest(a.flatten().numpy(), "expon").pvalue > 1e-3
    b = hashed_exponentials(torch.arange(200), 4, 500)
    assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.01
    assert abs(np.corrcoef(a[:-1].flatten(), a[1:].flatten())[0, 1]) < 0.01
    assert abs(np.corrcoef(a[:, :-1].flatten(), a[:, 1:].flatten())[0, 1]) < 0.01
    assert torch.isfinite(a.log()).all() and torch.equal(a, hashed_exponentials(torch.arange(200), 3, 500))


@pytest.mark.parametrize("kind", ["chat", "documents"])
def test_an_answer_does_not_depend_on_its_batch(tiny, kind):
    tiny.fresh(0)
    requests = [Request("Tell me " + "more " * i + "please", key=1000 + i) for i in range(9)]
    options = dict(kind=kind, max_new_tokens=12, temperature=0.8)
    whole = sample(tiny, requests, **options)
    alone = [sample(tiny, [r], **options)[0] for r in requests]
    pairs = sample(tiny, requests[::-1], batch_size=2, **options)[::-1]
    assert whole == alone == pairs
    assert len({s.text for s in whole}) > 1
    again = sample(tiny, [Request(requests[0].prompt, key=5)], **options)
    assert again[0].text != whole[0].text


def test_an_end_token_ends_an_answer_and_the_limit_cuts_one(tiny):
    tiny.fresh(0)
    bias = torch.zeros(tiny.model.get_base_model().lm_head.out_features)
    bias[tiny.tokenizer.eos_token_id] = 50.0
    head = tiny.model.get_base_model().lm_head
    hook = head.register_forward_hook(lambda module, args, out: out + bias)
    try:
        (ended,) = sample(tiny, [Request("Hi", 1)], kind="chat", max_new_tokens=5, temperature=1.0)
    finally:
        hook.remove()
    (cut,) = sample(tiny, [Request("Hi", 1)], kind="chat", max_new_tokens=5, temperature=1.0)
    assert (ended.text, ended.n_tokens, ended.finished) == ("", 0, True)
    assert cut.n_tokens == 5 and not cut.finished


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9, "top_k": 20}])
def test_the_decoders_steps_draw_what_generate_draws(tiny, base, options):
    """The steps that CUDA records, run unrecorded, give generate's tokens: padding, positions, grouped heads and the draws are the same."""
    tiny.fresh(0)
    with torch.no_grad():
        for name, p in tiny.tensors().items():
            if "lora_B" in name:
                p.add_(0.3)
    rows = [[7, 8, 9], [5] * 11, list(range(3, 9))]
    ids, mask = left_padded(tiny.tokenizer, rows, 16, tiny.device)
    keys, options = [11, 12, 13], {"top_p": 1.0, "top_k": 0, **options}
    with tiny.as_base() if base else contextlib.nullcontext():
        expected = _generated(tiny, ids, mask, keys, 20, 0.9, options["top_p"], options["top_k"])
        decode = decoder(tiny, 3, 16, 20, **options)
        made, logps = decode(ids, mask, keys, 0.9, tiny.is_base, whole=True)
        again, _ = decode(ids, mask, keys, 0.9, tiny.is_base)  # the same buffers once more
    end = tiny.tokenizer.eos_token_id
    for row, other, wanted in zip(made.tolist(), again.tolist(), expected, strict=True):
        n = wanted.index(end) + 1 if end in wanted else len(wanted)
        assert row[:n] == wanted[:n] == other[:n] and len(row) == 20
    assert (logps < 0).all() and decoder(tiny, 3, 16, 20, **options) is decode
    assert {c._attn_implementation for c in (tiny.model.config, tiny.model.get_base_model().config)} == {"sdpa"}


def test_a_call_that_held_a_nan_is_forgotten_by_the_next(tiny):
    tiny.fresh(0)
    ids, mask = left_padded(tiny.tokenizer, [[7, 8, 9], [5] * 11], 16, tiny.device)
    decode = decoder(tiny, 2, 16, 8)
    expected, _ = decode(ids, mask, [1, 2], 0.9)
    with torch.no_grad():
        for name, p in tiny.tensors().items():
            p.fill_(float("nan") if "lora_B" in name else 1.0)
    assert decode(ids, mask, [1, 2], 0.9)[1].isnan().all()
    tiny.fresh(0)
    again, logps = decode(ids, mask, [1, 2], 0.9)
    assert torch.equal(again, expected) and logps.isfinite().all()


@pytest.mark.parametrize(
    ("errors", "made", "left", "said"),
    [
        ([None], True, {"older", "recorded"}, []),
        ([torch.OutOfMemoryError("full"), None], True, {"recorded"}, []),  # with all other shapes forgotten it fits
        ([torch.OutOfMemoryError("full")] * 2, False, set(), ["full"]),
        ([InputError("a window")], False, {"older"}, ["a window"]),
        ([RuntimeError("capture\nat length")], False, set(), ["capture"]),
    ],
)
def test_what_cannot_be_recorded_is_left_to_the_plain_path(tiny, monkeypatch, caplog, errors, made, left, said):
    from selftrain import sampling

    waiting = [*errors]

    def decode(resident, *shape):
        if error := waiting.pop(0):
            raise error
        resident.decoders["recorded"] = True
        return lambda ids, mask, keys, *how: (torch.tensor(keys)[:, None], None)

    monkeypatch.setattr(sampling, "decoder", decode)
    monkeypatch.setattr(tiny, "decoders", {"older": True})
    monkeypatch.setattr(tiny, "said", set())
    monkeypatch.setattr(tiny, "plain_sampling", False)
    arguments = tiny, [[7, 8]], [5], (2, 16, 4), 0.9, 1.0, 0
    assert sampling._recorded(*arguments) == ([[5], [5]] if made else None) and not waiting
    assert set(tiny.decoders) == left and tiny.plain_sampling is (said == ["capture"])
    waiting[:] = errors
    sampling._recorded(*arguments)
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == said  # once a reason


def test_what_cannot_be_recorded_says_why(tiny):
    class Config:
        layer_types, sliding_window = ["sliding_attention", "full_attention"], 24

    assert decoding.unfit(tiny.model, 10_000) is None
    model = torch.nn.Module()
    model.config = type("C", (), {"get_text_config": lambda self: Config})()
    assert decoding.unfit(model, 24) is None and "window of 24" in decoding.unfit(model, 25)
    Config.layer_types = None  # Mistral's way of saying that every layer slides
    assert decoding.unfit(model, 24) is None and "window of 24" in decoding.unfit(model, 25)
    Config.layer_types = ["linear_attention"]
    assert "linear_attention" in decoding.unfit(model, 8)
    Config._attn_implementation = "eager"
    assert "eager" in decoding.unfit(model, 8)
    with pytest.raises(InputError, match="single token"):
        decoding.Decoder(Layers(tiny.model), 1, 1, 4, None, [0])
    with pytest.raises(InputError, match="s_aux"):
        decoding.grouped_attention(None, torch.zeros(1, 2, 1, 4), None, None, None, s_aux=torch.zeros(2))


def test_few_decoders_are_kept_and_the_one_used_last_is_among_them(tiny):
    tiny.decoders.clear()
    first = decoder(tiny, 1, 8, 4)
    for n in range(2, 2 + decoding.KEPT):
        assert decoder(tiny, 1, 8, 4) is first
        decoder(tiny, n, 8, 4)
    assert len(tiny.decoders) == decoding.KEPT and decoder(tiny, 1, 8, 4) is first


def test_nll_is_the_sum_over_labelled_tokens(tiny):
    tiny.fresh(0)
    rows = [{"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, 5]}, {"input_ids": [9, 8, 7], "labels": [-100, 8, 7]}]
    found = nll(tiny, rows)
    for row, (total, n) in zip(rows, found, strict=True):
        with torch.no_grad():
            logps = torch.log_softmax(tiny.model(input_ids=torch.tensor([row["input_ids"]])).logits[0].float(), -1)
        expected = -sum(float(logps[i - 1, row["labels"][i]]) for i in range(len(row["labels"])) if row["labels"][i] != -100)
        assert total == pytest.approx(expected, rel=1e-4) and n == sum(label != -100 for label in row["labels"])
