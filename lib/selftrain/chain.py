"""A chain: base, cycle 0, cycle 1, ... each cycle in stages that are done once, marked last, and resumed where they stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selftrain import jsonl, metrics, paths, regimes, store
from selftrain.config import NOT_HASHED, ChainConfig
from selftrain.environment import environment, plain
from selftrain.errors import InputError
from selftrain.judge import Judge, get_judge
from selftrain.judge.rows import judge_stage
from selftrain.progress import Progress
from selftrain.resident import Resident
from selftrain.stages import BASE, Stages

__all__ = ["BASE", "Chain"]


class Chain(Stages):
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
        self.judge: Judge = get_judge(self.config.judge).for_study(paths.study_folder(self.config.study), self.config.judge_max_usd)
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
            ignored = NOT_HASHED
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
        return judge_stage(self.judge, self.config.trait)[1]

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
        if plain():  # another cause: nothing made the fast way is taken for it
            inputs = {**inputs, "plain": list(plain())}
        share = cycle <= 0 or name == "base_answers"  # what chains can have in common; later adapters would only fill the disk
        if not store.stage(folder, name, inputs, outputs, produce, self.shared if share else None):
            return
        with open(self.folder / "timings.jsonl", "a", encoding="utf-8") as out:
            out.write(jsonl.dumps({"cycle": cycle, "stage": name, "seconds": round(time.monotonic() - started, 3)}) + "\n")
        self._write_manifest()
        if self._on_stage:
            self._on_stage(cycle, name)

    # ---- running

    def cycle_done(self, cycle: int) -> bool:
        """Whether every stage of a cycle has its marker."""
        marker = store.read_marker(self.cycle_folder(cycle))
        wanted = ["evaluate", judge_stage(self.judge, self.config.trait)[0]]
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
        if todo:
            self.judge.ready()
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
