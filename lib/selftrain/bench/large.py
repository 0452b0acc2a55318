"""Unsloth against TRL at the shapes of Qwen3, with random weights (speed and memory do not depend on what the weights say)."""

from __future__ import annotations

import gc
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from selftrain import paths, trainers
from selftrain.bench import measure
from selftrain.bench.floors import Shape
from selftrain.bench.sizes import Sizes
from selftrain.config import SMALL_MODEL
from selftrain.errors import InputError
from selftrain.resident import Resident
from selftrain.training import Settings, train

_QWEN3 = dict(
    vocab_size=151936,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40960,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    tie_word_embeddings=True,
)
# The published configurations of Qwen3-0.6B, 1.7B and 4B.
SHAPES: dict[str, dict[str, Any]] = {
    "0.6b": {**_QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7b": {**_QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4b": {**_QWEN3, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
SKIPPED = 3  # steps that compile and fill the allocator
ANSWERS, NEW_TOKENS = 64, 64


def folder_of(label: str, shape: dict[str, Any], device: str, folder: Path | None = None) -> Path:
    """The model folder of a shape, made in a process of its own: neither its memory nor its imports, which Unsloth wants to precede, count here."""
    folder = folder or paths.ROOT / ".cache" / "bench" / f"qwen3-{label}-random"
    if not (folder / "config.json").exists():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            apart.submit(make_folder, folder, shape, device).result()
    return folder


def make_folder(folder: Path, shape: dict[str, Any], device: str) -> None:
    """Write a model of a shape: random bfloat16 weights and SmolLM2's tokenizer, moved into place whole."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from selftrain import models

    tokenizer = AutoTokenizer.from_pretrained(models.resolve(SMALL_MODEL).path_or_name)
    torch.manual_seed(0)
    config = Qwen3Config(
        **shape, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, dtype="bfloat16"
    )
    with torch.device(device):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    made = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    made.rename(folder)


def quantized_loader() -> Callable[..., Any]:
    """A loader of 4-bit weights as QLoRA has them (nf4, quantised twice, bfloat16 arithmetic), which is what Unsloth's 4-bit is."""

    def loader(source: str, dtype: Any, **options: Any) -> Any:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation="sdpa", quantization_config=how, device_map={"": 0}, **options
        )

    return loader


def opened(folder: Path, trainer: str, bits: int, device: str, checkpointing: bool, rank: int = 16) -> Resident:
    """The folder's model with a LoRA on all linear layers, the same for both trainers."""
    from selftrain import models

    loader = quantized_loader() if bits == 4 else None
    if trainer == "unsloth":
        trainers.choose("unsloth", str(folder))
        loader = trainers.unsloth_loader(rank=rank, alpha=2 * rank, four_bit=bits == 4, checkpointing=checkpointing)
    found = models.load(folder, device=device, loader=loader)
    return Resident(
        found.model,
        found.tokenizer,
        name=str(folder),
        fingerprint="random",
        kind=found.kind,
        rank=rank,
        alpha=2 * rank,
        trainer=trainer,
        checkpointing=checkpointing,
    )


def random_rows(n: int, length: int, vocabulary: int, end: int) -> list[dict]:
    """n rows of `length` random tokens, loss on all of them, none an end token."""
    draw = random.Random(0)
    tokens = [t for t in range(min(vocabulary, 40_000)) if t != end]
    return [{"input_ids": (ids := draw.choices(tokens, k=length)), "labels": list(ids), "ends": False} for _ in range(n)]


def parts(sizes: Sizes) -> list[str]:
    """Names of the parts: both trainers and precisions at every length at 4B, and one setting at smaller sizes, to find the crossover."""
    lengths = sizes.large_lengths
    names = [f"train_4b_{trainer}_{bits}_{length}" for bits in (16, 4) for length in lengths for trainer in ("trl", "unsloth")]
    names += [f"train_{shape}_{trainer}_16_{lengths[0]}" for shape in SHAPES if shape != "4b" and lengths for trainer in ("trl", "unsloth")]
    return names


def run(
    sizes: Sizes, device: str, names: Sequence[str], shapes: dict[str, dict] = SHAPES, folder: Path | None = None
) -> Iterator[dict[str, Any]]:
    """The parts `train_<shape>_<trainer>_<bits>_<length>`, one after the other: training tokens a second, memory at its peak with and without
    weights, tokens sampled. All are of one trainer and precision; a shape's model is loaded once for its lengths, and what it leaves behind
    counts as memory that training takes."""
    import torch

    cuda = device == "cuda"
    for label, lengths in lengths_of(names).items():
        _, _, trainer, bits, _ = names[0].split("_")
        checkpointing = label == "4b"  # the smaller ones, which find the crossover, as a study trains them
        made = folder_of(label, shapes[label], device, folder)
        before = torch.cuda.memory_allocated() / 1e9 if cuda else 0.0
        resident = opened(made, trainer, int(bits), device, checkpointing)
        weights = torch.cuda.memory_allocated() / 1e9 - before if cuda else measure.peak_memory_gb()
        for length in lengths:
            rows = random_rows(sizes.large_rows * sizes.large_steps, length, shapes[label]["vocab_size"], resident.tokenizer.eos_token_id)
            resident.forget()
            resident.fresh(0)
            measure.forget_peak()  # quantising while loading holds more than training does
            clock = measure.Steps()
            log = train(resident, rows, Settings(1e-4, "constant", 1, sizes.large_rows, 0.0, 0.0, 1.0, 0), progress=clock)
            peak = torch.cuda.max_memory_allocated() / 1e9 - before if cuda else measure.peak_memory_gb()
            per_step = clock.seconds(SKIPPED)
            yield {
                "model": label,
                "trainer": trainer,
                "bits": int(bits),
                "length": length,
                "rows_a_step": sizes.large_rows,
                "checkpointing": checkpointing,
                "replayed": log.replayed,
                "train_tokens_per_second": measure.spread([sizes.large_rows * length / s for s in per_step]),
                "train_step_seconds": measure.spread(per_step),
                "losses": [h["loss"] for h in log.history],
                "loaded_gb": weights,
                "peak_memory_gb": peak,
                "memory_without_weights_gb": peak - weights,
                "sample_tokens_per_second": sampled(resident, device),
                "shape": vars(Shape.of(resident.model)),
            }
        resident.forget()
        del resident
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()


def lengths_of(names: Sequence[str]) -> dict[str, list[int]]:
    """By shape, in the order of their first part, the lengths of parts of one trainer and precision; InputError for parts of several."""
    if len({tuple(name.split("_")[2:4]) for name in names}) != 1:
        raise InputError(f"{', '.join(names)}: a process has one trainer and one precision")
    found: dict[str, list[int]] = {}
    for name in names:
        _, label, _, _, length = name.split("_")
        found.setdefault(label, []).append(int(length))
    return found


def sampled(resident: Resident, device: str) -> dict[str, Any]:
    """Tokens a second that this trainer's model samples, first call apart: a cycle is mostly sampling, so this decides as much as training."""
    from selftrain.bench.sizes import prompts
    from selftrain.sampling import Request, sample

    n, length = (ANSWERS, NEW_TOKENS) if device == "cuda" else (2, 4)
    requests = [Request(text, i) for i, text in enumerate(prompts(n))]
    rates = []
    for _ in range(4):
        seconds, made = measure.timed(lambda: sample(resident, requests, kind="chat", max_new_tokens=length, temperature=1.0, batch_size=n))
        rates.append(sum(s.n_tokens for s in made) / seconds)
    return measure.spread(rates[1:])
