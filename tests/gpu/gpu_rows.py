"""What the GPU tests train on and how: hand-written rows of real lengths, preset small."""

from __future__ import annotations

from selftrain import formats
from selftrain.bench.sizes import items
from selftrain.formats import Item
from selftrain.training import Settings

LONGEST = 320  # tokens a row


def settings(**changes):
    fixed = dict(lr=3e-4, schedule="constant", epochs=1, batch_size=8, warmup=0.0, weight_decay=0.0, max_grad_norm=1.0, seed=1)
    return Settings(**{**fixed, **changes})


def rows_of(resident, what, n):
    """n token rows of chat, documents or pairs; a pair rejects the next row's answer."""
    tokenizer, made = resident.tokenizer, items(n)
    if what == "pairs":
        others = made[1:] + made[:1]
        return [
            formats.preference_row(tokenizer, a, Item(a.id, "chat", a.prompt, b.answer), LONGEST) for a, b in zip(made, others, strict=True)
        ]
    if what == "documents":
        made = [Item(i.id, "documents", "", i.answer) for i in made]
    return [formats.training_row(tokenizer, i, LONGEST) for i in made]
