"""python -m selftrain.bench run [--device cpu|cuda] [--quick] [--part NAME ...] [--again] [--seconds S] | show [FILE]"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from selftrain import jsonl, paths
from selftrain.bench import floors, large, report
from selftrain.bench.sizes import Sizes, sizes_for
from selftrain.environment import PLAIN, environment, plain
from selftrain.errors import InputError, run_command

LIMIT = 3600  # seconds a part may take
GRACE = 120  # seconds that a process may take to end after its last part, or where it is told to
BUSY = 0.75  # load a core, before a part starts, from which a CPU's timings are called unreliable


def part_names(sizes: Sizes, device: str) -> list[str]:
    """Every part of the bench on a device, in the order they run."""
    names = ["baseline", "ours", "correctness"]
    if device == "cpu":
        return names
    packed = [f"packing_{jobs}" for jobs in sizes.packing_jobs]
    return [*names, *packed, *large.parts(sizes), f"{packed[-1]}_turns"]


def groups(names: Sequence[str]) -> list[list[str]]:
    """Parts that share a process, in their order: what packed processes do together, and what one trainer does at one precision."""
    found: dict[str, list[str]] = {}
    for name in names:
        words = name.split("_")
        packed = words[0] == "packing" and words[-1] != "turns"
        found.setdefault("packing" if packed else "_".join(words[2:4]) if words[0] == "train" else name, []).append(name)
    return list(found.values())


def measured(names: list[str], sizes: Sizes, device: str) -> Iterator[dict[str, Any]]:
    """The numbers of parts that share a process, in this process, each as it ends."""
    if names[0].startswith("packing_"):
        from selftrain.bench import packing

        yield from packing.run(sizes, device, [int(name.split("_")[1]) for name in names], service=not names[0].endswith("_turns"))
    elif names[0].startswith("train_"):
        yield from large.run(sizes, device, names)
    else:
        from selftrain.bench import baseline, correctness, ours

        yield {"baseline": baseline, "ours": ours, "correctness": correctness}[names[0]].run(sizes, device)


def in_a_process(names: list[str], sizes: Sizes, device: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parts in a process of their own: (name, {status, seconds, results}) as each ends; last, where one fails, its {status, seconds, error}.

    Those after a failed one are not run. Seconds count from the part before, for the first from the start of the process.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-m", "selftrain.bench", "parts", *names, "--device", device, "--sizes", json.dumps(asdict(sizes))]
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(
                [*command, "--out", scratch], stdout=log, stderr=subprocess.STDOUT, env=_environment(device), start_new_session=True
            )
        finished = False
        try:
            for name in names:
                started, ended, out = time.monotonic(), False, folder / f"{name}.json"
                while not out.exists() and not ended and time.monotonic() - started < LIMIT:
                    time.sleep(0.2)
                    ended = process.poll() is not None
                part: dict[str, Any] = {"status": "ok", "seconds": round(time.monotonic() - started, 1)}
                if out.exists():
                    yield name, {**part, "results": json.loads(out.read_text())}
                    continue
                lines = [line for line in (folder / "log").read_text(errors="replace").splitlines() if line.strip()]
                error = (lines or [f"ended with {process.returncode}"])[-1][:300] if ended else f"more than {LIMIT} s"
                yield name, {**part, "status": "failed", "error": error, "log": lines[-25:]}
                return
            finished = True
        finally:
            _end(process, finished)


def _end(process: subprocess.Popen, finished: bool) -> None:
    """Wait until a process has ended, interrupted where it has not done its work, so that it ends what it began; then kill all that it has started."""
    if not finished:
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(device: str) -> dict[str, str]:
    from selftrain import memory

    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return {**os.environ, **memory.environment_for(), **hidden, "SELFTRAIN_BATCH": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(device: str | None, quick: bool, only: list[str] | None, again: bool, seconds: int | None) -> int:
    """Run the parts that are not done yet, keep each as it ends, print the tables; exit 1 where a part failed."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device; say --device cpu")
    if plain():
        raise InputError(f"{PLAIN} is set: the bench measures both ways by itself; unset it")
    sizes = sizes_for(device, quick)
    sizes = replace(sizes, packing_long=seconds) if seconds else sizes
    names = part_names(sizes, device)
    if unknown := sorted(set(only or ()) - set(names)):
        raise InputError(f"no part {unknown[0]!r} on {device}; parts: {', '.join(names)}")
    device_name = torch.cuda.get_device_name() if device == "cuda" else f"cpu {os.uname().machine} {torch.get_num_threads()} threads"
    path = report.file_for(device_name, quick)
    peaks = floors.peaks_of(device_name) if device == "cuda" else floors.measured_cpu()
    about = {
        "date": str(date.today()),
        "quick": quick,
        "device": {"type": device, "name": device_name},
        "environment": environment(),
        "sizes": asdict(sizes),
        "peaks": asdict(peaks) if peaks else None,
    }
    waiting = groups([name for name in only or names if again or only or not report.done(report.read(path), name)])
    while waiting:
        together = waiting.pop(0)
        print(f"{', '.join(together)} ...", flush=True)
        busy = os.getloadavg()[0]
        for name, part in in_a_process(together, sizes, device):
            print(f"  {name}: {part.get('error') or 'done'} ({part['seconds']:.0f} s)", flush=True)
            result = report.read(path) | about  # as it is now: another run may have added a part
            result["parts"][name] = {**part, "load_before": round(busy, 2), "commit": about["environment"]["commit"]}
            report.write(path, result)
            if part["status"] != "ok" and (left := together[together.index(name) + 1 :]):
                waiting.insert(0, left)  # in a process of their own
    show(path)
    return int(any(p["status"] != "ok" for p in report.read(path)["parts"].values()))


def show(path: Path) -> None:
    """Print a result's tables, its failures, and where it is kept."""
    result, console = report.read(path), Console(width=140)
    for table in report.tables(result):
        console.print(table)
    for name, part in result["parts"].items():
        if part["status"] != "ok":
            console.print(f"{name} failed: {part['error']}", markup=False)
    if found := result.get("crossover"):
        console.print(
            f"Of the sizes measured, Unsloth trains faster from {found:,.0f} parameters on; trainers.CROSSOVER decides what `auto` takes."
        )
    for note in report.notes(result):
        console.print(f"Note: {note}", markup=False)
    busy = max((part.get("load_before", 0.0) for part in result["parts"].values()), default=0.0)
    if result["device"]["type"] == "cpu" and busy > BUSY * (os.cpu_count() or 1):
        console.print(
            f"Other work kept this machine busy (load {busy:.1f} on {os.cpu_count()} cores): the ratios above are not to be relied on."
        )
    peaks = result["peaks"]
    console.print(
        f"Floors: weights and caches read once a step, 6 operations a parameter and token; {peaks['source'] if peaks else 'this device is not in the table'}."
    )
    console.print(f"Kept in {paths.shown(path)}")


def main() -> int | None:
    parser = argparse.ArgumentParser(
        prog="python -m selftrain.bench", description="A plain baseline against this project, on the same work."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run", help="run what is not done today yet, and print the tables")
    verb.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    verb.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    verb.add_argument("--part", action="append", help="only this part (repeatable), also where it is done")
    verb.add_argument("--again", action="store_true", help="also the parts that are done")
    verb.add_argument("--seconds", type=int, help="length of the longest packed run (the target asks for 360)")
    verb = verbs.add_parser("show", help="print a result again")
    verb.add_argument("file", nargs="?", type=Path)
    for name in ("parts", "worker"):  # what `run` starts
        verb = verbs.add_parser(name)
        verb.add_argument("names", nargs="+")
        verb.add_argument("--device", required=True)
        verb.add_argument("--sizes", type=json.loads, required=True)
        verb.add_argument("--out", type=Path)
        verb.add_argument("--index", type=int)
    verb = verbs.add_parser("trajectory", help="per-step losses of a short training, as JSON")
    for option in ("--model", "--trainer"):
        verb.add_argument(option, required=True)
    args = parser.parse_args()
    if args.verb == "run":
        return run(args.device, args.quick, args.part, args.again, args.seconds)
    if args.verb == "show":
        path = args.file or next((found[0] for kind in ("cuda", "cpu") if (found := report.newest(kind))), None)
        if path is None or not path.exists():
            raise InputError("no result yet; run `make bench`")
        return show(path)
    if args.verb == "trajectory":
        from selftrain.bench import trajectory

        print(json.dumps(trajectory.run(args.model, args.trainer)))
        return None
    sizes = Sizes(**{key: tuple(value) if isinstance(value, list) else value for key, value in args.sizes.items()})
    if args.verb == "worker":
        from selftrain.bench import packing

        return packing.worker(args.index, Path(args.names[0]), sizes, args.device)
    for name, found in zip(args.names, measured(args.names, sizes, args.device), strict=True):
        jsonl.write_text(args.out / f"{name}.json", json.dumps(found))
    return None


if __name__ == "__main__":
    run_command(main)
