"""A model folder or hub model in memory, and the short hash that names what was loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selftrain import jsonl
from selftrain.models.embedded import ModelError
from selftrain.models.wheels import sha256_of

# What makes a model answer as it does. Settings that differ between library versions (config.json) are left out.
HASHED = ("*.safetensors", "*.bin", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja")


@dataclass
class Loaded:
    """A model ready to sample or train: `kind` instruct or base, `dtype` a torch.dtype, `fingerprint` 16 hex digits or a hub commit."""

    model: Any
    tokenizer: Any
    name: str
    kind: str
    device: str
    dtype: Any
    fingerprint: str


def fingerprint(folder: Path) -> str:
    """16 hex digits over the weights and tokenizer files of a folder; cached in its fingerprint.json until a size or time changes."""
    files = sorted({path for pattern in HASHED for path in folder.glob(pattern)})
    stamps = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    cache = folder / "fingerprint.json"
    try:
        known = json.loads(cache.read_text())
        if known["stamps"] == stamps:
            return known["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = jsonl.digest({path.name: sha256_of(path) for path in files})
    try:
        jsonl.write_text(cache, json.dumps({"fingerprint": found, "stamps": stamps}, indent=1) + "\n")
    except OSError:
        pass  # a read-only folder is hashed anew each time
    return found


def kind_of(name: str, has_chat_template: bool) -> str:
    """instruct if the tokenizer has a chat template, else base.

    Names that end in "-base" are base whatever their tokenizer says: the Qwen base models ship a chat template.
    """
    return "instruct" if has_chat_template and not name.rstrip("/").lower().endswith("-base") else "base"


def open_model(
    source: str,
    name: str,
    kind: str | None,
    device: str | None,
    dtype: Any,
    revision: str | None,
    offline: bool,
    loader: Callable[..., Any] | None = None,
) -> Loaded:
    """Load weights and tokenizer of a folder or hub name. float32 on a CPU and bfloat16 on CUDA unless `dtype` says otherwise.

    `loader(source, dtype, revision=, local_files_only=)` loads the weights onto the device instead of transformers. ModelError, in one line, for anything transformers or torch cannot load.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    dtype = dtype or (torch.bfloat16 if str(device).startswith("cuda") else torch.float32)
    options = {"revision": revision, "local_files_only": offline}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            if loader:
                model = loader(source, dtype, **options)
            else:
                model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="sdpa", **options).to(device)
        model.eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ModelError(f"{name}: cannot be loaded ({first_line(error)}); check the folder or fetch the model again") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    mark = revision or fingerprint(Path(source))
    return Loaded(model, tokenizer, name, kind or kind_of(name, bool(tokenizer.chat_template)), str(device), dtype, mark)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' weight-loading bars off: a small model loads in a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def first_line(error: BaseException, length: int = 160) -> str:
    """The first non-empty line of an error's text, cut to `length` characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:length]


def offline_asked() -> bool:
    """True when the environment forbids the hub (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)."""
    return any(os.environ.get(key, "").upper() in ("1", "ON", "YES", "TRUE") for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
