"""python -m selftrain.bench run [--device cpu|cuda] [--quick] [--part NAME ...] [--again] [--seconds S] | show [FILE]"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from selftrain import paths
from selftrain.bench import floors, large, report
from selftrain.bench.sizes import Sizes, sizes_for
from selftrain.environment import environment
from selftrain.errors import InputError, run_command

LIMIT = 3600  # seconds a part may take
BUSY = 0.75  # load a core, before a part starts, from which a CPU's timings are called unreliable


def part_names(sizes: Sizes, device: str) -> list[str]:
    """Every part of the bench on a device, in the order they run."""
    names = ["baseline", "ours", "correctness"]
    if device == "cpu":
        return names
    packed = [f"packing_{jobs}" for jobs in sizes.packing_jobs]
    return [*names, *packed, f"{packed[-1]}_turns", *large.parts(sizes)]


def run_part(name: str, sizes: Sizes, device: str) -> dict[str, Any]:
    """One part's numbers, in this process."""
    if name.startswith("packing_"):
        from selftrain.bench import packing

        return packing.run(sizes, device, int(name.split("_")[1]), service=not name.endswith("_turns"))
    if name.startswith("train_"):
        return large.run(sizes, device, name)
    from selftrain.bench import baseline, correctness, ours

    return {"baseline": baseline, "ours": ours, "correctness": correctness}[name].run(sizes, device)


def in_a_process(name: str, sizes: Sizes, device: str) -> dict[str, Any]:
    """One part in a process of its own: {status, seconds, results} or {status, seconds, error}. A failure is a result; the others go on."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "out.json", Path(folder) / "log"
        command = [
            sys.executable,
            "-m",
            "selftrain.bench",
            "part",
            name,
            "--device",
            device,
            "--sizes",
            json.dumps(asdict(sizes)),
            "--out",
            str(out),
        ]
        with open(log, "w") as sink:
            try:
                code = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, timeout=LIMIT, env=_environment(device)).returncode
            except subprocess.TimeoutExpired:
                code = f"more than {LIMIT} s"
        seconds = round(time.monotonic() - started, 1)
        if code == 0 and out.exists():
            return {"status": "ok", "seconds": seconds, "results": json.loads(out.read_text())}
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return {"status": "failed", "seconds": seconds, "error": lines[-1][:300] if lines else f"ended with {code}", "log": lines[-25:]}


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
    sizes = sizes_for(device, quick)
    sizes = replace(sizes, packing_seconds=seconds) if seconds else sizes
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
    for name in only or names:
        if not again and not only and report.done(report.read(path), name):
            continue
        print(f"{name} ...", end=" ", flush=True)
        busy = os.getloadavg()[0]
        part = {**in_a_process(name, sizes, device), "load_before": round(busy, 2), "commit": about["environment"]["commit"]}
        print(part.get("error") or "done", f"({part['seconds']:.0f} s)", flush=True)
        result = report.read(path) | about  # as it is now: another run may have added a part
        result["parts"][name] = part
        report.write(path, result)
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
    verb.add_argument("--seconds", type=int, help="length of each packed run (the target asks for 360)")
    verb = verbs.add_parser("show", help="print a result again")
    verb.add_argument("file", nargs="?", type=Path)
    for name in ("part", "worker"):  # what `run` starts
        verb = verbs.add_parser(name)
        verb.add_argument("name")
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

        return packing.worker(args.index, Path(args.name), sizes, args.device)
    args.out.write_text(json.dumps(run_part(args.name, sizes, args.device)))
    return None


if __name__ == "__main__":
    run_command(main)
