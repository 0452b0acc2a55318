"""One function for every regime and both trainers: TRL, alone or on Unsloth's kernels, trains the resident adapter on token rows.

Nothing else is left behind. Rows, LoRA targets, schedule, accumulation and seeds are the same for both (trainers.py says who is chosen).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from selftrain import trainers
from selftrain.formats import IGNORED
from selftrain.resident import Resident
from selftrain.tokenrows import on_token_rows

log = logging.getLogger(__name__)
SATURATED = 0.01  # a DPO loss under this within the first tenth of a cycle has nothing left to teach


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number; nothing of this cycle is kept."""


@dataclass(frozen=True)
class Settings:
    """How one cycle is trained. Learning rate per step; `warmup` is a fraction of the steps, rounded down."""

    lr: float
    schedule: str
    epochs: int
    batch_size: int
    warmup: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    beta: float | None = None
    max_steps: int | None = None


@dataclass
class TrainLog:
    """What training did: optimiser steps, tokens that carried loss (all passes), rows, one dict a step (loss, grad_norm; DPO: margins, log-probs), who did it,
    and whether by recorded passes."""

    steps: int
    train_tokens: int
    rows: int
    history: list[dict[str, float]] = field(default_factory=list)
    trainer: str = "trl"
    replayed: bool = False

    @property
    def saturated(self) -> bool:
        """True where a preference loss fell under 0.01 within the first tenth of the steps."""
        early = self.history[: max(1, len(self.history) // 10)]
        return any("rewards/margins" in h and h["loss"] < SATURATED for h in early)


def planned_steps(n_rows: int, settings: Settings) -> int:
    """Optimiser steps for n_rows: max_steps if given, else epochs times batches (the last batch may be short)."""
    return settings.max_steps or settings.epochs * math.ceil(n_rows / settings.batch_size)


def longest_row(rows: Sequence[dict]) -> int:
    """Tokens of the longest sequence that training will see, prompt and answer together."""
    return max(
        len(r["input_ids"]) if "input_ids" in r else len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows
    )


def _arguments(settings: Settings, steps: int, resident: Resident, folder: str) -> dict[str, Any]:
    """Trainer arguments that every regime shares; each value that differs from TRL's or Unsloth's default is stated.

    Unsloth's own: accumulation over 2 batches, padding-free batches, weight decay 0.001, an 8-bit optimiser, warm-up over a tenth.
    """
    cuda = resident.device.type == "cuda"
    return dict(
        output_dir=folder,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=settings.lr,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        lr_scheduler_type="cosine" if settings.schedule == "cosine" else "constant_with_warmup",
        warmup_steps=int(settings.warmup * steps),
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        bf16=cuda and resident.trainer == "unsloth",  # TRL's loss is taken under an autocast of our own (tokenrows)
        use_cpu=not cuda,
        gradient_checkpointing=resident.checkpointing,
        padding_free=False,
        max_length=None,
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _by_autocast(resident: Resident) -> bool:
    """Whether arithmetic is bfloat16 beside LoRA weights in float32: on CUDA, unless the model's own weights are in float32, too."""
    return resident.device.type == "cuda" and next(resident.model.get_base_model().parameters()).dtype != torch.float32


@contextlib.contextmanager
def _settled(model: Any) -> Iterator[None]:
    """A model whose modules stay the same: its parameters, and training mode, are found without a walk through all modules.

    A trainer walks several times a step (training mode, clipping, clearing gradients), which takes as long as a small model's passes.
    """
    found = list(model.parameters())
    model.train()
    model.parameters = lambda recurse=True: iter(found)
    model.train = lambda mode=True: model if model.training is mode else type(model).train(model, mode)
    try:
        yield
    finally:
        del model.parameters, model.train


@contextlib.contextmanager
def _heap_set_aside() -> Iterator[None]:
    """Garbage is looked for among what is made here alone: by accelerate as training starts, and at the end, since Unsloth's trainers hold themselves.

    Among all objects of a process a look takes as long as ten steps of a small model. One training at a time: the collector is the process's.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


def _watch(resident: Resident, steps: int, progress: Callable[[int, int], None] | None, history: list[dict]):
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Keeps every step's log, reports progress, and stops at the first loss that is not a number."""

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not logs or "loss" not in logs:
                return
            history.append({"step": state.global_step, **{k: float(v) for k, v in logs.items() if isinstance(v, (int, float))}})
            if not math.isfinite(logs["loss"]) or not math.isfinite(logs.get("grad_norm", 0.0)):
                raise TrainingDiverged(
                    f"loss {logs['loss']} and gradient norm {logs.get('grad_norm')} at step {state.global_step} of {steps}"
                )
            if progress:
                progress(state.global_step, steps)

    return Watch()


def _train(resident: Resident, rows: Sequence[dict], settings: Settings, reference: str | None, replayed: bool, watch: Any) -> None:
    """Make TRL's trainer and let it train; nothing keeps it afterwards."""
    import datasets
    from transformers import PrinterCallback
    from trl import DPOConfig, SFTConfig

    from selftrain import passes

    preference = "prompt_ids" in rows[0]
    columns = ("prompt_ids", "chosen_ids", "rejected_ids") if preference else ("input_ids", "labels")
    with tempfile.TemporaryDirectory() as folder:
        shared = _arguments(settings, planned_steps(len(rows), settings), resident, folder)
        args = (
            DPOConfig(beta=settings.beta, loss_type=["sigmoid"], **shared)
            if preference
            else SFTConfig(loss_type="nll", packing=False, **shared)
        )
        trainer_class = on_token_rows(preference, rows, resident.tokenizer, not args.bf16 and _by_autocast(resident))
        dataset = datasets.Dataset.from_list([{k: row[k] for k in columns} for row in rows])
        trainer = trainer_class(
            model=resident.model, args=args, train_dataset=dataset, processing_class=resident.tokenizer, callbacks=[watch]
        )
        trainer.remove_callback(PrinterCallback)
        if preference and replayed:
            chosen, rejected = zip(*passes.reference_logps(resident, trainer, rows, reference, settings.batch_size), strict=True)
            trainer.train_dataset = dataset.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)
            trainer.precompute_ref_logps = True
        elif reference == "base":
            with torch.no_grad():
                for name, p in resident.model.named_parameters():
                    if ".ref." in name and "lora_B" in name:
                        p.zero_()
        with _settled(resident.model):
            trainer.train()


def train(
    resident: Resident,
    rows: Sequence[dict[str, Any]],
    settings: Settings,
    *,
    reference: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainLog:
    """Train the resident adapter, from what it holds now, on {input_ids, labels, ends} or {prompt_ids, chosen_ids, rejected_ids} rows.

    Pairs are weighed against a frozen reference policy (DPO, Rafailov et al. 2023, sigmoid loss): `cycle_start`, the adapter as it is
    now, which TRL copies to an adapter "ref"; or `base`, that copy with its B set to zero. Replayed passes (passes.py) know one adapter: there
    the reference's log-probs are taken before the first step. TrainingDiverged on a loss that is not a number. Deterministic in (weights,
    rows, settings) on a CPU.
    """
    import datasets
    from transformers import set_seed
    from transformers.utils import logging as hf_logging

    from selftrain import passes  # imports transformers: Unsloth wants to be first

    datasets.disable_progress_bars()
    hf_logging.set_verbosity_error()
    preference = "prompt_ids" in rows[0]
    trainers.check_lengths(resident.trainer, longest_row(rows))
    steps = planned_steps(len(rows), settings)
    history: list[dict] = []
    set_seed(settings.seed)
    for name, p in resident.model.named_parameters():
        p.requires_grad_(".default." in name)
    at_once = settings.batch_size * (2 if preference else 1)
    with passes.replayed(resident, at_once, longest_row(rows)) as replayed, _heap_set_aside():
        try:
            _train(resident, rows, settings, reference, replayed, _watch(resident, steps, progress, history))
        finally:
            resident.clean()
    if resident.is_zero():
        raise TrainingDiverged(f"{steps} steps at learning rate {settings.lr:g} changed nothing; raise epochs or rows")
    sides = ("chosen_ids", "rejected_ids") if preference else ("labels",)
    loss_tokens = sum(sum(t != IGNORED for t in row[side]) for row in rows for side in sides)
    epochs = len(history) * settings.batch_size / max(len(rows), 1) if settings.max_steps else settings.epochs
    return TrainLog(len(history), round(loss_tokens * epochs), len(rows), history, resident.trainer, replayed)
