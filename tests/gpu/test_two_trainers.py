"""Unsloth and TRL, each in a process of its own, on the same token rows: their per-step losses agree within the stated tolerance."""

from __future__ import annotations

import functools

import pytest
from selftrain import paths
from selftrain.bench import trajectory

MODEL = "smollm2-135m-instruct"


@functools.cache
def losses(trainer, attempt=1):
    """By regime what a process of its own found; one process a trainer and attempt serves all tests."""
    if not (paths.MODELS / MODEL).exists():
        pytest.skip("needs the embedded model: make models")
    return trajectory.in_a_process(MODEL, trainer)


@pytest.mark.parametrize("regime", ["sft", "dpo"])
def test_their_losses_agree(unsloth, regime):
    own, other = losses("trl"), losses("unsloth")
    assert (own["trainer"], other["trainer"]) == ("trl", "unsloth")
    assert own[regime][-1] < own[regime][0]
    assert trajectory.agree(own[regime], other[regime]) is None, (own, other)


@pytest.mark.parametrize("regime", ["sft", "dpo"])
def test_one_trainer_agrees_with_itself(regime):
    """What rounding alone does between two processes; the tolerance must not be smaller."""
    one, other = losses("trl"), losses("trl", attempt=2)
    assert trajectory.agree(one[regime], other[regime]) is None, (one, other)
