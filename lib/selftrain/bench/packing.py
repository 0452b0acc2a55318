"""Chains an hour with several processes on one device: each runs whole chains of this project, judged, on a resident model of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from selftrain import memory, mps
from selftrain.bench import measure
from selftrain.bench.sizes import Sizes, config

CYCLES = 7  # cycles 0-6 make a chain
PATIENCE = 900  # seconds that the slowest process may take to get ready


def worker(index: int, folder: Path, sizes: Sizes, device: str) -> None:
    """One process: get ready (load, compile, one cycle of a chain), wait for the others, then run chains until time is up; writes <index>.json."""
    os.environ["SELFTRAIN_BATCH"] = "1"
    from selftrain.bench import ours
    from selftrain.chain import BASE, Chain

    resident = ours.opened(sizes, device)
    warm = Chain(config(sizes, panel=f"warm{index}", seed=1000 + index), resident=resident)
    for cycle in (BASE, 0, 1):
        warm.run_cycle(cycle)
    ready = measure.since_start()
    (folder / f"{index}.ready").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
    until, ended, seed = float((folder / "go").read_text()), [], 0
    while time.time() < until:
        chain = Chain(config(sizes, panel=f"run{index}", seed=index + 100 * seed), resident=resident)
        seed += 1
        for cycle in range(BASE, CYCLES):
            chain.run_cycle(cycle)
            if cycle != BASE and time.time() <= until:
                ended.append(time.time())
            if time.time() > until:
                break
    result = {"ready_seconds": ready, "cycles": len(ended), "peak_memory_gb": measure.peak_memory_gb()}
    (folder / f"{index}.json").write_text(json.dumps(result))


def run(sizes: Sizes, device: str, jobs: int, service: bool = True) -> dict[str, Any]:
    """The part `packing_<jobs>` (`packing_<jobs>_turns`: without NVIDIA's service, mps.py): cycles that ended within the window, all processes together, as chains of seven cycles an hour.

    A cycle here also writes its files, takes likelihoods under the base model and is judged, which the baseline's does not.
    """
    wanted = service and jobs > 1 and device == "cuda"
    with tempfile.TemporaryDirectory() as scratch, mps.shared_device(wanted) as clients:
        folder = Path(scratch)
        env = {**os.environ, **memory.environment_for(jobs), **clients, "SELFTRAIN_RESULTS": str(folder / "results")}
        command = [
            sys.executable,
            "-m",
            "selftrain.bench",
            "worker",
            str(folder),
            "--device",
            device,
            "--sizes",
            sizes_json(sizes),
            "--index",
        ]
        logs = [open(folder / f"{i}.log", "w") for i in range(jobs)]  # noqa: SIM115
        processes = [subprocess.Popen([*command, str(i)], env=env, stdout=log, stderr=log) for i, log in enumerate(logs)]
        try:
            _await(lambda: all((folder / f"{i}.ready").exists() for i in range(jobs)), processes, folder, PATIENCE)
            (folder / "go.new").write_text(str(time.time() + sizes.packing_seconds))
            os.replace(folder / "go.new", folder / "go")
            _await(lambda: all(p.poll() is not None for p in processes), processes, folder, sizes.packing_seconds + PATIENCE)
        finally:
            for process in processes:
                process.kill()
            for log in logs:
                log.close()
        found = [json.loads((folder / f"{i}.json").read_text()) for i in range(jobs)]
    cycles = sum(f["cycles"] for f in found)
    return {
        "jobs": jobs,
        "window_seconds": sizes.packing_seconds,
        "cycles": cycles,
        "chains_per_hour": cycles / CYCLES / sizes.packing_seconds * 3600,
        "startup_seconds": measure.spread([f["ready_seconds"] for f in found]),
        "peak_memory_gb": sum(f["peak_memory_gb"] for f in found),
        "memory_share": memory.share_for(jobs),
        "at_once": wanted and bool(clients),
    }


def sizes_json(sizes: Sizes) -> str:
    """Sizes for a worker's command line."""
    return json.dumps(vars(sizes))


def _await(condition, processes: list[subprocess.Popen], folder: Path, seconds: float) -> None:
    """Wait for a condition; RuntimeError with the last line of a log where a process failed or time ran out."""
    until = time.monotonic() + seconds
    while not condition():
        failed = [i for i, p in enumerate(processes) if p.poll() not in (None, 0)]
        if failed or time.monotonic() > until:
            lines = (folder / f"{(failed or [0])[0]}.log").read_text().strip().splitlines() or ["no output"]
            raise RuntimeError(
                f"process {failed[0] if failed else '?'}: {lines[-1]}" if failed else f"not ready in {seconds:g} s: {lines[-1]}"
            )
        time.sleep(0.2)
