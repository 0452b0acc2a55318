"""Chains an hour with several processes on one device: each runs whole chains of this project, judged, on a resident model of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selftrain import jsonl, memory, mps
from selftrain.bench import measure
from selftrain.bench.sizes import Sizes, config

CYCLES = 7  # cycles 0-6 make a chain
PATIENCE = 900  # seconds that the slowest process may take to get ready


def worker(index: int, folder: Path, sizes: Sizes, device: str) -> None:
    """One process: get ready (load, compile, one cycle of a chain), then run chains in every window that asks for it, until told to stop."""
    os.environ["SELFTRAIN_BATCH"] = "1"
    parent = os.getppid()
    from selftrain.bench import ours
    from selftrain.chain import BASE, Chain

    resident = ours.opened(sizes, device)
    warm = Chain(config(sizes, panel=f"warm{index}", seed=1000 + index), resident=resident)
    for cycle in (BASE, 0, 1):
        warm.run_cycle(cycle)
    jsonl.write_text(folder / f"{index}.ready", json.dumps(measure.since_start()))
    while folder.exists() and not (folder / "stop").exists() and os.getppid() == parent:
        for go in sorted(folder.glob("*.go")):
            jobs, done = int(go.stem), folder / f"{index}.of{go.stem}"
            if index < jobs and not done.exists():
                measure.forget_peak()
                ended = _cycles(resident, sizes, index, jobs, json.loads(go.read_text()))
                jsonl.write_text(done, json.dumps({"cycles": ended, "peak_memory_gb": measure.peak_memory_gb()}))
        time.sleep(0.05)


def _cycles(resident: Any, sizes: Sizes, index: int, jobs: int, until: float) -> int:
    """Run chain after chain until a moment (seconds since the epoch); how many cycles ended by then."""
    from selftrain.chain import BASE, Chain

    ended, begun = 0, 0
    while time.time() < until:
        seed = 10_000 * jobs + 100 * begun + index  # no other window's, whose cycle 0 would be found done
        chain = Chain(config(sizes, panel=f"run{index}of{jobs}", seed=seed), resident=resident)
        begun += 1
        for cycle in range(BASE, CYCLES):
            chain.run_cycle(cycle)
            if time.time() > until:
                break
            ended += cycle != BASE
    return ended


def run(sizes: Sizes, device: str, levels: Sequence[int], service: bool = True) -> Iterator[dict[str, Any]]:
    """The parts `packing_<jobs>` (`packing_<jobs>_turns`: without NVIDIA's service, mps.py), one of `levels` after the other: cycles that
    ended within the window, all its processes together, as chains of seven cycles an hour.

    As many processes as the greatest level has are started once; in a smaller one the others wait. A cycle here also writes its files,
    takes likelihoods under the base model and is judged, which the baseline's does not.
    """
    most = max(levels)
    wanted = service and most > 1 and device == "cuda"
    with tempfile.TemporaryDirectory() as scratch, mps.shared_device(wanted) as clients:
        folder = Path(scratch)
        env = {**os.environ, **memory.environment_for(most), **clients, "SELFTRAIN_RESULTS": str(folder / "results")}
        command = [
            sys.executable,
            "-m",
            "selftrain.bench",
            "worker",
            str(folder),
            "--device",
            device,
            "--sizes",
            json.dumps(vars(sizes)),
            "--index",
        ]
        logs = [open(folder / f"{i}.log", "w") for i in range(most)]  # noqa: SIM115
        processes = [subprocess.Popen([*command, str(i)], env=env, stdout=log, stderr=log) for i, log in enumerate(logs)]
        try:
            ready = _await([folder / f"{i}.ready" for i in range(most)], processes, folder, PATIENCE)
            for jobs in levels:
                seconds = sizes.packing_long if service and jobs == max(sizes.packing_jobs) else sizes.packing_seconds
                jsonl.write_text(folder / f"{jobs}.go", json.dumps(time.time() + seconds))
                found = _await([folder / f"{i}.of{jobs}" for i in range(jobs)], processes, folder, seconds + PATIENCE)
                cycles = sum(f["cycles"] for f in found)
                yield {
                    "jobs": jobs,
                    "started": most,
                    "window_seconds": seconds,
                    "cycles": cycles,
                    "chains_per_hour": cycles / CYCLES / seconds * 3600,
                    "startup_seconds": measure.spread(ready),
                    "peak_memory_gb": sum(f["peak_memory_gb"] for f in found),
                    "memory_share": memory.share_for(most),
                    "at_once": wanted and bool(clients) and jobs > 1,
                }
            (folder / "stop").touch()
            for process in processes:
                process.wait(PATIENCE)
        finally:
            for process in processes:
                process.kill()
            for log in logs:
                log.close()


def _await(files: list[Path], processes: list[subprocess.Popen], folder: Path, seconds: float) -> list[Any]:
    """What is in some JSON files, once all are there; RuntimeError with the last line of a log where a process ended or time ran out."""
    until = time.monotonic() + seconds
    while not all(file.exists() for file in files):
        ended = [i for i, p in enumerate(processes) if p.poll() is not None]
        if ended or time.monotonic() > until:
            lines = (folder / f"{(ended or [0])[0]}.log").read_text().strip().splitlines() or ["no output"]
            raise RuntimeError(f"process {ended[0]}: {lines[-1]}" if ended else f"not ready in {seconds:g} s: {lines[-1]}")
        time.sleep(0.2)
    return [json.loads(file.read_text()) for file in files]
