"""The bench's result: where it is kept, what it adds up to, which targets it reaches, and the table a person reads."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

from rich.table import Table

from selftrain import jsonl, paths
from selftrain.bench.floors import Peaks, Shape, sampling_step, training_step
from selftrain.bench.packing import CYCLES

NUMBERS = (
    # key of the parts baseline and ours, what it is, whether more is better
    ("sample_tokens_per_second", "tokens/s sampled", True),
    ("train_step_seconds", "s a training step", False),
    ("cycle_seconds", "s a cycle", False),
    ("peak_memory_gb", "peak memory, GB", False),
    ("startup_seconds", "start-up, s", False),
    ("first_sample_seconds", "first batch (recording), s", False),
    ("first_cycle_seconds", "first cycle (imports), s", False),
)
COMMITTED = paths.ROOT / "results" / "bench"


def file_for(device_name: str, quick: bool, day: date | None = None) -> Path:
    """results/bench/<device>-<date>[-quick].json"""
    name = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return paths.RESULTS / "bench" / f"{name}-{day or date.today()}{'-quick' if quick else ''}.json"


def read(path: Path) -> dict[str, Any]:
    """A result as it is kept, one without any part where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result and what it adds up to, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result |= {"floors": floors(result), "targets": targets(result), "crossover": crossover(result)}
    jsonl.write_text(path, json.dumps(result, indent=1) + "\n")


def done(result: dict[str, Any], part: str) -> dict[str, Any] | None:
    """A part's numbers, None where it has not been run or failed."""
    found = result["parts"].get(part, {})
    return found["results"] if found.get("status") == "ok" else None


def value(number: Any) -> float | None:
    """The median of a spread, or the number itself."""
    return number["median"] if isinstance(number, dict) else number


def floors(result: dict[str, Any]) -> dict[str, float]:
    """What the hardware would allow for this project's part: by key of NUMBERS, empty without that part or the device's peaks."""
    ours = done(result, "ours")
    if not ours or not result["peaks"]:
        return {}
    size, shape, peaks = result["sizes"], Shape(**ours["shape"]), Peaks(**result["peaks"])
    step = sampling_step(shape, size["batch"], ours["mean_sequence"], peaks)
    train = training_step(shape, ours["train_tokens_a_step"], peaks)
    answers = sum(  # a batch is at most `batch`, and no larger than what is asked for
        -(-n // size["batch"]) * sampling_step(shape, min(n, size["batch"]), ours["mean_sequence"], peaks)
        for n in (size["n_sampled"], size["n_eval"])
    )
    cycle = size["new_tokens"] * answers + ours["train_steps_a_cycle"] * train
    return {"sample_tokens_per_second": size["batch"] / step, "train_step_seconds": train, "cycle_seconds": cycle}


def ratio(result: dict[str, Any], key: str, more: bool) -> float | None:
    """How many times better this project is than the baseline of the same run."""
    a, b = done(result, "baseline"), done(result, "ours")
    if not a or not b or not (x := value(a[key])) or not (y := value(b[key])):
        return None
    return y / x if more else x / y


def chains_per_hour(result: dict[str, Any]) -> dict[str, float]:
    """By part: number of processes, and whether NVIDIA's service lets their kernels run at once or they take turns."""
    found = {}
    for name in result["parts"]:
        if name.startswith("packing_") and (r := done(result, name)):
            how = "" if r["jobs"] == 1 else " at once" if r.get("at_once") else " in turns"
            again = " (asked for)" if name.endswith("_turns") else ""
            found[f"{r['jobs']} process{'es' if r['jobs'] > 1 else ''}{how}{again}"] = r["chains_per_hour"]
    return found


def pairs_of_trainers(result: dict[str, Any]) -> list[tuple[str, dict, dict]]:
    """(what, TRL's numbers, Unsloth's) of every setting that both have done."""
    found = []
    for name in result["parts"]:
        if name.startswith("train_") and "_trl_" in name:
            trl, unsloth = done(result, name), done(result, name.replace("_trl_", "_unsloth_"))
            if trl and unsloth:
                found.append((f"{trl['model']}, {trl['bits']}-bit, length {trl['length']}", trl, unsloth))
    return found


def targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets for one H100, each with the value reached (None where it was not measured) and whether that is enough."""
    rows: list[tuple[str, float | None, float, bool]] = []
    ours, base = done(result, "ours"), done(result, "baseline")
    windows = [r for name in result["parts"] if name.startswith("packing_") and (r := done(result, name))]
    packed = max((r["chains_per_hour"] for r in windows if r["jobs"] > 1), default=None)
    rows.append(("sampling, times the baseline", ratio(result, "sample_tokens_per_second", True), 10, True))
    rows.append(("sampling, tokens/s", value(ours["sample_tokens_per_second"]) if ours else None, 60_000, True))
    rows.append(("a cycle in one process, times the baseline", ratio(result, "cycle_seconds", False), 2.5, True))
    alone = 3600 / (CYCLES * value(base["cycle_seconds"])) if base else None
    rows.append(("throughput with packing, times the baseline", packed / alone if packed and alone else None, 10, True))
    minute = max((r["chains_per_hour"] / 60 for r in windows if r["window_seconds"] >= 360), default=None)
    rows.append(("chains (cycles 0-6) a minute, over at least 6 minutes", minute, 9, True))
    for what, trl, unsloth in pairs_of_trainers(result):
        if what.startswith("4b"):
            rate = value(unsloth["train_tokens_per_second"]) / value(trl["train_tokens_per_second"])
            rows.append((f"Unsloth's training tokens/s, times TRL's ({what})", rate, 1.2, True))
            memory = unsloth["memory_without_weights_gb"] / trl["memory_without_weights_gb"]
            rows.append((f"Unsloth's memory without weights, times TRL's ({what})", memory, 0.6, False))
    return [
        {
            "target": what,
            "wanted": wanted,
            "at_least": more,
            "found": found,
            "reached": None if found is None else (found >= wanted) == more or found == wanted,
        }
        for what, found, wanted, more in rows
    ]


def crossover(result: dict[str, Any]) -> float | None:
    """Parameters of the smallest model from which on Unsloth trains faster than TRL (16-bit); None where it never does."""
    faster = {
        trl["shape"]["parameters"]: value(unsloth["train_tokens_per_second"]) > value(trl["train_tokens_per_second"])
        for _, trl, unsloth in pairs_of_trainers(result)
        if trl["bits"] == 16
    }
    above = None
    for size in sorted(faster, reverse=True):
        if not faster[size]:
            break
        above = size
    return above


def newest(kind: str = "cuda", committed: bool = False) -> tuple[Path, dict[str, Any]] | None:
    """The newest result of a device type, one's own before the committed ones; a quick one, or one without training parts, only where there
    is no other."""
    for folder in [COMMITTED] if committed else [paths.RESULTS / "bench", COMMITTED]:
        if found := results(folder, kind):
            return max(reversed(found), key=lambda f: (not f[1]["quick"], bool(pairs_of_trainers(f[1])), f[1]["date"]))
    return None


def results(folder: Path, kind: str) -> list[tuple[Path, dict[str, Any]]]:
    """The results of a device type in a folder, oldest first."""
    found = [(path, result) for path in folder.glob("*.json") if done(result := read(path), "ours") and result["device"]["type"] == kind]
    return sorted(found, key=lambda f: (f[1]["date"], f[0].stem))


def runs(device: str) -> list[list[str]]:
    """Rows under RUNS, in Markdown: every committed result of a CUDA device but the quick ones, oldest first; `x`: times better than its baseline."""
    rows = []
    for path, result in results(COMMITTED, "cuda"):
        if result["quick"] or result["device"]["name"] != device:
            continue
        ours, packed = done(result, "ours"), chains_per_hour(result)
        row = [f"[{result['date']}](results/bench/{path.name}), {result['parts']['ours']['commit'][:7]}"]
        for key, _, more in NUMBERS[:3]:
            times = ratio(result, key, more)
            row.append(_shown(value(ours[key])) + (f" ({times:.1f} x)" if times else ""))
        row += [_shown(packed.get(name)) for name in ("1 process", "8 processes at once")]
        reached = {t["target"]: t["reached"] for t in targets(result) if t["reached"] is not None}
        missed = "; ".join(target for target, good in reached.items() if not good) or "none"
        rows.append([*row, f"{missed} (of {len(reached)} measured)"])
    return rows


def _shown(number: Any) -> str:
    def one(x: float) -> str:
        return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"

    if number is None:
        return "-"
    return f"{one(number['median'])} ({one(number['min'])}-{one(number['max'])})" if isinstance(number, dict) else one(number)


def notes(result: dict[str, Any]) -> list[str]:
    """What is to be known of parts, once a text: `note`, written by hand beside a part's numbers and gone when the part is measured again."""
    by_text: dict[str, list[str]] = {}
    for name, part in result["parts"].items():
        if part.get("note"):
            by_text.setdefault(part["note"], []).append(name)
    return [f"{', '.join(names)}: {text}" for text, names in by_text.items()]


RUNS = ["run", *(what for _, what, _ in NUMBERS[:3]), "chains/hour, 1 process", "8 processes", "targets missed"]
COMPARED = ["", "plain baseline", "this project", "times", "floor"]
TRAINED = ["TRL / Unsloth, Qwen3's shapes", "tokens/s", "memory without weights, GB", "peak, GB", "tokens/s sampled"]


def compared(result: dict[str, Any]) -> list[list[str]]:
    """Rows under COMPARED: median (least-greatest) of the baseline and of this project, how many times better, the floor."""
    base, ours, floor = done(result, "baseline") or {}, done(result, "ours") or {}, floors(result)
    rows = []
    for key, what, more in NUMBERS:
        times = ratio(result, key, more)
        rows.append([what, _shown(base.get(key)), _shown(ours.get(key)), f"{times:.2f}" if times else "-", _shown(floor.get(key))])
    for jobs, rate in chains_per_hour(result).items():
        alone = 3600 / (CYCLES * value(base["cycle_seconds"])) if base else None
        rows.append([f"chains/hour, {jobs}", _shown(alone), _shown(rate), f"{rate / alone:.2f}" if alone else "-", ""])
    return rows


def trained(result: dict[str, Any]) -> list[list[str]]:
    """Rows under TRAINED: TRL's and Unsloth's numbers of every setting that both have done."""
    keys = ("train_tokens_per_second", "memory_without_weights_gb", "peak_memory_gb", "sample_tokens_per_second")
    how = {"checkpointing": "checkpointing", "replayed": "TRL on recorded passes"}
    return [
        [
            ", ".join([what, *(t for k, t in how.items() if trl.get(k))]),
            *(f"{_shown(value(trl[k]))} / {_shown(value(unsloth[k]))}" for k in keys),
        ]
        for what, trl, unsloth in pairs_of_trainers(result)
    ]


def tables(result: dict[str, Any]) -> list[Table]:
    """The tables of a result: baseline against this project, packing, trainers, correctness, targets."""
    quick = ", quick sizes" if result["quick"] else ""
    made = []
    for title, head, rows in (
        (f"{result['device']['name']}, {result['date']}{quick}: median (least-greatest)", COMPARED, compared(result)),
        ("training with random weights", TRAINED, trained(result)),
    ):
        table = Table(title=title)
        for column in head:
            table.add_column(column, justify="right" if head is COMPARED and column else "left")
        for row in rows:
            table.add_row(*row)
        made += [table] if rows else []
    return [*made, _checks(result)]


def _checks(result: dict[str, Any]) -> Table:
    table = Table(title="targets (for one H100) and correctness")
    for column in ("", "wanted", "found", ""):
        table.add_column(column)
    if found := done(result, "correctness"):
        logps, scores = found["logprobs"], found["scores"]
        for name in ("fast_against_plain", "plain_cache_against_plain"):
            gap, limit = logps[name], logps["limit"]
            good = "" if name != "fast_against_plain" else "within noise" if logps["within_noise"] else "[red]outside[/red]"
            wanted = f"mean {limit['mean']:g}, max {limit['max']:g}"
            table.add_row(
                f"log-probs, {name.replace('_', ' ')} ({logps['dtype'][6:]})", wanted, f"mean {gap['mean']:.2g}, max {gap['max']:.2g}", good
            )
        if "as_exact" in logps:
            fast, plain = (logps[f"{name}_against_float32"]["mean"] for name in ("fast", "plain"))
            good = "as exact" if logps["as_exact"] else "[red]less exact[/red]"
            table.add_row("log-probs against float32, mean", f"plain {plain:.2g}", f"fast {fast:.2g}", good)
        if trained := found.get("losses"):
            good = "within noise" if trained["within_noise"] else "[red]outside[/red]"
            table.add_row(
                f"losses of {trained['steps']} steps, recorded against own",
                f"within {trained['limit']:.0%}",
                f"{trained['max_relative']:.2%}, {_shown(trained['replayed_step_seconds'])} and {_shown(trained['own_step_seconds'])} s a step",
                good,
            )
        same = "same" if scores["same_distribution"] else "[red]differ[/red]"
        table.add_row(
            f"trait scores of {scores['answers'][0]} answers, KS p", f"at least {scores['limit']:g}", f"{scores['p_value']:.3g}", same
        )
    for row in targets(result) if result["device"]["type"] == "cuda" else ():
        verdict = {None: "not measured", True: "reached", False: "[red]missed[/red]"}[row["reached"]]
        table.add_row(row["target"], f"{'at least' if row['at_least'] else 'at most'} {row['wanted']:,g}", _shown(row["found"]), verdict)
    return table
