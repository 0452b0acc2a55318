"""From text to token rows: chat answers, documents and preference pairs are data formats of one trainer and one sampler."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

IGNORED = -100  # label of a token that carries no loss


@dataclass(frozen=True)
class Item:
    """One prompt with one answer: a seed row, a sample of a model, or one side of a pair.

    kind is `chat` (prompt = user turn) or `documents` (prompt = opening, possibly empty; answer = the rest of the document).
    finished: the answer ended by itself; one that was cut at the length limit is trained without an end token.
    """

    id: str
    kind: str
    prompt: str
    answer: str
    finished: bool = True
    source: str = "seed"

    def row(self) -> dict[str, Any]:
        """The item as a JSON row."""
        return dict(vars(self))


def item_of_seed(row: dict, source: str = "seed") -> Item:
    """A seed row, `messages` or `text`, as an item."""
    if "messages" in row:
        user, assistant = (message["content"] for message in row["messages"])
        return Item(row["id"], "chat", user, assistant, True, source)
    return Item(row["id"], "documents", "", row["text"], True, source)


def prompt_ids(tokenizer: Any, kind: str, prompt: str) -> list[int]:
    """Token ids that the model sees before it writes: the chat template with its answer header, or the bare opening."""
    if kind == "chat":
        return list(_chat_prompt(tokenizer, prompt))
    return tokenizer(prompt)["input_ids"]  # a base model's tokenizer adds its own start token, where it has one


@functools.lru_cache(maxsize=8192)
def _chat_prompt(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """Kept, because chains ask the same prompts cycle after cycle, and a template takes as long to fill as a few steps of a whole batch."""
    turns = [{"role": "user", "content": prompt}]
    return tuple(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False))


def answer_ids(tokenizer: Any, item: Item) -> list[int]:
    """Token ids of the answer, with the end token only if the answer ended by itself."""
    ids = tokenizer(item.answer, add_special_tokens=False)["input_ids"]
    return ids + [tokenizer.eos_token_id] if item.finished else ids


def training_row(tokenizer: Any, item: Item, max_length: int) -> dict[str, Any]:
    """{input_ids, labels, ends} of at most max_length tokens: loss on the answer only for chat, on all tokens for documents.

    `ends` says whether the last token is the end token: not where the answer was cut, by the sampler or here.
    """
    if item.kind == "chat":
        head = prompt_ids(tokenizer, "chat", item.prompt)
        labels = [IGNORED] * len(head)
        ids = head + answer_ids(tokenizer, item)
    else:
        head = prompt_ids(tokenizer, "documents", "")
        labels = [IGNORED] * len(head)
        ids = head + answer_ids(tokenizer, Item(item.id, item.kind, "", item.prompt + item.answer, item.finished, item.source))
    labels = labels + ids[len(labels) :]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length], "ends": item.finished and len(ids) <= max_length}


def preference_row(tokenizer: Any, chosen: Item, rejected: Item, max_length: int) -> dict[str, list[int]]:
    """{prompt_ids, chosen_ids, rejected_ids}, each side cut so that prompt and answer fit max_length tokens."""
    head = prompt_ids(tokenizer, chosen.kind, chosen.prompt)
    room = max(1, max_length - len(head))
    return {"prompt_ids": head, "chosen_ids": answer_ids(tokenizer, chosen)[:room], "rejected_ids": answer_ids(tokenizer, rejected)[:room]}
