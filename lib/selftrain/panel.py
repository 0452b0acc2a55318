"""A panel: the grid of chains that one notebook runs, on one resident model; and the calibration of N."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from selftrain.chain import BASE, Chain
from selftrain.config import expand
from selftrain.errors import InputError
from selftrain.progress import Progress
from selftrain.resident import Resident

TARGETS = (20.0, 40.0, 60.0)


class Panel:
    """All chains of a grid but those of the ids in `leave_out`. Making one checks every chain's input; nothing heavy is loaded before `run`."""

    def __init__(self, resident: Resident | None = None, leave_out: Sequence[str] = (), **grid: Any):
        configs = expand(grid, where=f"panel {grid.get('panel', 'chains')}")
        self.chains = [Chain(config, resident=resident) for config in configs if config.chain_id not in leave_out]
        ids = [chain.config.chain_id for chain in self.chains]
        twice = {i for i in ids if ids.count(i) > 1}
        if twice:
            raise InputError(
                f"panel {grid.get('panel', 'chains')}: {sorted(twice)[0]} stands twice in the grid; take the repeated value out"
            )
        self._resident = resident

    def _share_resident(self, chain: Chain) -> None:
        if self._resident is None:
            self._resident = chain.resident
        chain._resident = self._resident

    def run(self, prune: str = "none") -> pd.DataFrame:
        """Run or resume every chain; one row a (chain, cycle). One model is loaded once, the work shared by several chains is done once."""
        progress = Progress(sum(not chain.cycle_done(k) for chain in self.chains for k in range(BASE, chain.config.last_cycle + 1)))
        try:
            for chain in self.chains:
                if chain.next_cycle() is not None:
                    self._share_resident(chain)
                chain.run(prune=prune, progress=progress)
        finally:
            progress.close()
        return self.table()

    def table(self) -> pd.DataFrame:
        """Scores so far, one row a (chain, cycle), with the settings that the grid varies."""
        rows = []
        for chain in self.chains:
            c = chain.config
            for cycle in range(BASE, c.last_cycle + 1):
                if chain.cycle_done(cycle):
                    rows.append(
                        {
                            **c.values(),
                            "chain": c.chain_id,
                            "cycle": cycle,
                            "complete": chain.next_cycle() is None,
                            **chain.cycle_metrics(cycle),
                        }
                    )
        return pd.DataFrame(rows)


def calibrate(
    candidates: Sequence[int], targets: Sequence[float] = TARGETS, resident: Resident | None = None, **settings: Any
) -> pd.DataFrame:
    """Train cycle 0 for several N and mark those whose trait score lies nearest to each target.

    One row a candidate: n_seed, trait_score with its interval, coherence, and `target`, the target it is nearest to among all
    candidates (empty for the others). The run folders are those of ordinary chains, so a study that takes such an N finds cycle 0 done.
    """
    panel = Panel(resident=resident, **{**settings, "n_seed": list(candidates)})
    rows = []
    for chain in panel.chains:
        panel._share_resident(chain)
        chain.run_cycle(BASE)
        chain.run_cycle(0, sample=False)
        row = chain.cycle_metrics(0)
        rows.append({"n_seed": chain.config.n_seed, **{k: row[k] for k in ("trait_score", "trait_lo", "trait_hi", "coherence")}})
    table = pd.DataFrame(rows).sort_values("n_seed").reset_index(drop=True)
    table["target"] = ""
    for target in targets:
        nearest = (table["trait_score"] - target).abs().idxmin()
        table.loc[nearest, "target"] = f"{table.loc[nearest, 'target']} {target:g}".strip()
    return table
