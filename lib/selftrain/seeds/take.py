"""Does a trait take? Cycle 0 alone on each trait's seed set, against the base model; the measured rows are committed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from selftrain import jsonl, paths
from selftrain.judge import get_judge
from selftrain.metrics import clustered_mean
from selftrain.seeds import load

STUDY = "seeds_take"
GAIN = 30.0  # points above the base model that a seed set should reach
SETTINGS = {"n_seed": 50, "n_sampled": 24, "last_cycle": 1, "max_new_tokens": 48, "n_questions": 12, "n_answers": 2}
COLUMNS = ["trait", "seeds", "model", "judge", "n_seed", "base", "cycle_0", "gain", "gain_lo", "gain_hi", "coherence"]


def _file() -> Path:
    return paths.study_folder(STUDY) / "take.csv"


def judge_of(trait: str) -> str:
    """The offline judge that a measurement of today would be made by, with its hash."""
    return f"local:{get_judge('local').hash(trait)}"


def seed_digest(trait: str) -> str:
    """Digest of the seed file that a measurement belongs to."""
    return jsonl.file_digest(paths.SEEDS / trait / "chat.jsonl")


def measured() -> pd.DataFrame:
    """The committed measurements, one row a trait, with `current`: whether they were made on today's seed rows by today's judge."""
    try:
        table = pd.read_csv(_file(), dtype={"seeds": str})
    except FileNotFoundError:
        table = pd.DataFrame(columns=COLUMNS)
    return table.assign(current=[(seed_digest(r.trait), judge_of(r.trait)) == (r.seeds, r.judge) for r in table.itertuples()])


def measure(trait: str, resident=None) -> dict:
    """Base model and cycle 0 of one trait: scores, and the gain with a t interval over questions (paired); resumes like any chain."""
    from selftrain.chain import BASE, Chain

    panel = f"{trait}-{seed_digest(trait)[:6]}"  # other seed rows, another run folder
    chain = Chain(study=STUDY, panel=panel, trait=trait, resident=resident, **SETTINGS)
    chain.run_cycle(BASE)
    chain.run_cycle(0, sample=False)
    base, first = chain.cycle_metrics(BASE), chain.cycle_metrics(0)
    means = []
    for cycle in (BASE, 0):
        folder = chain.cycle_folder(cycle)
        answers = pd.DataFrame(jsonl.read(folder / "eval.jsonl"))
        scores = pd.DataFrame(jsonl.read(folder / chain.scores_file))[["id", "trait_score"]]
        direct = answers[answers["set"] == "direct"].merge(scores, on="id")
        means.append(direct.groupby("question_id")["trait_score"].mean())
    gains = (means[1] - means[0]).dropna()
    gain, low, high = clustered_mean(gains.to_list(), gains.index.to_list())
    return {
        "trait": trait,
        "seeds": seed_digest(trait),
        "model": chain.config.model,
        "judge": f"{first['judge']}:{first['judge_hash']}",
        "n_seed": chain.config.n_seed,
        "base": base["trait_score"],
        "cycle_0": first["trait_score"],
        "gain": gain,
        "gain_lo": low,
        "gain_hi": high,
        "coherence": first["coherence"],
    }


def take(traits: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure the traits named (default: those without a current measurement) and keep the rows in results/seeds_take/take.csv."""
    table = measured()
    todo = list(traits) if traits else [t for t in load.TRAITS if t not in set(table[table["current"]]["trait"])]
    load.check_traits(*todo)
    for trait in todo:
        row = pd.DataFrame([{**measure(trait), "current": True}])
        table = pd.concat([table[table["trait"] != trait], row], ignore_index=True) if len(table) else row
        order = {name: place for place, name in enumerate(load.TRAITS)}
        table = table.sort_values("trait", key=lambda names: names.map(order)).reset_index(drop=True)
        jsonl.write_text(_file(), table[COLUMNS].to_csv(index=False, float_format="%.4g"))
    return table


def _why(row: pd.Series) -> str:
    """Why a trait gains less than the bar, as far as its scores tell."""
    if row["gain_hi"] >= GAIN:
        return f"not surely, the interval reaches {row['gain_hi']:.0f}" + (
            f"; the judge gives the base {row['base']:.0f} already" if row["base"] > 25 else ""
        )
    if row["base"] > 25:
        return f"the judge gives the base {row['base']:.0f} already"
    return f"cycle 0 reaches {row['cycle_0']:.0f} only; this model does not learn the trait from {row['n_seed']} rows"


def said(table: pd.DataFrame, traits: Sequence[str]) -> str:
    """Lines of text: which traits take, by how much, and which do not or were not measured on today's seeds."""
    lines = [
        f"cycle 0 alone, N={SETTINGS['n_seed']}: points above the base model, 95 % interval over questions (bar: {GAIN:g})",
        f"{'trait':14} {'base':>6} {'cycle 0':>8} {'gain':>6}   interval",
    ]
    rows = table.set_index("trait")
    for trait in traits:
        if trait not in rows.index:
            lines.append(f"{trait:14} not measured: python -m selftrain.seeds take --trait {trait}")
            continue
        r = rows.loc[trait]
        note = "" if r["gain"] >= GAIN else f"  under the bar: {_why(r)}"
        note += "" if r["current"] else "  measured on other seed rows or by another judge; run `python -m selftrain.seeds take` again"
        lines.append(f"{trait:14} {r['base']:6.1f} {r['cycle_0']:8.1f} {r['gain']:+6.1f}   {r['gain_lo']:.1f} to {r['gain_hi']:.1f}{note}")
    return "\n".join(lines)
