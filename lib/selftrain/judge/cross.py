"""Null chains under the judges of all traits: what a rule says about traits that nobody put in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from selftrain import paths, results, seeds
from selftrain.errors import InputError
from selftrain.judge import Answer, get_judge

CYCLES = (0, 4, 5, 6)
ANSWERS = 5  # answers a question


def picked(texts: pd.DataFrame, cycles: Sequence[int] = CYCLES, answers: int = ANSWERS) -> pd.DataFrame:
    """The first answers to every question at some cycles, of texts that are kept; InputError where fewer are kept."""
    asked = texts[texts["cycle"].isin(cycles) & (texts["sample"] < answers)]
    some = asked[asked["answer"].notna()]
    kept = some.groupby(["chain", "cycle", "question_id"]).size().reindex(asked.groupby(["chain", "cycle", "question_id"]).size().index)
    short = kept.index[~(kept >= answers)]
    if len(short) or some.empty:
        where = f"{short[0][0]}, cycle {short[0][1]}" if len(short) else "every chain"
        raise InputError(f"{where}: fewer than {answers} texts a question are kept; export them with more --texts-per-cycle")
    return some


def cross(folder: str | Path, judge_name: str = "local", cycles: Sequence[int] = CYCLES, answers: int = ANSWERS) -> pd.DataFrame:
    """Score the null chains of results/<study> with the judges of all traits; written to tables/null_traits.parquet, made anew each time.

    One row a (chain, cycle, judged): trait_score, the mean over questions of the mean over their first answers, and n_judged. The base is
    the chain's cycle 0. InputError where there is no complete null chain, or where too few of its texts are kept.
    """
    rows = results.load(folder)
    rows = rows[rows["complete"].astype(bool) & (rows["null"] != "none")]
    if rows.empty:
        raise InputError(f"{folder}: no complete null chain to judge")
    texts = results.load_texts(folder)
    texts = picked(texts[texts["chain"].isin(rows["chain"]) & (texts["set"] == "direct")], cycles, answers)
    judge = get_judge(judge_name).for_study(paths.study_folder(rows["study"].iloc[0]))
    kinds = rows.drop_duplicates("chain").set_index("chain")["regime"].map(lambda regime: "documents" if regime == "sdf" else "chat")
    given = [Answer(str(i), r.prompt, r.answer, kinds[r.chain], r.nll, r.nll_tokens) for i, r in enumerate(texts.itertuples())]
    out = []
    for trait, scores in judge.across(seeds.TRAITS, given).items():
        by_question = texts.assign(score=scores).groupby(["chain", "cycle", "question_id"])["score"].agg(["mean", "count"]).reset_index()
        found = by_question.groupby(["chain", "cycle"], as_index=False).agg(trait_score=("mean", "mean"), n_judged=("count", "sum"))
        out.append(found.assign(judged=trait, judge=judge.name, judge_hash=judge.hash(trait)))
    table = pd.concat(out, ignore_index=True)
    path = results.null_traits_file(folder)
    path.parent.mkdir(exist_ok=True)
    table.to_parquet(path.with_suffix(".new"), compression="zstd")
    os.replace(path.with_suffix(".new"), path)
    return table
