"""Load any model by name, and find the sentence embedder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from selftrain.models import selftest
from selftrain.models.embedded import ModelError
from selftrain.models.folder import Loaded, open_model
from selftrain.models.resolving import resolve


def load(name_or_path: str | Path, device: str | None = None, dtype: Any = None, loader: Callable[..., Any] | None = None) -> Loaded:
    """Load a causal language model and its tokenizer, in eval mode, with sdpa attention and a padding token.

    `device` defaults to cuda where there is one, `dtype` (a torch.dtype or its name) to bfloat16 there and float32 on a CPU.
    `loader` loads the weights in transformers' place (folder.open_model says how it is called).
    kind is instruct if the tokenizer has a chat template; the embedded table and names ending in "-base" overrule that.
    Prompts always go through tokenizer.apply_chat_template. SmolLM2's template, kept as shipped, opens with a default system
    turn ("You are a helpful AI assistant named SmolLM, trained by Hugging Face") unless the first message is a system one.
    ModelError when the model cannot be had or loaded, is an embedder, or is embedded and has no valid verified.json.
    """
    found = resolve(name_or_path)
    if found.kind == "embedder":
        raise ModelError(f"{found.display_name}: a sentence embedder, not a language model; use selftrain.models.embedder_path()")
    kind = None
    if found.is_embedded:
        selftest.require_verified(found.display_name, Path(found.path_or_name))
        kind = found.kind
    return open_model(found.path_or_name, found.display_name, kind, device, dtype, found.revision, found.offline or found.is_local, loader)


def embedder_path() -> Path:
    """Folder of all-MiniLM-L6-v2 for sentence-transformers, built if it is not there yet; ModelError if it has no valid verified.json."""
    found = resolve("all-minilm-l6-v2")
    return selftest.require_verified(found.display_name, Path(found.path_or_name))
