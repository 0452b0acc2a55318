"""A chain: base, cycle 0, cycle 1, ... each cycle in stages that are done once, marked last, and resumed where they stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selftrain import draws, jsonl, metrics, paths, regimes, store
from selftrain.config import ChainConfig
from selftrain.environment import environment
from selftrain.errors import InputError
from selftrain.formats import Item, preference_row, training_row
from selftrain.judge import Judge, get_judge
from selftrain.judge.rows import score_rows, to_judge
from selftrain.progress import Progress
from selftrain.resident import Resident
from selftrain.sampling import Request, nll, sample
from selftrain.training import TrainingDiverged, TrainLog, train

BASE = -1
BASE_SEED = 0  # the base model's answers are the same for every chain


class Chain:
    """One trial in its run folder. Making one reads and checks every input; nothing heavy is loaded before the first stage runs.

    `resident` may be shared by many chains of one model and rank. `on_stage(cycle, stage)` is called after each stage that ran.
    """

    def __init__(
        self,
        config: ChainConfig | None = None,
        *,
        resident: Resident | None = None,
        on_stage: Callable[[int, str], None] | None = None,
        **settings: Any,
    ):
        self.config = config or ChainConfig.create(**settings)
        self.plan = regimes.plan(self.config)
        self.judge: Judge = get_judge(self.config.judge)
        self.judge_hash = self.judge.hash(self.config.trait)
        self.folder = paths.panel_folder(self.config.study, self.config.panel) / self.config.chain_id
        self.shared = paths.study_folder(self.config.study) / "runs" / "_shared"
        self._resident, self._on_stage = resident, on_stage
        self._progress: Progress | None = None
        self._open_manifest()

    # ---- the run folder

    def _open_manifest(self) -> None:
        """Start or take up the manifest; InputError where the folder belongs to another config."""
        values = self.config.values()
        path = self.folder / "manifest.json"
        self.environments: list[dict] = []
        if path.exists():
            manifest = json.loads(path.read_text(encoding="utf-8"))
            ignored = {"last_cycle", "judge", "study", "panel", "preset", "seed_file"}
            differ = [k for k, v in values.items() if k not in ignored and manifest["config"].get(k) != v]
            if differ:
                raise InputError(
                    f"{paths.shown(path)}: this results folder belongs to another config ({', '.join(differ)}); move it away or choose another panel"
                )
            self.environments = manifest["environments"]
        current = environment()
        if current not in self.environments:
            self.environments = [*self.environments, current]

    def cycle_folder(self, cycle: int) -> Path:
        """base/ for the base model (cycle -1), cycle_NN/ otherwise."""
        return self.folder / ("base" if cycle == BASE else f"cycle_{cycle:02d}")

    @property
    def scores_file(self) -> str:
        return f"scores/{self.judge.name.replace('/', '_').replace(':', '_')}-{self.judge_hash[:8]}.jsonl"

    def manifest(self, status: str = "running", **flags: Any) -> dict[str, Any]:
        """Everything that was decided and made, without times: equal for an uninterrupted and a resumed run."""
        cycles = {}
        for cycle in range(BASE, self.config.last_cycle + 1):
            marker = store.read_marker(self.cycle_folder(cycle))
            if marker:
                cycles[str(cycle)] = {
                    name: {"inputs": jsonl.digest(entry["inputs"]), "outputs": entry["outputs"]} for name, entry in marker.items()
                }
        return {
            "chain": self.config.chain_id,
            "config": self.config.values(),
            "status": status,
            **flags,
            "environments": self.environments,
            "seed_rows": [item.id for item in self.plan.seed_items],
            "prompts": [[p["id"] for p in block] for block in self.plan.prompts],
            "evaluation": [p["id"] for p in self.plan.evaluation],
            "flags": self._flags(),
            "cycles": cycles,
        }

    def _flags(self) -> dict[str, Any]:
        """Cycles whose preference loss saturated, and pairs dropped by cycle."""
        saturated, dropped = [], {}
        for cycle in range(self.config.last_cycle + 1):
            path = self.cycle_folder(cycle) / "train_log.json"
            if path.exists():
                log = json.loads(path.read_text(encoding="utf-8"))
                if log["saturated"]:
                    saturated.append(cycle)
                if any(log["dropped"].values()):
                    dropped[str(cycle)] = log["dropped"]
        return {"saturated": saturated, "dropped": dropped}

    def _write_manifest(self, status: str = "running", **flags: Any) -> None:
        jsonl.write_text(
            self.folder / "manifest.json", json.dumps(self.manifest(status, **flags), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        )

    def _stage(self, cycle: int, name: str, inputs: dict, outputs: list[str], produce: Callable[[Path], None]) -> None:
        if self._progress:
            self._progress.stage(f"{_label(cycle)} {name.partition(':')[0]}")
        started = time.monotonic()
        folder = self.cycle_folder(cycle)
        share = cycle <= 0 or name == "base_answers"  # what chains can have in common; later adapters would only fill the disk
        if not store.stage(folder, name, inputs, outputs, produce, self.shared if share else None):
            return
        with open(self.folder / "timings.jsonl", "a", encoding="utf-8") as out:
            out.write(jsonl.dumps({"cycle": cycle, "stage": name, "seconds": round(time.monotonic() - started, 3)}) + "\n")
        self._write_manifest()
        if self._on_stage:
            self._on_stage(cycle, name)

    # ---- the model

    @property
    def resident(self) -> Resident:
        """The model in memory, loaded at the first need."""
        if self._resident is None:
            self._resident = Resident.open(self.config.model, rank=self.config.lora_rank, alpha=self.config.lora_alpha)
        if (self._resident.rank, self._resident.alpha) != (
            self.config.lora_rank,
            self.config.lora_alpha,
        ) or self._resident.name != self.config.model:
            raise InputError(
                f"the resident model is {self._resident.name} of rank {self._resident.rank}; this chain needs {self.config.model} of rank {self.config.lora_rank}"
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

    # ---- stages

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
                sources["filter"] = [c.coherence_filter, self.judge.name, self.judge_hash]
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
        """Items at or over the coherence filter; a text without a score is dropped too."""
        answers = self._with_nll([item.row() for item in items])
        scores = self.judge.score(self.config.trait, [to_judge(row) for row in answers])
        kept = [
            item
            for item, score in zip(items, scores, strict=True)
            if score.coherence is not None and score.coherence >= self.config.coherence_filter
        ]
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
            if fresh:
                self.resident.fresh(inputs["init"])
            else:
                self._hold(cycle - 1)
            log = TrainLog(0, 0, len(rows)) if untrained else self._fit(rows, settings, inputs["reference"])
            self.resident.save(folder / "adapter")
            record = {
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

    def _fit(self, rows: list[dict], settings: Any, reference: str | None) -> TrainLog:
        tokenizer = self.resident.tokenizer
        if "chosen" in rows[0]:
            tokens = [preference_row(tokenizer, Item(**r["chosen"]), Item(**r["rejected"]), self.config.max_length) for r in rows]
        else:
            tokens = [training_row(tokenizer, Item(**r), self.config.max_length) for r in rows]
        return train(self.resident, tokens, settings, reference=reference, progress=self._progress.at if self._progress else None)

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
        """scores/<judge>.jsonl: one row an answer; an empty answer is counted, not judged."""
        folder = self.cycle_folder(cycle)
        inputs = {
            "answers": store.read_marker(folder)["evaluate"]["outputs"]["eval.jsonl"],
            "judge": self.judge.name,
            "judge_hash": self.judge_hash,
            "trait": self.config.trait,
        }

        def produce(made: Path) -> None:
            (made / "scores").mkdir()
            jsonl.write(made / self.scores_file, score_rows(self.judge, self.config.trait, jsonl.read(folder / "eval.jsonl")))

        self._stage(cycle, f"judge:{self.judge.name}-{self.judge_hash[:8]}", inputs, [self.scores_file], produce)

    # ---- running

    def cycle_done(self, cycle: int) -> bool:
        """Whether every stage of a cycle has its marker."""
        marker = store.read_marker(self.cycle_folder(cycle))
        wanted = ["evaluate", f"judge:{self.judge.name}-{self.judge_hash[:8]}"]
        if cycle >= 0:
            wanted += ["data", "train"] + (["sample"] if self._samples_at(cycle) else [])
        return all(name in marker for name in wanted)

    def _samples_at(self, cycle: int) -> bool:
        return cycle < min(self.config.last_cycle, len(self.plan.prompts))

    def next_cycle(self) -> int | None:
        """The first cycle that is not done, -1 for the base model; None when the chain is complete."""
        return next((k for k in range(BASE, self.config.last_cycle + 1) if not self.cycle_done(k)), None)

    def run_cycle(self, cycle: int, sample: bool = True) -> None:
        """Every stage of one cycle, those done already skipped; without the next cycle's samples where `sample` is False."""
        if cycle >= 0:
            if self.config.branch is None or cycle > self.config.branch.at:
                self._train(cycle, self._data(cycle))
            if sample and self._samples_at(cycle):
                self._draw(cycle)
        self._evaluate(cycle)
        self._judge(cycle)
        complete = self.next_cycle() is None
        self._write_manifest("complete" if complete else "running")

    def step(self) -> Any:
        """Run the next cycle (the base model's evaluation comes before cycle 0) and return a view of the chain so far."""
        from selftrain.display import CycleView

        cycle = self.next_cycle()
        if cycle == BASE:
            self.run_cycle(BASE)
            cycle = self.next_cycle()
        if cycle is not None:
            self.run_cycle(cycle)
        return CycleView(self, self.config.last_cycle if cycle is None else cycle)

    def run(self, prune: str = "none", progress: Progress | None = None) -> Any:
        """Run or resume every cycle. prune: `none` keeps all adapters, `all` deletes them when the chain is complete, `but-last` keeps the last."""
        from selftrain.display import CycleView

        todo = [k for k in range(BASE, self.config.last_cycle + 1) if not self.cycle_done(k)]
        own = progress is None
        self._progress = progress or Progress(len(todo))
        try:
            for cycle in todo:
                self.run_cycle(cycle)
                self._progress.cycle_done(self, cycle)
        finally:
            if own:
                self._progress.close()
            self._progress = None
        self._write_manifest("complete")
        if prune != "none":
            for cycle in range(self.config.last_cycle + (1 if prune == "all" else 0)):
                store.prune(self.cycle_folder(cycle), "train", "adapter")
        return CycleView(self, self.config.last_cycle)

    def branch(self, at: int, **changes: Any) -> Chain:
        """A new chain that has cycles up to `at` in common with this one and goes on with changed settings from there."""
        fixed = sorted({"trait", "model", "n_seed", "seed_file", "lora_rank", "lora_alpha", "null"} & changes.keys())
        if fixed:
            raise InputError(f"{fixed[0]} decides cycle 0 and cannot change in a branch; start a new chain")
        missing = [k for k in range(BASE, at + 1) if not self.cycle_done(k)]
        if missing or at < 0:
            raise InputError(
                f"{self.config.chain_id}: cycle {max(at, 0) if at < 0 else missing[0]} is not done; a branch starts from a finished cycle"
            )
        origin = {"chain": self.config.chain_id, "at": at, "n_sampled": self.config.n_sampled, "seed": self.config.data_seed}
        chain = Chain(self.config.changed(**changes, branch=origin), resident=self._resident)
        for cycle in range(BASE, at + 1):
            store.copy_cycle(self.cycle_folder(cycle), chain.cycle_folder(cycle), leave_out="sample" if cycle == at else None)
        chain._write_manifest()
        return chain

    def cycle_metrics(self, cycle: int) -> dict[str, Any]:
        """The cycle's row of numbers, from its stored answers, scores and training log."""
        return metrics.cycle_row(self.cycle_folder(cycle), self.scores_file, len(self.plan.evaluation) * self.config.n_answers)


def _label(cycle: int) -> str:
    return "base" if cycle == BASE else f"cycle {cycle}"


def _without_times(record: dict) -> dict:
    """A training record without what differs between two equal runs."""
    record["history"] = [
        {k: v for k, v in h.items() if not k.endswith(("_per_second", "runtime")) and k != "epoch"} for h in record["history"]
    ]
    return record
