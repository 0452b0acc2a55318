"""TRL's trainers, told to use our token rows as they are, with a proof on the first batch that they do."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from selftrain.formats import IGNORED


def _prove_rows(batch: dict[str, torch.Tensor], rows: Sequence[dict], end: int) -> None:
    """Check the first batch that reaches the model: loss where it belongs, an end token only where an answer ended."""
    expected = {tuple(row["input_ids"]): row for row in rows}
    for ids, mask, labels in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["labels"].tolist(), strict=True):
        kept = tuple(i for i, m in zip(ids, mask, strict=True) if m)
        row = expected[kept]
        assert [x for x, m in zip(labels, mask, strict=True) if m] == row["labels"], "the loss mask is not the row's own"
        assert all(x == IGNORED for x, m in zip(labels, mask, strict=True) if not m), "padding carries loss"
        assert (kept[-1] == end) == row["ends"], "an end token stands where no answer ended, or is missing where one did"


def _prove_pairs(batch: dict[str, torch.Tensor], rows: Sequence[dict]) -> None:
    """The same for preference pairs: each completion is exactly one side of one of our rows."""
    sides = {(tuple(r["prompt_ids"]), tuple(r[side])) for r in rows for side in ("chosen_ids", "rejected_ids")}
    for ids, mask, completion in zip(
        batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["completion_mask"].tolist(), strict=True
    ):
        prompt = tuple(i for i, m, c in zip(ids, mask, completion, strict=True) if m and not c)
        answer = tuple(i for i, c in zip(ids, completion, strict=True) if c)
        assert (prompt, answer) in sides, "the trainer changed a row's tokens"


def on_token_rows(preference: bool, rows: Sequence[dict], tokenizer: Any, autocast: bool = False):
    """TRL's trainer class for a data format, told to use our token rows as they are; `autocast` takes the loss in bfloat16 by autocast.

    `bf16=True` would have accelerate wrap the model instead, which it does once to a model, and which copies all logits to float32 once more.
    """
    if preference:
        from trl import DPOTrainer as Base
    else:
        from trl import SFTTrainer as Base

    class OnTokenRows(Base):
        _proven = False

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def floating_point_ops(self, inputs):
            return 0  # nobody reads it, and counting walks through every module

        def compute_loss(self, model, inputs, *args, **kwargs):
            if not self._proven:
                _prove_pairs(inputs, rows) if preference else _prove_rows(inputs, rows, tokenizer.eos_token_id)
                self._proven = True
            how = torch.autocast(self.args.device.type, torch.bfloat16, cache_enabled=False) if autocast else contextlib.nullcontext()
            with how:
                return super().compute_loss(model, inputs, *args, **kwargs)

    return OnTokenRows
