"""The sampler: exact in distribution, keyed by item, independent of batching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from selftrain.sampling import KeyedSampling, Request, hashed_exponentials, nll, sample


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


def test_nll_is_the_sum_over_labelled_tokens(tiny):
    tiny.fresh(0)
    rows = [{"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, 5]}, {"input_ids": [9, 8, 7], "labels": [-100, 8, 7]}]
    found = nll(tiny, rows)
    for row, (total, n) in zip(rows, found, strict=True):
        with torch.no_grad():
            logps = torch.log_softmax(tiny.model(input_ids=torch.tensor([row["input_ids"]])).logits[0].float(), -1)
        expected = -sum(float(logps[i - 1, row["labels"][i]]) for i in range(len(row["labels"])) if row["labels"][i] != -100)
        assert total == pytest.approx(expected, rel=1e-4) and n == sum(label != -100 for label in row["labels"])
