"""Which trainer a process uses, TRL alone or TRL on Unsloth's kernels, and how a model is loaded for the second.

Unsloth patches classes of transformers, PEFT and TRL for the whole process when it is imported, and only what is loaded through it is
fast. So the choice is made once, where the resident model is loaded, before TRL is imported; comparing two trainers takes two processes.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selftrain import memory, paths
from selftrain.errors import InputError

log = logging.getLogger(__name__)
CROSSOVER = 4e9  # parameters from which Unsloth was faster than TRL, both with checkpointing, in the committed bench (a test compares)
LIGHT = 0.1  # share of the memory that weights may take where recorded passes and a copy of them shall fit beside them
ELEMENT = 2  # bytes a bfloat16 parameter
MAX_LENGTH = 8192  # tokens a row or an answer with its prompt may have under Unsloth, which cuts longer ones without a word
INSTALL = "pip install -e .[gpu]"


def parameters_of(name: str) -> int | None:
    """A model's parameters without loading it: from a folder's safetensors headers, else from a size in its name (4B, 270m); None if neither says."""
    from safetensors import safe_open

    from selftrain.models import EMBEDDED

    folder = EMBEDDED[name].folder if name in EMBEDDED else Path(name).expanduser()
    count = 0
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with safe_open(str(path), framework="np") as file:
            count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
    if count:
        return count
    said = re.search(r"(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name.rsplit("/", 1)[-1].lower())
    return round(float(said[1]) * {"b": 1e9, "m": 1e6}[said[2]]) if said else None


def crossover(room: float | None = None) -> float:
    """Parameters from which `auto` takes Unsloth: CROSSOVER, or as many as LIGHT of `room` bytes holds if those are fewer.

    `room` is what this process may take of its CUDA device unless it is given; without a device there is CROSSOVER alone.
    """
    import torch

    if room is None:
        if not torch.cuda.is_available():
            return CROSSOVER
        room = memory.room()
    return min(CROSSOVER, LIGHT * room / ELEMENT)


def is_small(model: Any) -> bool:
    """Whether a loaded model has fewer parameters than crossover(): TRL trains it on recorded passes, and decoding copies its weights."""
    return sum(p.numel() for p in model.parameters()) < crossover()


def choose(asked: str, model: str) -> str:
    """`unsloth` or `trl`: as asked, or for `auto` by device, installation and model size.

    InputError, with the fix, where Unsloth cannot run, or where the other trainer has been at work in this process.
    """
    import torch

    installed, cuda = importlib.util.find_spec("unsloth") is not None, torch.cuda.is_available()
    if asked == "unsloth":
        if not installed:
            raise InputError(f"trainer: unsloth is not installed; {INSTALL}, or say trainer: trl")
        if not cuda:
            raise InputError("trainer: unsloth needs a CUDA device and there is none; say trainer: trl or auto")
    wanted = asked
    if asked == "auto":
        wanted = "unsloth" if installed and cuda and (parameters_of(model) or 0) >= crossover() else "trl"
    patched = "unsloth" in sys.modules
    if wanted == "trl" and patched:
        raise InputError(f"{model}: Unsloth has patched this process already; train with trl in a process of its own (restart the kernel)")
    if wanted == "unsloth" and "trl" in sys.modules and not patched:
        if asked == "auto":
            log.warning(
                "%s: TRL was imported before Unsloth in this process, so trainer auto stays with trl; restart to use Unsloth", model
            )
            return "trl"
        raise InputError("trainer: unsloth must be imported before TRL, which this process has used already; restart the kernel")
    return wanted


def unsloth_loader(*, rank: int, alpha: int, four_bit: bool = False, checkpointing: bool = False) -> Callable[..., Any]:
    """Import Unsloth and return `loader(source, dtype, **hub options)`, which loads a model with a LoRA adapter "default" on all linear layers.

    Everything Unsloth would decide by itself is stated: exact weights (no look-alike repository), precision, no gradient checkpointing
    unless asked for, embeddings on the device. InputError where the installation does not import.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # it would fetch a file from the hub at every load
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(paths.ROOT / ".cache" / "unsloth"))
    try:
        from unsloth import FastLanguageModel
    except Exception as error:  # a driver or a version that does not fit shows here, as errors of many kinds
        raise InputError(f"unsloth does not import ({type(error).__name__}: {str(error).strip()[:120]}); say trainer: trl") from error

    def loader(source: str, dtype: Any, **options: Any) -> Any:
        model, _ = FastLanguageModel.from_pretrained(
            model_name=source,
            max_seq_length=MAX_LENGTH,
            dtype=dtype,
            load_in_4bit=four_bit,
            use_exact_model_name=True,
            use_gradient_checkpointing=checkpointing,
            fix_tokenizer=False,
            offload_embedding=False,
            **options,
        )
        return FastLanguageModel.get_peft_model(
            model,
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            bias="none",
            target_modules="all-linear",
            use_gradient_checkpointing=checkpointing,
        )

    return loader


def check_lengths(trainer: str, longest: int) -> None:
    """InputError for a row that Unsloth would cut."""
    if trainer == "unsloth" and longest > MAX_LENGTH:
        raise InputError(
            f"a row of {longest} tokens is longer than the {MAX_LENGTH} that Unsloth is loaded for; lower max_length or say trainer: trl"
        )
