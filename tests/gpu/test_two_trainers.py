"""Unsloth and TRL, each in a process of its own, on the same token rows: their per-step losses agree within the stated tolerance."""

from __future__ import annotations

import pytest
from selftrain import paths
from selftrain.bench import trajectory

MODEL = "smollm2-135m-instruct"


@pytest.mark.parametrize("regime", ["sft", "dpo"])
def test_their_losses_agree(unsloth, regime):
    if not (paths.MODELS / MODEL).exists():
        pytest.skip("needs the embedded model: make models")
    by = {name: trajectory.in_a_process(MODEL, name, regime) for name in ("trl", "unsloth")}
    assert {name: found["trainer"] for name, found in by.items()} == {"trl": "trl", "unsloth": "unsloth"}
    assert by["trl"]["losses"][-1] < by["trl"]["losses"][0]
    assert trajectory.agree(by["trl"]["losses"], by["unsloth"]["losses"]) is None, by


def test_one_trainer_agrees_with_itself():
    """What rounding alone does between two processes; the tolerance must not be smaller."""
    if not (paths.MODELS / MODEL).exists():
        pytest.skip("needs the embedded model: make models")
    one, other = (trajectory.in_a_process(MODEL, "trl", "sft")["losses"] for _ in range(2))
    assert trajectory.agree(one, other) is None, (one, other)
