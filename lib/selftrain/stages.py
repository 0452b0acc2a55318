"""The stages of a cycle: data, train, sample, evaluate, judge. Each is a function of stored inputs and is done once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from selftrain import draws, jsonl, paths, regimes, store
from selftrain.config import ChainConfig
from selftrain.errors import InputError
from selftrain.formats import Item, preference_row, training_row
from selftrain.judge import Judge
from selftrain.judge.coverage import check_coverage
from selftrain.judge.rows import judge_folder, to_judge
from selftrain.progress import Progress
from selftrain.resident import Resident
from selftrain.sampling import Request, nll, sample
from selftrain.training import TrainingDiverged, TrainLog, train

BASE = -1
BASE_SEED = 0  # the base model's answers are the same for every chain


class Stages:
    """What a chain does in a cycle. The chain itself (chain.Chain) decides where it is kept, what is done already, and what comes next."""

    config: ChainConfig
    plan: regimes.Plan
    judge: Judge
    folder: Path
    _resident: Resident | None
    _progress: Progress | None
    _stage: Callable[..., None]
    _write_manifest: Callable[..., None]
    cycle_folder: Callable[[int], Path]

    @property
    def resident(self) -> Resident:
        """The model in memory, loaded at the first need."""
        if self._resident is None:
            self._resident = Resident.open(
                self.config.model, rank=self.config.lora_rank, alpha=self.config.lora_alpha, trainer=self.config.trainer
            )
        if (self._resident.rank, self._resident.alpha) != (
            self.config.lora_rank,
            self.config.lora_alpha,
        ) or self._resident.name != self.config.model:
            raise InputError(
                f"the resident model is {self._resident.name} of rank {self._resident.rank}; this chain needs {self.config.model} of rank {self.config.lora_rank}"
            )
        if self.config.trainer not in ("auto", self._resident.trainer):
            raise InputError(
                f"the resident model is trained by {self._resident.trainer}, this chain asks for trainer {self.config.trainer}: run it in another process"
            )
        self._resident.check_kind(self.config.kind)
        return self._resident

    def _hold(self, cycle: int) -> None:
        """Put a cycle's weights into the resident adapter, unless it holds them already."""
        digest = store.read_marker(self.cycle_folder(cycle))["train"]["outputs"]["adapter"]
        if self.resident.loaded != digest:
            self.resident.load(self.cycle_folder(cycle) / "adapter")
            self.resident.loaded = digest

    def _sampling(self, evaluate: bool) -> dict[str, Any]:
        c = self.config
        return {
            "max_new_tokens": c.eval_max_new_tokens if evaluate else c.max_new_tokens,
            "temperature": c.eval_temperature if evaluate else c.temperature,
            "top_p": c.top_p,
            "top_k": c.top_k,
        }

    def _sample(self, prompts: list[dict], keys: list[int], evaluate: bool = False) -> list:
        return sample(
            self.resident,
            [Request(p["text"], k) for p, k in zip(prompts, keys, strict=True)],
            kind=self.config.kind,
            progress=self._progress.advance if self._progress else None,
            **self._sampling(evaluate),
        )

    def _base_answers(self, cycle: int, prompts: list[dict]) -> dict[str, Item]:
        """The base model's answers to some prompts, sampled once and shared between chains."""
        inputs = {
            "model": self.resident.fingerprint,
            "prompts": jsonl.digest(prompts),
            "kind": self.config.kind,
            "seed": BASE_SEED,
            **self._sampling(False),
        }

        def produce(folder: Path) -> None:
            with self.resident.as_base():
                made = self._sample(prompts, [draws.key(BASE_SEED, "base answer", p["id"]) for p in prompts])
            jsonl.write(
                folder / "base_answers.jsonl",
                (Item(p["id"], self.config.kind, p["text"], s.text, s.finished, "base").row() for p, s in zip(prompts, made, strict=True)),
            )

        self._stage(cycle, "base_answers", inputs, ["base_answers.jsonl"], produce)
        return {row["id"]: Item(**row) for row in jsonl.read(self.cycle_folder(cycle) / "base_answers.jsonl")}

    def _samples(self, cycle: int) -> list[Item]:
        return [
            Item(**{k: row[k] for k in ("id", "kind", "prompt", "answer", "finished", "source")})
            for row in jsonl.read(self.cycle_folder(cycle) / "samples.jsonl")
        ]

    def _data(self, cycle: int) -> dict[str, int]:
        """train.jsonl: the items a cycle learns from, pairs where it learns from pairs. Returns what was dropped and why."""
        c, dropped = self.config, {}
        items, sources = list(self.plan.seed_items), {}
        if not regimes.on_seed(c, cycle):
            items = [item for item in self._samples(cycle - 1) if item.answer.strip()]
            dropped["empty"] = c.n_sampled - len(items)
            sources["samples"] = store.read_marker(self.cycle_folder(cycle - 1))["sample"]["outputs"]["samples.jsonl"]
            if c.coherence_filter is not None:
                items, dropped["incoherent"] = self._coherent(cycle - 1, items)
                sources["filter"] = [c.coherence_filter, self.judge.name, self.judge.hash(c.trait)]
        block = [] if regimes.on_seed(c, cycle) else [{"id": item.id, "text": item.prompt} for item in items]
        early = regimes.base_prompts(c, cycle, items, block) if c.mix and c.mix.source == "base" and not regimes.on_seed(c, cycle) else []
        base = self._base_answers(cycle, early) if early else {}
        if not regimes.on_seed(c, cycle):
            items = regimes.mixed(c, cycle, items, self.plan.seed_items, base)
        rows: list[dict] = [item.row() for item in items if item.answer.strip()]
        if regimes.is_preference(c, cycle):
            base = base or self._base_answers(cycle, regimes.base_prompts(c, cycle, items, block))
            kept, counts = regimes.pairs(items, base)
            dropped |= counts
            rows = [{"chosen": chosen.row(), "rejected": rejected.row()} for chosen, rejected in kept]
            if len(rows) < c.batch_size:
                raise InputError(f"{c.chain_id}: cycle {cycle} has {len(rows)} pairs, fewer than batch_size {c.batch_size}")
        if not rows:
            raise InputError(f"{c.chain_id}: cycle {cycle} has no rows to train on ({dropped})")
        sources["rows"] = jsonl.digest(rows)
        self._stage(cycle, "data", sources, ["train.jsonl"], lambda folder: jsonl.write(folder / "train.jsonl", rows))
        return dropped

    def _coherent(self, cycle: int, items: list[Item]) -> tuple[list[Item], int]:
        """Items at or over the coherence filter. A judge that scored too few stops the chain: what is trained on must not depend on a network."""
        rows = self._with_nll([item.row() for item in items])
        scores = self.judge.score(self.config.trait, [to_judge(row) for row in rows])
        check_coverage([vars(score) for score in scores], f"{self.config.chain_id}: coherence filter of cycle {cycle}", 1.0)
        kept = [item for item, score in zip(items, scores, strict=True) if score.coherence >= self.config.coherence_filter]
        return kept, len(items) - len(kept)

    def _train(self, cycle: int, dropped: dict[str, int]) -> None:
        c = self.config
        rows = jsonl.read(self.cycle_folder(cycle) / "train.jsonl")
        settings = regimes.settings(c, cycle, len(rows))
        fresh = regimes.starts_fresh(c, cycle)
        start = "fresh" if fresh else store.read_marker(self.cycle_folder(cycle - 1))["train"]["outputs"]["adapter"]
        untrained = c.null == "untrained" and cycle == 0
        inputs = {
            "model": self.resident.fingerprint,
            "rows": store.digest_of(self.cycle_folder(cycle) / "train.jsonl"),
            "settings": vars(settings),
            "start": start,
            "reference": regimes.reference(c, cycle),
            "max_length": c.max_length,
            "lora": [c.lora_rank, c.lora_alpha],
            "trained": not untrained,
            "init": draws.key(c.seed, cycle, "init") if fresh else None,
        }

        def produce(folder: Path) -> None:
            def start() -> None:
                if fresh:
                    self.resident.fresh(inputs["init"])
                else:
                    self._hold(cycle - 1)

            if untrained:
                start()
                log = TrainLog(0, 0, len(rows), trainer="none")
            else:
                log = self._fit(rows, settings, inputs["reference"], start)
            self.resident.save(folder / "adapter")
            record = {
                "trainer": log.trainer,
                "replayed": log.replayed,
                "steps": log.steps,
                "train_tokens": log.train_tokens,
                "rows": log.rows,
                "saturated": log.saturated,
                "dropped": dropped,
                "reference": inputs["reference"],
                "start": "base" if fresh else "previous",
                "history": log.history,
            }
            jsonl.write_text(folder / "train_log.json", json.dumps(_without_times(record), indent=1) + "\n")
            self.resident.loaded = None

        try:
            self._stage(cycle, "train", inputs, ["adapter", "train_log.json"], produce)
        except TrainingDiverged as error:
            self._write_manifest("diverged", diverged={"cycle": cycle, "why": str(error)})
            raise TrainingDiverged(
                f"{c.chain_id}: cycle {cycle} stopped: {error}; earlier cycles are kept in {paths.shown(self.folder)}"
            ) from None

    def _fit(self, rows: list[dict], settings: Any, reference: str | None, start: Callable[[], None]) -> TrainLog:
        """Train from `start`; where memory runs out, once more with what is recorded forgotten."""
        tokenizer, length = self.resident.tokenizer, self.config.max_length
        if "chosen" in rows[0]:
            tokens = [preference_row(tokenizer, Item(**r["chosen"]), Item(**r["rejected"]), length) for r in rows]
        else:
            tokens = [training_row(tokenizer, Item(**r), length) for r in rows]
        progress = self._progress.at if self._progress else None
        start()
        with contextlib.suppress(torch.OutOfMemoryError):
            return train(self.resident, tokens, settings, reference=reference, progress=progress)
        self.resident.forget()
        self.resident.loaded = None  # the adapter has moved
        start()
        return train(self.resident, tokens, settings, reference=reference, progress=progress)

    def _draw(self, cycle: int) -> None:
        """samples.jsonl: one answer to each of the cycle's prompts, the training data of the next cycle."""
        prompts = self.plan.prompts[cycle]
        inputs = {
            "adapter": store.read_marker(self.cycle_folder(cycle))["train"]["outputs"]["adapter"],
            "prompts": jsonl.digest(prompts),
            "seed": [self.config.seed, cycle],
            "kind": self.config.kind,
            **self._sampling(False),
        }

        def produce(folder: Path) -> None:
            self._hold(cycle)
            made = self._sample(prompts, [draws.key(self.config.seed, cycle, "sample", p["id"]) for p in prompts])
            jsonl.write(
                folder / "samples.jsonl",
                (
                    {**Item(p["id"], self.config.kind, p["text"], s.text, s.finished, f"cycle {cycle}").row(), "n_tokens": s.n_tokens}
                    for p, s in zip(prompts, made, strict=True)
                ),
            )

        self._stage(cycle, "sample", inputs, ["samples.jsonl"], produce)

    def _with_nll(self, rows: list[dict]) -> list[dict]:
        """Rows {prompt, answer, kind, finished} with the answer's nats and tokens under the base model, `kl` against it where the chain is DPO."""
        tokenizer, length = self.resident.tokenizer, 10**6
        tokens = [training_row(tokenizer, Item(r.get("id", ""), r["kind"], r["prompt"], r["answer"], r["finished"]), length) for r in rows]
        if self.config.kind == "documents":  # only the completion is judged, so only it is scored
            for row, r in zip(tokens, rows, strict=True):
                head = len(training_row(tokenizer, Item("", r["kind"], r["prompt"], "", False), length)["input_ids"])
                row["labels"] = [-100] * head + row["labels"][head:]
        under_base = nll(self.resident, tokens)
        own = nll(self.resident, tokens, base=False) if self.config.regime == "dpo" else [None] * len(rows)
        return [
            {**r, "nll": round(b[0], 4), "nll_tokens": b[1], **({"kl": round(b[0] - o[0], 4)} if o else {})}
            for r, b, o in zip(rows, under_base, own, strict=True)
        ]

    def _evaluate(self, cycle: int) -> None:
        """eval.jsonl: n_answers to every evaluation prompt, with their likelihood under the base model."""
        c = self.config
        todo = [(p, n) for p in self.plan.evaluation for n in range(c.n_answers)]
        adapter = "base" if cycle == BASE else store.read_marker(self.cycle_folder(cycle))["train"]["outputs"]["adapter"]
        seed = [BASE_SEED, BASE] if cycle == BASE else [c.seed, cycle]
        inputs = {
            "model": self.resident.fingerprint,
            "adapter": adapter,
            "prompts": jsonl.digest(self.plan.evaluation),
            "n_answers": c.n_answers,
            "seed": seed,
            "kind": c.kind,
            "kl": c.regime == "dpo",
            **self._sampling(True),
        }

        def produce(folder: Path) -> None:
            keys = [draws.key(*seed, "evaluate", p["id"], n) for p, n in todo]
            if cycle == BASE:
                self.resident.fresh(0)  # B is zero: the adapter changes nothing
            else:
                self._hold(cycle)
            made = self._sample([p for p, _ in todo], keys, evaluate=True)
            rows = [
                {
                    "id": f"{p['id']}/{n}",
                    "question_id": p["id"],
                    "sample": n,
                    "set": p["set"],
                    "kind": c.kind,
                    "prompt": p["text"],
                    "answer": s.text,
                    "finished": s.finished,
                    "n_tokens": s.n_tokens,
                }
                for (p, n), s in zip(todo, made, strict=True)
            ]
            jsonl.write(folder / "eval.jsonl", self._with_nll(rows))

        self._stage(cycle, "evaluate", inputs, ["eval.jsonl"], produce)

    def _judge(self, cycle: int) -> None:
        """scores/<judge>.jsonl: one row an answer; an empty answer is counted, not judged. Under the coverage floor nothing is marked."""
        judge_folder(
            self.cycle_folder(cycle),
            self.judge,
            self.config.trait,
            self.config.coverage_floor,
            stage=lambda *what: self._stage(cycle, *what),
            progress=self._progress.advance if self._progress else None,
        )


def _without_times(record: dict) -> dict:
    """A training record without what differs between two equal runs."""
    record["history"] = [
        {k: v for k, v in h.items() if not k.endswith(("_per_second", "runtime")) and k != "epoch"} for h in record["history"]
    ]
    return record
