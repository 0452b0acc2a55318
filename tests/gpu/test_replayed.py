"""Recorded training passes: they train as the model's own passes do, and are recorded once for all cycles of a regime."""

from __future__ import annotations

import math

import pytest
import torch
from gpu_rows import rows_of, settings
from selftrain import passes
from selftrain.sampling import Request, sample
from selftrain.training import train

ROWS, BATCH = 60, 8  # the last batch is short
NOISE = 0.02  # of a token's loss: bfloat16 keeps 8 bits, and a padded batch may take other kernels
PAIRS = 2  # times the rows and the batch for pairs, whose loss hangs on a difference of sums over a hundred tokens each
PAIR_NOISE = 0.06  # of the loss of 16 pairs; in 32 steps on an H100 these two differed by 0.040 at most, own passes and float32 by 0.063


def trajectory(resident, what, reference, start, plain):
    resident.fresh(1)
    resident.plain_training = True
    if start == "trained":
        train(resident, rows_of(resident, "chat", ROWS)[:16], settings())
    resident.plain_training = plain
    how = {"lr": 4e-5, "beta": 0.1, "batch_size": BATCH * PAIRS} if reference else {}
    rows = rows_of(resident, what, ROWS * (PAIRS if reference else 1))
    try:
        return train(resident, rows, settings(**how), reference=reference).history
    finally:
        resident.plain_training = False


def agree(resident, monkeypatch, what, reference=None, start="fresh"):
    own = trajectory(resident, what, reference, start, plain=True)
    weights = {name: p.clone() for name, p in resident.tensors().items()}
    resident.forget()
    replays, call = [], passes.Passes.__call__
    monkeypatch.setattr(passes.Passes, "__call__", lambda self, *batch: replays.append(torch.is_grad_enabled()) or call(self, *batch))
    mine = trajectory(resident, what, reference, start, plain=False)
    assert sum(replays) == len(own) == len(mine) == -(-ROWS // BATCH), "not every step was replayed"
    for a, b in zip(own, mine, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=NOISE, abs=PAIR_NOISE if reference else 0), (own, mine)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=0.1), (own, mine)
    if reference and (reference, start) != ("base", "trained"):
        assert mine[0]["loss"] == pytest.approx(math.log(2), abs=1e-3), "the reference is not the policy that it starts from"
    moved = torch.cat([(p - weights[name]).flatten() for name, p in resident.tensors().items() if "lora_B" in name]).norm()
    size = torch.cat([p.flatten() for name, p in weights.items() if "lora_B" in name]).norm()
    assert moved < 0.3 * size, f"adapters differ by {moved / size:.2f} of their size"


@pytest.mark.parametrize(
    ("what", "reference", "start"),
    [("chat", None, "fresh"), ("pairs", "base", "fresh"), ("pairs", "base", "trained"), ("pairs", "cycle_start", "trained")],
)
def test_recorded_training_follows_the_models_own(smollm, monkeypatch, what, reference, start):
    agree(smollm, monkeypatch, what, reference, start)


def test_sliding_window_attention_is_trained_too(gemma, monkeypatch):
    agree(gemma, monkeypatch, "documents")


def test_a_later_training_computes_as_the_first(smollm):
    """Under autocast, which accelerate would see to once a model."""
    seen = []
    hook = passes.inner_of(smollm.model).layers[0].register_forward_pre_hook(lambda *call: seen.append(torch.is_autocast_enabled("cuda")))
    smollm.plain_training = True
    try:
        for _ in range(2):
            smollm.fresh(1)
            train(smollm, rows_of(smollm, "chat", BATCH), settings())
    finally:
        smollm.plain_training = False
        hook.remove()
    assert seen == [True, True]


def test_later_cycles_record_nothing(smollm):
    recorded = []
    for seed in (1, 2, 3):
        smollm.fresh(seed)
        train(smollm, rows_of(smollm, "chat", ROWS), settings(seed=seed))
        recorded.append(smollm.passes[8])
    assert recorded[0] is recorded[1] is recorded[2]


def test_after_a_failed_recording_training_goes_on_plainly(smollm, monkeypatch):
    """The generator, the stream and the allocator are as before: a fresh adapter can be drawn, both ways of training work, and so does sampling."""
    real, failed = passes.hidden_states, []

    def fails(inner, weights, ids, seen):
        if torch.cuda.is_current_stream_capturing():
            failed.append(True)
            ids.sum().item()  # waits for the device, which no recording may
        return real(inner, weights, ids, seen)

    smollm.forget()
    monkeypatch.setattr(passes, "hidden_states", fails)
    smollm.fresh(1)
    own = train(smollm, rows_of(smollm, "chat", ROWS), settings()).history
    assert failed and smollm.plain_training and not smollm.passes
    monkeypatch.setattr(passes, "hidden_states", real)
    smollm.plain_training = False
    smollm.fresh(1)
    mine = train(smollm, rows_of(smollm, "chat", ROWS), settings()).history
    assert smollm.passes and mine[-1]["loss"] == pytest.approx(own[-1]["loss"], rel=NOISE)
    sample(smollm, [Request("Why?", 1)], kind="chat", max_new_tokens=8, temperature=0.8)
    assert smollm.decoders and not smollm.plain_sampling
