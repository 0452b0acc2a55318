"""The self-test that every embedded model passes before it is used: its loss on plain English, and that an answer ends."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selftrain import jsonl
from selftrain.models.embedded import ModelError
from selftrain.models.folder import Loaded, fingerprint, open_model, quiet
from selftrain.paths import shown

LIMIT = 3.5  # nats a token: SmolLM2 has 3.30 here (first words without context cost most), and 6.3 when each word is cut in two
ANSWER_TOKENS = 64
AGAIN = "delete the model's folder and fetch it again"
BROKEN = f"tokenizer or weights are broken; {AGAIN}"
QUESTION = "What is the capital of France? Answer in one short sentence."
PARAGRAPH = (
    "The village lies at the end of a narrow road, between the river and a low line of hills. In the morning the baker opens her shop before "
    "anyone else is awake, and the smell of fresh bread drifts across the square. Children walk to school in small groups, talking about the "
    "football match that they played the day before. On market days farmers bring apples, cheese and eggs from the valley, and people stop to ask "
    "about each other's families. When it rains, the old men move their chess boards under the roof of the town hall and go on playing. In the "
    "evening the lamps come on one by one, the shops close, and the street becomes quiet again."
)


@dataclass(frozen=True)
class VerifyReport:
    """What the self-test measured. `loss` in nats a token; `answer` and `stopped` for instruct models, cosines for embedders, else None."""

    name: str
    kind: str
    fingerprint: str
    passed: bool
    seconds: float
    loss: float | None = None
    limit: float = LIMIT
    n_tokens: int | None = None
    answer: str | None = None
    stopped: bool | None = None
    cosine_related: float | None = None
    cosine_unrelated: float | None = None


def mean_loss(model: Any, tokenizer: Any, text: str = PARAGRAPH) -> tuple[float, int]:
    """(mean next-token loss in nats a token, number of tokens) of a text, encoded as the tokenizer does by default."""
    import torch

    ids = torch.tensor([tokenizer(text).input_ids], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item(), ids.shape[1]


def verify(loaded: Loaded) -> VerifyReport:
    """Measure the loss on a fixed paragraph and, for an instruct model, whether a greedy answer ends within 64 tokens.

    ModelError when the loss exceeds 3.5 nats a token (or is not a number), text does not survive encoding, the chat
    template doubles the BOS, or the answer does not end.
    """
    start = time.perf_counter()
    loss, n_tokens = mean_loss(loaded.model, loaded.tokenizer)
    if not (math.isfinite(loss) and loss <= LIMIT):
        raise ModelError(f"{loaded.name}: {loss:.2f} nats a token on plain English (limit {LIMIT}): {BROKEN}")
    kept = loaded.tokenizer.decode(loaded.tokenizer(PARAGRAPH).input_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if kept.strip() != PARAGRAPH:
        raise ModelError(f"{loaded.name}: text does not survive its tokenizer: {BROKEN}")
    answer, stopped = _answer(loaded) if loaded.kind == "instruct" else (None, None)
    if stopped is False:
        raise ModelError(f"{loaded.name}: no end of turn within {ANSWER_TOKENS} greedy tokens: wrong end token or chat template; {AGAIN}")
    seconds = round(time.perf_counter() - start, 2)
    return VerifyReport(
        loaded.name, loaded.kind, loaded.fingerprint, True, seconds, round(loss, 4), n_tokens=n_tokens, answer=answer, stopped=stopped
    )


def _answer(loaded: Loaded) -> tuple[str, bool]:
    """(greedy answer to QUESTION, whether it ended by itself)."""
    import torch

    model, tokenizer = loaded.model, loaded.tokenizer
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    if prompt[0] == prompt[1]:
        raise ModelError(
            f"{loaded.name}: its chat template writes {tokenizer.convert_ids_to_tokens(prompt[0])} twice; fix bos_token in tokenizer_config.json"
        )
    ids = torch.tensor([prompt], device=model.device)
    ends = end_ids(loaded)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )
    new = out[0, ids.shape[1] :].tolist()
    return tokenizer.decode(new, skip_special_tokens=True).strip(), new[-1] in ends


def end_ids(loaded: Loaded) -> list[int]:
    """Token ids that end an answer: the tokenizer's end token and those of the generation config."""
    more = loaded.model.generation_config.eos_token_id
    return sorted({loaded.tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])} - {None})


def verify_embedder(name: str, folder: Path) -> VerifyReport:
    """Cosines of two sentences that mean the same and of two that do not; ModelError unless they lie at least 0.3 apart."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    start = time.perf_counter()
    sentences = ["A man is playing a guitar.", "Someone plays music on a guitar.", "The stock market fell sharply on Monday."]
    with quiet():
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    related, unrelated = (vectors[0] @ vectors[1]).item(), (vectors[0] @ vectors[2]).item()
    if not related - unrelated >= 0.3:
        raise ModelError(f"{name}: related sentences {related:.2f}, unrelated {unrelated:.2f}: {BROKEN}")
    return VerifyReport(
        name,
        "embedder",
        fingerprint(folder),
        True,
        round(time.perf_counter() - start, 2),
        cosine_related=round(related, 3),
        cosine_unrelated=round(unrelated, 3),
    )


def verify_folder(name: str, kind: str, folder: Path) -> VerifyReport:
    """Run the self-test on a built folder, on the CPU in float32, and write its verified.json."""
    if kind == "embedder":
        report = verify_embedder(name, folder)
    else:
        report = verify(open_model(str(folder), name, kind, "cpu", "float32", None, True))
    write_verified(folder, report)
    return report


def write_verified(folder: Path, report: VerifyReport) -> None:
    """Store the report in the folder as verified.json."""
    jsonl.write_text(
        folder / "verified.json", json.dumps({**asdict(report), "config": jsonl.file_digest(folder / "config.json")}, indent=1) + "\n"
    )


def require_verified(name: str, folder: Path) -> Path:
    """The folder of an embedded model itself; ModelError if it has no valid verified.json."""
    if read_verified(folder) is None:
        raise ModelError(
            f"{shown(folder)}: no valid verified.json (never tested, or changed since); rebuild it with `python -m selftrain.models fetch {name}`"
        )
    return folder


def read_verified(folder: Path) -> VerifyReport | None:
    """The stored report, or None if there is none, it is not a pass, or weights, tokenizer or config have changed since."""
    try:
        stored = json.loads((folder / "verified.json").read_text())
        config = stored.pop("config")
        report = VerifyReport(**stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    same = report.fingerprint == fingerprint(folder) and config == jsonl.file_digest(folder / "config.json")
    sound = report.kind == "embedder" or (report.loss is not None and report.loss <= LIMIT)
    return report if report.passed is True and same and sound else None
