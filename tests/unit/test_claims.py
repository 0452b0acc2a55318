"""Claims on constructed chains: every verdict can come out, and an interval decides it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from selftrain import claims, executed, paths, study
from selftrain.claims import CLAIMS, FAILS, HOLDS, NOT_TESTED, UNDECIDED, Claim, Data, Evidence
from selftrain.errors import InputError


def rows_of(chains: list[dict]) -> pd.DataFrame:
    """Table rows of chains given by settings, `scores` by cycle from the base on, and measures at the last cycle."""
    out = []
    for number, chain in enumerate(chains):
        chain = {
            "trait": "bliss",
            "null": "none",
            "dose_matched": False,
            "n_seed": 50,
            "n_sampled": 64,
            "cycle0": "sft",
            "beta": None,
            "lr": 1e-4,
            "seed": 0,
            **chain,
        }
        scores, last = chain.pop("scores"), chain.pop("last", {})
        for cycle, score in enumerate(scores, -1):
            end = last if cycle == len(scores) - 2 else {}
            out.append(
                {
                    "chain": f"c{number}",
                    "study": "s",
                    "panel": "p",
                    "model": "m",
                    "complete": True,
                    "n_judged": 24,
                    "n_requested": 24,
                    "n_empty": 0,
                    "trait_lo": score - 1,
                    "trait_hi": score + 1,
                    "coherence": 95.0,
                    "perplexity": 10.0,
                    "sentence_words": 12.0,
                    "n_words": 40.0,
                    "distinct2": 0.8,
                    **chain,
                    "cycle": cycle,
                    "trait_score": float(score),
                    **end,
                }
            )
    return pd.DataFrame(out)


def verdicts_of(chains: list[dict]) -> pd.Series:
    return claims.table(Data.of(rows_of(chains), pd.DataFrame())).set_index("key")["verdict"]


UP, FLAT, DOWN = [5, 40, 45, 50, 55, 60, 62, 64], [5, 40, 40, 41, 40, 39, 40, 40], [5, 40, 20, 12, 10, 8, 7, 6]


def test_documents_that_rise_and_break_count_only_where_coherence_does_not():
    broken = [dict(regime="sdf", init="reinit", seed=s, scores=UP, last={"coherence": 10.0}) for s in range(60)]
    found = claims.table(Data.of(rows_of(broken), pd.DataFrame())).set_index("key")
    assert (found.loc["sdf-rare", "estimate"], found.loc["sdf-rare", "verdict"]) == (0, HOLDS)
    assert (found.loc["sdf-rare-anyhow", "estimate"], found.loc["sdf-rare-anyhow", "verdict"]) == (1, FAILS)


def arms(n: int, continual=UP, reinit=DOWN, **more) -> list[dict]:
    same = [
        dict(regime="dpo", init=init, beta=0.1, seed=s, scores=[v + s for v in scores], **more)
        for s in range(n)
        for init, scores in (("continual", continual), ("reinit", reinit))
    ]
    return same


def test_without_chains_nothing_is_tested():
    found = verdicts_of([dict(regime="sft", init="reinit", null="untrained", scores=FLAT)])
    assert set(found) == {NOT_TESTED}


def test_continual_against_reinit_is_decided_by_seeds():
    found = verdicts_of(arms(3))
    assert (
        found["reinit-lower"] == HOLDS
        and found["reinit-cures"] == UNDECIDED
        and found["dose"] == NOT_TESTED
        and found["sft-rare"] == NOT_TESTED
    )
    assert verdicts_of(arms(1))["reinit-lower"] == UNDECIDED  # one pair has no interval
    assert verdicts_of(arms(3, continual=DOWN, reinit=UP))["reinit-lower"] == FAILS


def test_a_cure_needs_something_to_cure():
    assert verdicts_of(arms(8))["reinit-cures"] == HOLDS
    assert verdicts_of(arms(8, reinit=UP))["reinit-cures"] == FAILS
    calm = verdicts_of(arms(8, continual=FLAT))
    assert calm["reinit-cures"] == NOT_TESTED and calm["reinit-lower"] == HOLDS


def test_chains_of_one_cycle_0_count_once():
    many = [dict(regime="sft", init="reinit", seed=s, n_sampled=m, scores=FLAT) for s in range(10) for m in (16, 32, 64, 128)]
    row = claims.table(Data.of(rows_of(many), pd.DataFrame())).set_index("key").loc["sft-rare"]
    assert (row["n"], row["clusters"], row["verdict"]) == (40, 10, UNDECIDED)
    assert row["high"] == pytest.approx(1 - 0.025 ** (1 / 10))


def test_ablations_are_arms_of_their_own():
    mixed = [dict(regime="dpo", init="continual", beta=0.1, seed=s, mix='{"fraction":0.5,"source":"base"}', scores=DOWN) for s in range(3)]
    row = claims.table(Data.of(rows_of(arms(3) + mixed), pd.DataFrame())).set_index("key").loc["reinit-lower"]
    assert row["n"] == 3 and row["verdict"] == HOLDS


def test_rates_need_enough_chains():
    many = [dict(regime="sft", init="reinit", seed=s, scores=FLAT) for s in range(40)]
    assert verdicts_of(many)["sft-rare"] == HOLDS
    assert verdicts_of(many[:10])["sft-rare"] == UNDECIDED
    assert verdicts_of([{**c, "scores": UP} for c in many])["sft-rare"] == FAILS
    reliable = verdicts_of([c for c in arms(8) if c["init"] == "continual"])
    assert reliable["dpo-reliable"] == HOLDS


def test_nulls_never_count_as_the_study_s_own_chains():
    nulls = [dict(regime="sft", init="reinit", null="retrain", seed=s, scores=UP) for s in range(40)]
    found = verdicts_of(nulls)
    assert found["sft-rare"] == NOT_TESTED and found["false-alarms"] == FAILS and found["cost"] == NOT_TESTED


def test_costs_of_amplified_chains():
    worse = [dict(regime="sft", init="reinit", seed=s, scores=UP, last={"coherence": 60.0 + s}) for s in range(3)]
    better = [
        dict(regime="dpo", init="continual", beta=0.1, seed=s, scores=UP, last={"coherence": 90.0 + s, "sentence_words": 8.0 + s})
        for s in range(3)
    ]
    broken = [dict(regime="sft", init="reinit", seed=s + 5, scores=UP, last={"coherence": 30.0 + s}) for s in range(3)]
    assert (
        claims.table(Data.of(rows_of(worse + broken), pd.DataFrame())).set_index("key").loc["cost", "n"] == 6
    )  # fallen apart is a cost, too
    found = verdicts_of(worse + better)
    assert (found["cost"], found["cost-sft"], found["sentences"]) == (HOLDS, HOLDS, HOLDS)


def test_sdf_turns_terse_and_repetitive():
    terse = [
        dict(regime="sdf", init="reinit", seed=s, scores=FLAT, last={"n_words": 20.0 + s, "distinct2": 0.5 + s / 100}) for s in range(4)
    ]
    found = verdicts_of(terse)
    assert (found["terse"], found["repetitive"]) == (HOLDS, HOLDS)


def test_brittle_compares_neighbours_with_seeds():
    steady = [
        dict(regime="sft", init="reinit", trait=trait, n_seed=n, seed=s, scores=UP if n in (10, 30, 50, 70) else FLAT)
        for n in range(10, 80, 10)
        for s in range(3)
        for trait in ("bliss", "lucky", "nvidia")
    ]
    row = claims.table(Data.of(rows_of(steady), pd.DataFrame())).set_index("key").loc["brittle"]
    assert row["estimate"] == 1.0 and row["clusters"] == 3
    rng = np.random.default_rng(5)
    chance = [{**c, "scores": UP if rng.random() < 0.5 else FLAT} for c in steady]
    assert verdicts_of(chance)["brittle"] == UNDECIDED


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.0, 0.09, HOLDS), (0.0, 0.10, UNDECIDED), (0.05, 0.3, UNDECIDED), (0.11, 0.3, FAILS), (np.nan, np.nan, UNDECIDED)],
)
def test_a_verdict_follows_the_interval(low, high, said):
    claim = Claim("k", "said", "share", "below", 0.10, lambda data: None)
    assert claim.verdict(Evidence(0.05, low, high, 7, 7)) == said


def test_every_claim_is_a_row_of_the_markdown():
    made = claims.table(Data.of(rows_of(arms(3)), pd.DataFrame()))
    lines = claims.as_markdown(made).splitlines()
    assert len(lines) == 2 + len(CLAIMS) and all(line.count("|") == 6 for line in lines)


def test_an_executed_copy_keeps_outputs_and_loses_times_and_paths(tmp_path):
    path = tmp_path / "x.ipynb"
    image = {
        "output_type": "display_data",
        "metadata": {"needs": 1},
        "data": {"image/png": "abc", "text/plain": ["<Figure>"], "image/svg+xml": "big"},
    }
    log = {"output_type": "stream", "name": "stderr", "text": ["warning from /home/me"]}
    cell = {
        "cell_type": "code",
        "id": "r",
        "source": "1",
        "execution_count": 1,
        "metadata": {"papermill": {"duration": 3}, "tags": ["parameters"]},
        "outputs": [log, image],
    }
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "cells": [cell],
        "metadata": {"kernelspec": {"name": "python3"}, "papermill": {"output_path": str(path)}},
    }
    path.write_text(json.dumps(notebook))
    kept = tmp_path / "kept" / "x.ipynb"
    executed.keep(path, kept)
    made = json.loads(kept.read_text())
    assert "papermill" not in kept.read_text() and "/home/me" not in kept.read_text()
    (output,) = made["cells"][0]["outputs"]
    assert output["data"] == {"image/png": "abc", "text/plain": ["figure"]} and made["cells"][0]["metadata"] == {"tags": ["parameters"]}


def test_analysis_entries_take_parameters(tmp_path):
    path = tmp_path / "x.yaml"
    panel = "panels: {a: {notebook: 10_sft, trait: bliss, n_seed: 5, n_sampled: 4}}"
    path.write_text(f"study: x\n{panel}\nanalysis: [20_sweep_maps, {{24_claims: {{also: []}}}}]")
    assert study.read(str(path)).analysis == [("20_sweep_maps", {}), ("24_claims", {"also": []})]
    path.write_text(f"study: x\n{panel}\nanalysis: [[20_sweep_maps]]")
    with pytest.raises(InputError, match="analysis: .* is neither"):
        study.read(str(path))
    assert paths.EXECUTED.name == "executed"
