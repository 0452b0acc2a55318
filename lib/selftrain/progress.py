"""Progress of long work: a live bar for a person, one line a cycle for a log."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selftrain.chain import Chain


class Progress:
    """Counts cycles done of cycles to do, over one chain or many, and estimates the time left from those done so far.

    A rich bar where someone watches; plain lines under papermill, in CI and in files (SELFTRAIN_BATCH=1 forces lines).
    """

    def __init__(self, cycles: int):
        self.total, self.done, self.started = cycles, 0, time.monotonic()
        self._bar = self._cycles = self._stage = None
        notebook = "ipykernel" in sys.modules
        if not os.environ.get("SELFTRAIN_BATCH") and (notebook or sys.stderr.isatty()):
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                transient=not notebook,
            )
            self._cycles = self._bar.add_task("cycles", total=cycles, left="")
            self._stage = self._bar.add_task("", total=None, left="")
            self._bar.start()

    def stage(self, description: str) -> None:
        """A stage begins."""
        if self._bar:
            self._bar.reset(self._stage, description=description, total=None, completed=0)

    def at(self, done: int, of: int) -> None:
        """A stage has done `done` of `of` steps."""
        if self._bar:
            self._bar.update(self._stage, completed=done, total=of)

    def advance(self, n: int) -> None:
        """A stage of unknown length has done n more."""
        if self._bar:
            self._bar.advance(self._stage, n)

    def cycle_done(self, chain: Chain, cycle: int) -> None:
        """A cycle is finished: say its score and the time left."""
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        if self._bar:
            self._bar.update(self._cycles, completed=self.done, left=f"about {left / 60:.0f} min left")
            return
        row = chain.cycle_metrics(cycle)
        scores = " ".join(
            f"{name} {row[key]:.1f}" for name, key in (("trait", "trait_score"), ("coherence", "coherence")) if row[key] is not None
        )
        name = "base" if cycle < 0 else f"cycle {cycle}"
        print(f"[{self.done}/{self.total}] {chain.config.chain_id} {name}: {scores}; about {left / 60:.1f} min left", flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()
