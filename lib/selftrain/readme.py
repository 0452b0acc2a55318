"""The numbers in README.md, read from results: python -m selftrain.readme write | check"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from selftrain import analysis, claims, jsonl, paths, results, rules, study
from selftrain import reruns as runs
from selftrain.bench import report
from selftrain.errors import InputError, run_command
from selftrain.figures.common import panel_order
from selftrain.rules import SUSTAINED

README = "README.md"
MAIN = "h100"  # the study that the claims are held against


def laptop() -> str:
    """Scores and verdicts of the committed laptop study, one line a chain."""
    table, scores = results.load("laptop", committed=True), results.load_scores("laptop", committed=True)
    said = rules.verdicts(rules.series(table, scores)).set_index("chain")["verdict"]
    changes = analysis.changes(table)
    rows = [
        [r.trait, f"SFT {r.init}", f"N={r.n_seed}, M={r.n_sampled}"]
        + [f"{v:.0f}" for v in (r.base, r.first, r.last)]
        + [f"{r.change:+.0f}", said[r.chain], f"{r.coherence_first:.0f} to {r.coherence_last:.0f}"]
        for r in changes.itertuples()
    ]
    last = int(changes["last_cycle"].max())
    head = ["trait", "regime", "", "base", "cycle 0", f"cycle {last}", "change", "verdict", "coherence"]
    return _table(head, rows) + "\n\nOffline judge, one training seed: an example, not a finding."


def _pooled(notebook: str) -> tuple[list[str], pd.DataFrame, pd.DataFrame]:
    """The studies that an analysis notebook of the main study reads, their committed rows and scores."""
    given = dict(study.read(MAIN).analysis)[notebook]
    names = [MAIN, *given.get("also", [])]
    return names, results.load(names, committed=True), results.load_scores(names, committed=True)


def claim_table() -> str:
    """Notebook 24's table of claims on the committed results."""
    names, rows, scores = _pooled("24_claims")
    data = claims.Data.of(rows, scores)
    devices = " and ".join(sorted(rows["device"].unique()))
    return claims.as_markdown(claims.table(data)) + f"\n\n{len(data.chains)} complete chains of {', '.join(names)}, run on {devices}."


def arms() -> str:
    """Continual minus the other arms at the last cycle, from the committed results that notebook 21 reads, and the same of coherence; betas of one seed
    each stand together."""
    _, rows, _ = _pooled("21_dpo_continual_vs_reinit")
    rows = analysis.matched(rows[(rows["null"] == "none") & rows["complete"]])
    keys = [*analysis.CELL, "minus"]
    found = pd.concat([_with_coherence(group, keys) for _, group in rows.groupby(["study", "regime"])])
    found["together"] = found["beta"].where(found["n"] > 1, "")
    lines = []
    for (regime, trait, other, cycle0, lr, n_seed, m, _), some in found.groupby(
        ["regime", "trait", "minus", "cycle0", "lr", "n_seed", "n_sampled", "together"]
    ):
        said = f"N={n_seed}, M={m}, lr {lr:g}"
        said += f", beta {_span(some['beta'])}" if some["beta"].any() else ""
        said += ", cycle 0 by DPO" if cycle0 == "dpo" else ""
        seeds = int(some["n"].iloc[0])
        interval = "{:+.0f} to {:+.0f}".format(*some[["lo", "hi"]].iloc[0]) if seeds > 1 else "one seed, no interval"
        told = [_span(some[key], "+.0f") for key in ("mean", "coherence")]
        lines.append([regime.upper(), trait, said, f"continual minus {other}", told[0], str(seeds), interval, told[1]])
    return _table(["regime", "trait", "", "at the last cycle", "points", "seeds", "95 % interval over seeds", "coherence"], lines)


def _with_coherence(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """analysis.arm_difference, and beside it the mean difference in coherence."""
    coherence = analysis.arm_difference(rows, key="coherence")[[*keys, "mean"]].rename(columns={"mean": "coherence"})
    return analysis.arm_difference(rows).merge(coherence, on=keys)


def _span(values: Iterable[float], form: str = "g") -> str:
    """One number, or the least and the greatest of several."""
    shown = [format(v, form) for v in sorted(set(values))]
    return shown[0] if shown[0] == shown[-1] else f"{shown[0]} to {shown[-1]}"


def ends() -> str:
    """What became of the chains of the main study under the default rule: counts by regime, arm and verdict; last those whose trait would be called
    amplified, by point estimate, if coherence did not count."""
    _, rows, scores = _pooled("24_claims")
    chains = rules.series(rows, scores)
    counts, anyhow = (
        rules.rates(rules.verdicts(chains, rule)).set_index(["regime", "arm"]) for rule in (SUSTAINED, replace(SUSTAINED, floor=0.0))
    )
    kinds = [name for name in (*rules.COUNTED, *rules.APART) if counts[name].any()]
    places = sorted(counts.index, key=lambda place: panel_order(f"{place[0].upper()} {place[1]}"))
    lines = [
        [place[0].upper(), place[1], *(str(n or "") for n in [*counts.loc[place, ["chains", *kinds]], anyhow.loc[place, "point"]])]
        for place in places
    ]
    return _table(["regime", "arm", "chains", *kinds, "rise at any coherence"], lines)


def reruns() -> str:
    """How much a score of the main study differs between runs of the same chain with the same seeds."""
    given = dict(study.read(MAIN).analysis)["23_noise_floor"]
    rows = results.load([MAIN, *given.get("also", [])], committed=True)
    again = {name: results.load(folder, committed=True) for name, folder in given["again"].items()}
    table = runs.scatter(runs.every_run(rows, again)).sort_values("late", kind="stable")
    lines = [
        [r.regime.upper(), r.init, str(r.chains), str(r.runs), *("" if pd.isna(sd) else f"{sd:.1f}" for sd in (r.mean, r.late, r.seeds))]
        for r in table.itertuples()
    ]
    head = [
        "regime",
        "arm",
        "chains",
        "distinct runs",
        "mean of cycles 1 to the last, between runs",
        "a cycle from 4 on, between runs",
        "the same, between seeds",
    ]
    return _table(head, lines)


def judge() -> str:
    """The offline judge's error on its validating half."""
    from selftrain.judge.validate import BARS, REPORT

    report = json.loads(REPORT.read_text(encoding="utf-8"))
    rows = [
        [
            row["trait"],
            f"{row['auc']:.3f}",
            f"{row['spearman']:.2f}",
            *(f"{row[k]:.0f}" for k in ("high", "half", "low", "other_high", "neutral")),
        ]
        for row in report["traits"]
    ]
    bars = ["*bar*"] + [
        f"{'at least' if BARS[k][1] == 'least' else 'at most'} {BARS[k][0]:g}" if k in BARS else ""
        for k in ("auc", "spearman", "high", "half", "low", "other_high", "neutral")
    ]
    head = ["offline judge, held-out rows", "AUC", "Spearman with strength", "high", "half", "low", "other traits' high", "neutral"]
    c = report["coherence"]
    said = (
        f"Coherence: AUC {c['auc']:.3f} of {c['n_good']:.0f} sound against {c['n_broken']:.0f} broken texts; sound high-trait text {c['good_high_trait']:.0f}, "
        f"loops {c['loops']:.0f}, emoji strings {c['emoji']:.0f}. "
        + (f"Bars missed: {'; '.join(report['missed'])}." if report["missed"] else "Every bar is met.")
    )
    return _table(head, [*rows, bars]) + "\n\n" + said


def speed() -> str:
    """The newest whole GPU bench that is committed: this project against a plain baseline, Unsloth against TRL, what is to be known of single
    parts; and all committed runs beside each other."""
    path, result = report.newest("cuda", committed=True)
    commit = ", ".join(sorted({part["commit"] for part in result["parts"].values()}))
    size, minutes = result["sizes"], sum(part["seconds"] for part in result["parts"].values()) / 60
    lines = [
        f"{result['device']['name']}, {result['date']}, commit {commit}, [`{path.name}`](results/bench/{path.name}): median (least-greatest). "
        f"A cycle trains on {size['n_sampled']} rows, then samples {size['n_sampled']} and {size['n_eval']} answers of up to {size['new_tokens']} tokens. "
        f"The parts took {minutes:.0f} minutes."
    ]
    lines += [_table(report.COMPARED, report.compared(result)), _table(report.TRAINED, report.trained(result))]
    lines += ["\n".join(f"- {note}" for note in report.notes(result))] if report.notes(result) else []
    return "\n\n".join([*lines, "All runs (hosts differ, and code):", _table(report.RUNS, report.runs(result["device"]["name"]))])


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows]])


BLOCKS = {"laptop": laptop, "claims": claim_table, "ends": ends, "reruns": reruns, "arms": arms, "judge": judge, "speed": speed}


def filled(text: str) -> str:
    """The text with every block between `<!-- numbers: NAME -->` and `<!-- /numbers -->` made anew."""

    def block(found: re.Match) -> str:
        name = found.group(1)
        if name not in BLOCKS:
            raise InputError(f"{README}: unknown block of numbers {name!r}; known: {', '.join(BLOCKS)}")
        return f"<!-- numbers: {name} -->\n{BLOCKS[name]()}\n<!-- /numbers -->"

    return re.sub(r"<!-- numbers: (\w+) -->\n.*?<!-- /numbers -->", block, text, flags=re.S)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m selftrain.readme", description="Numbers of README.md, read from results.")
    parser.add_argument("verb", choices=["write", "check"])
    verb = parser.parse_args().verb
    path = paths.ROOT / README
    text = path.read_text(encoding="utf-8")
    new = filled(text)
    if verb == "write":
        jsonl.write_text(path, new)
    elif new != text:
        raise InputError(f"{README}: numbers differ from results; run `python -m selftrain.readme write`")
    return 0


if __name__ == "__main__":
    run_command(main)
