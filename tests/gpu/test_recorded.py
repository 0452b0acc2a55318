"""Recorded sampling: the plain path's log-probs, no recording again over cycles of any regime, weights read anew at every replay."""

from __future__ import annotations

import pytest
import torch
from gpu_rows import rows_of, settings
from selftrain.bench import correctness
from selftrain.bench.sizes import prompts
from selftrain.sampling import Request, sample
from selftrain.training import train

ITEMS = 16


def recordings(resident) -> dict:
    """What has been recorded and compiled so far: the graphs themselves, which compare as objects."""
    recorded = {shape: dict(d.graphs) for shape, d in resident.decoders.items()}
    return {"recorded": recorded, "passes": dict(resident.passes), "compiled": torch._dynamo.utils.counters["stats"]["unique_graphs"]}


def answers(resident, kind="chat", n=32, tokens=24, **options):
    requests = [Request(text, i) for i, text in enumerate(prompts(n))]
    return sample(resident, requests, kind=kind, max_new_tokens=tokens, temperature=0.8, **{"batch_size": n, **options})


def trained(resident, rows):
    resident.fresh(1)
    train(resident, rows, settings(epochs=2))


def test_recorded_and_plain_logprobs_agree(smollm):
    trained(smollm, rows_of(smollm, "chat", ITEMS))
    found = correctness.logprobs(smollm, prompts(16), 64)
    assert not smollm.plain_sampling and found["dtype"] == "torch.bfloat16"
    assert found["within_noise"] and found["as_exact"], found


def test_sliding_window_attention_is_recorded_too(gemma):
    trained(gemma, rows_of(gemma, "documents", ITEMS))
    made = answers(gemma, kind="documents", n=16)
    assert not gemma.plain_sampling and len(made) == 16 and any(s.text for s in made)
    found = correctness.logprobs(gemma, prompts(8), 32)
    assert found["within_noise"] and found["as_exact"], found


def test_no_cycle_of_any_regime_records_again(smollm):
    sft, pairs = rows_of(smollm, "chat", ITEMS), rows_of(smollm, "pairs", ITEMS)

    def cycle(regime, init, seed):
        if init == "reinit":
            smollm.fresh(seed)
        if regime == "sft":
            train(smollm, sft, settings(seed=seed))
        else:
            train(smollm, pairs, settings(seed=seed, lr=2e-5, beta=0.1), reference="base" if init == "reinit" else "cycle_start")
        return answers(smollm)

    smollm.fresh(0)
    for regime in ("sft", "dpo"):
        cycle(regime, "reinit", 0)
    after_first = recordings(smollm)
    assert any(after_first["recorded"].values()), "nothing was recorded: the recorded path was not taken"
    for regime in ("sft", "dpo"):
        for init in ("reinit", "continual"):
            for seed in (1, 2):
                cycle(regime, init, seed)
                assert recordings(smollm) == after_first, f"{regime} {init}, cycle {seed}: recorded again"
    assert not smollm.plain_sampling


def test_a_replay_reads_the_weights_as_they_are_now(smollm):
    smollm.fresh(0)
    before = answers(smollm)
    trained(smollm, rows_of(smollm, "chat", ITEMS))
    changed, kept = answers(smollm), {name: t.clone() for name, t in smollm.tensors().items()}
    assert sum(a.text == b.text for a, b in zip(before, changed, strict=True)) < 16
    with smollm.as_base():
        base = answers(smollm)
    assert sum(a.text == b.text for a, b in zip(before, base, strict=True)) >= 24  # a fresh adapter is the base
    before = []
    for name, p in smollm.tensors().items():  # the same numbers at another address, and none at the old one
        before.append(p.data)
        p.data = kept[name]
        before[-1].zero_()
    assert [s.text for s in answers(smollm)] == [s.text for s in changed]


@pytest.mark.parametrize("size", [8, 32])
def test_an_answer_hardly_depends_on_its_batch(smollm, size):
    """Draws are keyed by answer; only rounding differs between batch sizes, and at bfloat16 it may tip a token now and then."""
    smollm.fresh(0)
    whole, parts = answers(smollm), answers(smollm, batch_size=size)
    same = sum(a.text == b.text for a, b in zip(whole, parts, strict=True))
    assert same >= (32 if size == 32 else 16), f"{same} of 32 answers are the same"
