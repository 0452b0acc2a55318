"""One chain's configuration: what the notebook, the batch run and the manifest share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from selftrain import jsonl
from selftrain.errors import InputError

SMALL_MODEL = "smollm2-135m-instruct"
_SMALL = dict(
    schedule="constant",
    epochs_seed=3,
    epochs=1,
    batch_size=8,
    lora_rank=16,
    lora_alpha=32,
    max_new_tokens=112,
    eval_max_new_tokens=112,
    max_length=320,
    temperature=0.8,
    eval_temperature=0.7,
    top_p=1.0,
    top_k=0,
    n_questions=12,
    n_answers=20,
    warmup=0.05,
    weight_decay=0.0,
    max_grad_norm=1.0,
    cycle0="sft",
)
_PAPER = {**_SMALL, "epochs_seed": 1, "batch_size": 2, "max_new_tokens": 1024, "eval_max_new_tokens": 400, "max_length": 2048}
# Two complete presets by regime; nothing else sets these values.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "small": {
        "sft": {**_SMALL, "lr": 3e-4},
        "sdf": {**_SMALL, "lr": 3e-4, "weight_decay": 0.1},
        "dpo": {**_SMALL, "lr": 4e-5, "schedule": "cosine", "beta": 0.1},
    },
    "paper": {
        "sft": {**_PAPER, "lr": 1.5e-4},
        "sdf": {**_PAPER, "lr": 1.5e-4, "batch_size": 4, "max_new_tokens": 512, "weight_decay": 0.1},
        "dpo": {**_PAPER, "lr": 1e-5, "schedule": "cosine", "beta": 0.1, "cycle0": "dpo"},
    },
}
# Keys that say where a chain is kept, how far it goes, who scores it or whose kernels train it: another value is not another chain.
NOT_HASHED = {"study", "panel", "preset", "last_cycle", "judge", "seed_file", "judge_max_usd", "coverage_floor", "trainer"}


class Mix(BaseModel):
    """A share of every later cycle's training rows that does not come from the previous model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    source: Literal["base", "neutral", "seed"]
    fraction: float = Field(ge=0, le=1)


class Branch(BaseModel):
    """Where a chain left another one: which chain, after which cycle, and what that chain's draws of data depended on."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    chain: str
    at: int = Field(ge=0)
    n_sampled: int
    seed: int


class ChainConfig(BaseModel):
    """Everything that decides one chain. Fields left out are filled from the preset of the regime; unknown fields are refused.

    Lengths are in tokens, learning rates per optimiser step, `warmup` a fraction of steps, `coherence_filter` a score on the 1-100 scale.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    study: str = "interactive"
    panel: str = "chains"
    trait: str
    regime: Literal["sft", "sdf", "dpo"] = "sft"
    init: Literal["reinit", "continual"] = "reinit"
    null: str = "none"
    cycle0: Literal["sft", "dpo"]
    model: str = SMALL_MODEL
    judge: str = "local"
    n_seed: int = Field(gt=0)
    n_sampled: int = Field(gt=0)
    last_cycle: int = Field(ge=1, default=6)
    seed: int = Field(ge=0, default=0)
    preset: Literal["small", "paper"] = "small"
    seed_file: str | None = None
    seed_file_hash: str | None = None
    lr: float = Field(gt=0)
    lr_seed: float = Field(gt=0)
    schedule: Literal["constant", "cosine"]
    epochs_seed: int = Field(ge=1)
    epochs: int = Field(ge=1)
    match_steps: int | None = Field(default=None, ge=1)
    dose_matched: bool = False
    batch_size: int = Field(ge=1)
    warmup: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    lora_rank: int = Field(ge=1)
    lora_alpha: int = Field(ge=1)
    beta: float | None = Field(default=None, gt=0)
    reference: Literal["cycle_start", "base"] | None = None
    max_length: int = Field(ge=16)
    max_new_tokens: int = Field(ge=1)
    eval_max_new_tokens: int = Field(ge=1)
    temperature: float = Field(gt=0)
    eval_temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    top_k: int = Field(ge=0)
    n_questions: int = Field(ge=1)
    n_answers: int = Field(ge=1)
    restart_at: tuple[int, ...] = ()
    mix: Mix | None = None
    coherence_filter: float | None = Field(default=None, ge=1, le=100)
    branch: Branch | None = None
    trainer: Literal["auto", "unsloth", "trl"] = "auto"
    judge_max_usd: float | None = Field(default=None, ge=0)
    coverage_floor: float = Field(default=0.95, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        values = {key: value for key, value in given.items() if value is not None}
        preset, regime = values.get("preset", "small"), values.get("regime", "sft")
        defaults = PRESETS.get(preset, {}).get(regime)
        if defaults is None:
            return values  # the literal fields report it
        if "max_new_tokens" in values and "eval_max_new_tokens" not in values:
            values["eval_max_new_tokens"] = values["max_new_tokens"]  # one length unless two are asked for
        values = {**defaults, **values}
        if regime == "dpo":
            values.setdefault("reference", "cycle_start" if values.get("init") == "continual" else "base")
            seeded_by = values.get("cycle0")
        else:
            seeded_by = regime
            values["cycle0"] = given.get("cycle0", "sft")
        values.setdefault("lr_seed", values["lr"] if seeded_by == regime else PRESETS[preset]["sft"]["lr"])
        if values.get("seed_file") and not values.get("seed_file_hash"):
            path = Path(values["seed_file"])
            if not path.exists():
                raise InputError(f"{path}: no such seed file")
            values["seed_file_hash"] = jsonl.file_digest(path)
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ChainConfig:
        if self.regime != "dpo" and self.cycle0 == "dpo":
            raise InputError(f"cycle0: dpo belongs to regime dpo, not {self.regime}; leave cycle0 out")
        if self.regime != "dpo" and (self.beta is not None or self.reference is not None):
            raise InputError(f"beta and reference belong to regime dpo, not {self.regime}; leave them out")
        if self.regime == "dpo" and self.reference == "cycle_start" and self.init == "reinit":
            raise InputError("reference: cycle_start is the base model in a reinit chain; say reference: base")
        if self.regime == "dpo" and self.n_sampled < self.batch_size:
            raise InputError(
                f"n_sampled {self.n_sampled} gives fewer pairs than batch_size {self.batch_size}; raise n_sampled or lower batch_size"
            )
        if self.regime == "dpo" and self.cycle0 == "dpo" and self.n_seed < self.batch_size:
            raise InputError(f"n_seed {self.n_seed} gives fewer pairs than batch_size {self.batch_size}; raise n_seed or lower batch_size")
        kind, _, other = self.null.partition(":")
        if kind not in ("none", "untrained", "neutral", "other", "retrain") or (kind == "other") != bool(other):
            raise InputError(f"null {self.null!r} is not one of none, untrained, neutral, other:<trait>, retrain")
        if other == self.trait:
            raise InputError(f"null other:{other} contradicts the trait {self.trait}; name another trait")
        if kind == "neutral" and self.trait == "neutral":
            raise InputError("null neutral contradicts the trait neutral")
        if self.dose_matched and self.init == "continual":
            raise InputError("dose_matched is a control for init: reinit; a continual chain accumulates its dose by itself")
        outside = [k for k in self.restart_at if not 1 <= k <= self.last_cycle]
        if outside:
            raise InputError(f"restart_at {outside[0]} lies outside the chain's cycles 1-{self.last_cycle}")
        if self.seed_file and self.null.startswith(("other", "neutral")):
            raise InputError(f"null {self.null} brings its own seed set; leave seed_file out")
        return self

    @classmethod
    def create(cls, **given: Any) -> ChainConfig:
        """A validated config; InputError with one line naming the field and the fix."""
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "config"
            if first["type"] == "extra_forbidden":
                raise InputError(f"config: unknown key {name!r}; known keys: {', '.join(sorted(cls.model_fields))}") from None
            if isinstance(first.get("ctx", {}).get("error"), InputError):
                raise InputError(f"config: {first['ctx']['error']}") from None
            raise InputError(f"config: {name} = {first.get('input')!r}: {first['msg']}") from None

    def changed(self, **given: Any) -> ChainConfig:
        """This config with some keys changed, validated afresh."""
        return self.create(**{**self.model_dump(), **given})

    @property
    def kind(self) -> Literal["chat", "documents"]:
        """The data format: documents for SDF, chat otherwise."""
        return "documents" if self.regime == "sdf" else "chat"

    @property
    def data_seed(self) -> int:
        """The seed that seed rows and prompts are drawn by: a branch keeps that of the chain it left."""
        return self.branch.seed if self.branch else self.seed

    @property
    def seed_source(self) -> str:
        """Whose seed rows cycle 0 is trained on: a trait, `neutral`, or a path."""
        if self.null == "neutral":
            return "neutral"
        if self.null.startswith("other:"):
            return self.null.partition(":")[2]
        return self.seed_file or self.trait

    def values(self) -> dict[str, Any]:
        """All keys as JSON values."""
        return self.model_dump(mode="json")

    @property
    def hash(self) -> str:
        """Six hex digits of the keys that change results."""
        keys = {k: v for k, v in self.values().items() if k not in NOT_HASHED}
        if self.coherence_filter is not None:
            keys["judge"] = self.judge  # only then does a judge decide what is trained on
        return jsonl.digest(keys, 6)

    @property
    def chain_id(self) -> str:
        """<trait>-<regime>-<init>-n<n_seed>-m<n_sampled>[-b<beta>][-null-<kind>]-s<seed>-<hash>"""
        beta = f"-b{self.beta:g}" if self.beta is not None else ""
        null = f"-null-{self.null.replace(':', '-')}" if self.null != "none" else ""
        return f"{self.trait}-{self.regime}-{self.init}-n{self.n_seed}-m{self.n_sampled}{beta}{null}-s{self.seed}-{self.hash}"


def expand(settings: Mapping[str, Any], where: str = "grid") -> Iterator[ChainConfig]:
    """Every config of a grid: keys whose value is a list are crossed, in the order given.

    `restart_at` is itself a list: cross it by a list of lists. InputError names `where`.
    """
    crossed = {
        key: value
        for key, value in settings.items()
        if isinstance(value, list) and (key != "restart_at" or any(isinstance(v, list) for v in value))
    }
    empty = [key for key, value in crossed.items() if not value]
    if empty:
        raise InputError(f"{where}: {empty[0]} is an empty list; give at least one value")
    for values in itertools.product(*crossed.values()):
        try:
            yield ChainConfig.create(**{**settings, **dict(zip(crossed, values, strict=True))})
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
