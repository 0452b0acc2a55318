"""A base model that stays in memory with one LoRA adapter, re-initialised, loaded and saved in place."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from selftrain import memory, trainers
from selftrain.environment import plain
from selftrain.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel  # imported where it is used: Unsloth wants to be first

log = logging.getLogger(__name__)
WEIGHTS = "adapter_model.safetensors"


class Resident:
    """One base model, its tokenizer, and one adapter called "default" whose tensors never move.

    Every cycle of every chain of a process runs on it: `fresh` re-initialises the adapter, `load` copies saved weights into it,
    `clean` takes off what a trainer left behind. `loaded` names the weights that the adapter holds now, `trainer` who trains it.
    A model that has its adapter already (Unsloth's) is taken as it is. `checkpointing`: activations are recomputed to save memory.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        *,
        name: str,
        fingerprint: str,
        kind: str,
        rank: int,
        alpha: int,
        trainer: str = "trl",
        checkpointing: bool = False,
    ):
        from peft import LoraConfig, PeftModel, get_peft_model

        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model: PeftModel = model if isinstance(model, PeftModel) else get_peft_model(model, config)
        self.model.eval()
        self.tokenizer, self.name, self.fingerprint, self.kind = tokenizer, name, fingerprint, kind
        self.rank, self.alpha, self.trainer, self.checkpointing = rank, alpha, trainer, checkpointing
        self.plain_sampling = "sampling" in plain()  # asked for, or recording answers has failed
        self.is_base = False  # inside as_base
        self.layers: Any = None  # the layers as decoding runs them (joined.Layers)
        self.decoders: dict[tuple, Any] = {}  # what sampling has recorded, by shape, oldest first
        self.longest: dict[int, int] = {}  # longest prompt so far by new tokens, so that shapes only grow
        self.plain_training = "training" in plain()  # asked for, or recording training passes has failed
        self.passes: dict[int, Any] = {}  # what training has recorded, by sequences at once
        self.longest_row = 0  # tokens of the longest row trained on so far, so that these shapes only grow, too
        self.said: set[str] = set()  # why something was not recorded
        self.loaded: str | None = None

    @classmethod
    def open(cls, name: str, *, rank: int, alpha: int, device: str | None = None, trainer: str = "auto") -> Resident:
        """Load a model by embedded name, folder or hub name and wrap it, within this process's share of device memory.

        `trainer` (auto, unsloth, trl) is settled here, before anything heavy is imported: see trainers.choose for its errors.
        """
        memory.prepare()
        chosen = "trl" if device == "cpu" and trainer == "auto" else trainers.choose(trainer, name)
        if chosen == "unsloth" and "training" in plain():
            raise InputError("SELFTRAIN_PLAIN: training is TRL's; say trainer: trl")
        loader = trainers.unsloth_loader(rank=rank, alpha=alpha) if chosen == "unsloth" else None
        from selftrain import models

        found = models.load(name, device=device, dtype="float32" if "float32" in plain() else None, loader=loader)
        return cls(
            found.model, found.tokenizer, name=name, fingerprint=found.fingerprint, kind=found.kind, rank=rank, alpha=alpha, trainer=chosen
        )

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def check_kind(self, kind: str) -> None:
        """InputError if chat is asked of a model without a chat template."""
        if kind == "chat" and not getattr(self.tokenizer, "chat_template", None):
            raise InputError(f"model {self.name} has no chat template; use an instruct model for sft and dpo, or regime sdf")

    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's parameters by name."""
        return {name: p for name, p in self.model.named_parameters() if ".default." in name}

    def fresh(self, seed: int) -> None:
        """Re-initialise the adapter in place: A random by the seed, B zero, so that the model is the base."""
        from peft.tuners.lora import LoraLayer

        torch.manual_seed(seed)
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.reset_lora_parameters("default", True)
        self.loaded = None

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's own folder format (fp32 safetensors)."""
        self.model.save_pretrained(str(folder), selected_adapters=["default"])
        (folder / "README.md").unlink(missing_ok=True)

    def load(self, folder: Path) -> None:
        """Copy a saved adapter into the resident tensors; InputError where names or shapes do not fit."""
        path = Path(folder) / WEIGHTS
        if not path.exists():
            raise InputError(f"{path}: the adapter is not there (pruned?); run the chain's cycle again without pruning")
        saved = {name.replace(".weight", ".default.weight"): tensor for name, tensor in load_file(path).items()}
        mine = self.tensors()
        if saved.keys() != mine.keys():
            raise InputError(f"{path}: the adapter was made for another model or rank than {self.name}")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(saved[name])
        self.loaded = None

    def is_zero(self) -> bool:
        """True while the adapter changes nothing (every B is zero)."""
        return not any(p.abs().max().item() > 0 for name, p in self.tensors().items() if "lora_B" in name)

    @contextlib.contextmanager
    def as_base(self) -> Iterator[None]:
        """The base model, for the length of a with block."""
        with self.model.disable_adapter():
            before, self.is_base = self.is_base, True
            try:
                yield
            finally:
                self.is_base = before

    def forget(self) -> None:
        """Drop what training and sampling have recorded and give the memory back."""
        from selftrain import decoding

        self.passes.clear()
        self.decoders.clear()
        self.layers = None
        decoding.leave_pool()
        gc.collect()  # a recording holds itself in a cycle
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def say_once(self, what: str) -> None:
        """Warn, the first time that this is said."""
        if what not in self.said:
            self.said.add(what)
            log.warning(what)

    def clean(self) -> None:
        """Take off what a TRL trainer leaves on a resident model: its wrapped forward, its reference adapter, training mode.

        Where accelerate has wrapped the model (`bf16=True`, as Unsloth trains), its mark of a wrapped model goes too: marked, the next training
        would run without autocast.
        """
        for model in (self.model, self.model.get_base_model()):
            for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
                model.__dict__.pop(name, None)
        self.model.set_adapter("default")
        if "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")
        for p in self.model.parameters():
            p.grad = None
        self.model.eval()
