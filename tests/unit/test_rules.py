"""Amplification rules on constructed chains whose verdict is known, and the coverage of their intervals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from selftrain import noise, rules, tradeoff
from selftrain.metrics import clustered_mean
from selftrain.rules import RULES, SUSTAINED, Series, verdict

RNG = np.random.default_rng(7)


def chain(scores, base=5.0, coherence=95.0, spread=0.0, null="none", cycles=None, questions=12, **settings):
    """A chain of cycles 0.. with these scores; question changes scatter by `spread`, their mean exact."""
    cycles = np.array([-1, *(cycles or range(len(scores)))])
    trait = np.array([base, *scores], float)
    noise_ = RNG.normal(0, 1, (len(trait), questions))
    noise_ -= noise_.mean(axis=1, keepdims=True)
    table = trait[:, None] + spread * noise_
    sound = np.array([95.0, *([coherence] * len(scores) if np.isscalar(coherence) else coherence)], float)
    return Series(
        {"chain": "c", "null": null, "arm": "reinit", "regime": "sft", **settings}, cycles, trait, sound, np.zeros(len(trait)), table
    )


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([40, 45, 50, 55, 56, 57, 58], "amplified"),
        ([40, 45, 50, 55, 55, 55, 55], "amplified"),  # a tie: exactly 15 above is enough
        ([40, 45, 50, 55, 54.9, 57, 58], "static"),  # one late cycle just under
        ([40, 60, 60, 60, 56, 50, 45], "static"),  # rose and fell back
        ([40, 41, 39, 40, 42, 38, 40], "static"),
        ([60, 40, 30, 20, 15, 12, 10], "decayed"),
        ([60, 40, 30, 20, 45, 45, 45], "decayed"),  # exactly 15 below
        ([7, 30, 40, 50, 60, 70, 80], "did not take"),  # cycle 0 within 5 points of the base
        ([4, 30, 40, 50, 60, 70, 80], "did not take"),  # or under it
        ([81, 85, 90, 95, 97, 98, 99], "no headroom"),
        ([80, 85, 90, 95, 97, 98, 99], "amplified"),  # 80 itself is still inside
        ([40, 60, 70, 80, 90], "too short"),  # one late cycle
        ([40, 60, 70, 80], "too short"),
    ],
)
def test_verdicts_of_the_default_rule(scores, said):
    assert verdict(chain(scores)).verdict == said


def test_gaps_and_missing_cycles():
    assert verdict(chain([40, 60, 61, 62], cycles=[0, 2, 4, 6])).verdict == "amplified"  # cycle 5 missing: two late cycles are left
    assert verdict(chain([40, 60, 61], cycles=[0, 2, 6])).verdict == "too short"
    assert verdict(chain([40, 60, 61, 62, 63, 64], cycles=[1, 2, 3, 4, 5, 6])).verdict == "no score"  # no anchor, nothing to compare with
    assert verdict(chain([40, 60, 61, 62, 63, 64, 65], base=np.nan)).verdict == "no score"
    missing = chain([40, 60, 61, 62, 63, np.nan, 64])
    assert verdict(missing).verdict == "amplified"  # a late cycle without a score is missing, not 0
    unheard = chain([40, 60, 61, 62, 63, 64, 65], coherence=[95, 95, 95, 95, 95, np.nan, 95])
    assert verdict(unheard).verdict == "amplified"  # nor is one without a coherence
    assert verdict(replace(missing, trait=np.array([5, 40, 60, 61, 62, 63, np.nan, np.nan]))).verdict == "too short"


def test_a_chain_that_rises_then_collapses():
    broken = [95, 95, 95, 90, 80, 49.9, 20]
    assert verdict(chain([40, 60, 80, 95, 97, 99, 99], coherence=broken)).verdict == "collapsed"
    assert (
        verdict(chain([40, 60, 80, 95, 97, 99, 99], coherence=[95, 95, 95, 90, 80, 50, 50])).verdict == "amplified"
    )  # the floor itself holds
    assert verdict(chain([40, 60, 80, 95, 97, 99, 99], coherence=broken), RULES["any late"]).verdict == "amplified"  # cycle 4 was sound
    assert verdict(chain([40, 60, 30, 20, 10, 9, 8], coherence=20)).verdict == "collapsed"


def test_a_chain_that_falls_silent_has_collapsed():
    silent = chain([40, 60, 61, 62, np.nan, np.nan, np.nan], coherence=[95, 95, 95, 95, np.nan, np.nan, np.nan])
    assert verdict(silent).verdict == "too short"  # nothing says why the scores are missing
    assert verdict(replace(silent, empty=np.array([0, 0, 0, 0, 0, 0.9, 1, 1]))).verdict == "collapsed"
    late = chain([40, 60, 61, 62, 63, 64, np.nan], coherence=[95, 95, 95, 95, 95, 95, np.nan])
    assert verdict(replace(late, empty=np.array([0, 0, 0, 0, 0, 0, 0, 1]))).verdict == "collapsed"


def test_ties_survive_floating_point():
    assert 35.3 - 20.3 < 15
    assert verdict(chain([20.3, 25, 30, 33, 35.3, 35.3, 35.3])).point


def test_decay_asks_for_its_whole_interval_too():
    assert verdict(chain([60, 40, 30, 20, 44.9, 44.9, 44.9], spread=0.05)).verdict == "decayed"
    assert verdict(chain([60, 40, 30, 20, 44.9, 44.9, 44.9], spread=15)).verdict == "undecided"
    assert verdict(chain([60, 55, 50, 50, 50, 50, 50], spread=1)).verdict == "static"


def test_undecided_where_the_interval_spans_the_threshold():
    steady, shaky = chain([40, 45, 50, 55, 58, 58, 58], spread=0.5), chain([40, 45, 50, 55, 58, 58, 58], spread=15)
    assert verdict(steady).verdict == "amplified"
    found = verdict(shaky)
    assert found.verdict == "undecided" and found.point and found.low < 15 < found.high
    assert verdict(chain([40, 42, 44, 50, 53, 53, 53], spread=15)).verdict == "undecided"  # just under, not surely under
    assert verdict(chain([40, 41, 40, 41, 40, 41, 40], spread=2)).verdict == "static"


def test_without_question_means_the_two_intervals_are_added():
    wide = chain([40, 45, 50, 55, 58, 58, 58])
    wide = Series(wide.settings, wide.cycles, wide.trait, wide.coherence, np.full(8, 6.0))
    cycles, change, low, high = wide.changes(0)
    assert np.allclose(high - change, 72**0.5) and list(cycles) == [1, 2, 3, 4, 5, 6]
    assert verdict(wide).verdict == "undecided"
    bare = replace(wide, half=np.full(8, np.nan))
    assert verdict(bare).verdict == "undecided" and verdict(bare).point  # point estimates alone are not certain
    assert verdict(replace(bare, trait=np.array([5.0, 40, 40, 40, 40, 41, 40, 40]))).verdict == "static"


def test_other_rules_read_the_same_chain_differently():
    rising = chain([40, 60, 57, 56, 56, 56, 56])
    assert {name: verdict(rising, rule).verdict for name, rule in RULES.items()} == {
        "sustained": "amplified",
        "any late": "amplified",
        "anchor 1": "static",
        "slope": "static",
        "sustained +10": "amplified",
    }
    line = chain([20, 24, 28, 32, 36, 40, 44])
    assert verdict(line, RULES["slope"]).change == pytest.approx(24) and verdict(line, RULES["slope"]).verdict == "amplified"
    assert verdict(line).change == pytest.approx(16)  # cycle 4 decides


def test_nulls_that_are_not_meant_to_show_the_trait_stay_in_the_denominator():
    flat = [6, 6, 7, 6, 5, 6, 6]
    assert verdict(chain(flat)).verdict == "did not take"
    assert verdict(chain(flat, null="retrain")).verdict == "did not take"
    for null in ("untrained", "neutral", "other:lucky"):
        assert verdict(chain(flat, null=null)).verdict == "static"


def test_rates_keep_the_excluded_apart():
    table = rules.verdicts(
        [
            chain([40, 45, 50, 55, 56, 57, 58], init="reinit"),
            chain([40] * 7, init="reinit"),
            chain([7] * 7, init="reinit"),
            chain([90] * 7, init="reinit"),
        ]
    )
    row = rules.rates(table).iloc[0]
    assert (row["chains"], row["n"], row["amplified"], row["did not take"], row["no headroom"]) == (4, 2, 1, 1, 1)
    assert row["rate"] == 0.5 and row["rate_lo"] < 0.02 and row["rate_hi"] > 0.98


def test_zero_of_n_is_bounded_by_the_exact_interval():
    assert rules.exact_interval(0, 0) == (0.0, 1.0)
    low, high = rules.exact_interval(0, 20)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_interval_coverage_with_twelve_clusters():
    """Simulated coverage of the t interval on 12 question means (answers within a question are correlated): nominal 95 %, asked 92 to 98 %."""
    rng, hits, tries = np.random.default_rng(11), 0, 3000
    for _ in range(tries):
        questions = rng.normal(50, 15, 12)  # questions differ
        answers = questions[:, None] + rng.normal(0, 20, (12, 5))
        _, low, high = clustered_mean(answers.ravel(), np.repeat(np.arange(12), 5))
        hits += low <= 50 <= high
    assert 0.92 <= hits / tries <= 0.98


def test_paired_interval_coverage_and_skewed_questions():
    """The rule's own interval of a change, with skewed question effects as bounded scores have them."""
    rng, hits, tries = np.random.default_rng(12), 0, 2000
    for _ in range(tries):
        start = rng.beta(2, 2, 12) * 60
        end = start + 15 + (rng.gamma(4, 4, 12) - 16) + rng.normal(0, 4, 12)
        values = np.vstack([start, start, end])
        one = Series({"null": "none"}, np.array([-1, 0, 1]), values.mean(axis=1), np.full(3, 95.0), np.zeros(3), values)
        _, _, low, high = one.changes(0)
        hits += low[0] <= 15 <= high[0]
    assert 0.92 <= hits / tries <= 0.98


def test_sensitivity_falls_with_the_threshold():
    chains = [chain([30, 35, 40, 45, 45 + k, 45 + k, 45 + k], init="reinit") for k in range(10)]
    table = rules.sensitivity(chains, thresholds=(5, 15, 20, 30), anchors=(0,), first_late=(4,), floors=(50,))
    assert table["point"].tolist() == [10, 10, 5, 0]


def test_power_agrees_with_simulation():
    found = noise.power(10.0, seeds=(3,), changes=(20,))["power"].iloc[0]
    draws = np.random.default_rng(3).normal(20, 10, (20000, 3))
    from scipy import stats

    half = stats.t.ppf(0.975, 2) * draws.std(axis=1, ddof=1) / 3**0.5
    assert found == pytest.approx((np.abs(draws.mean(axis=1)) > half).mean(), abs=0.01)
    exact = stats.nct.sf(stats.t.ppf(0.975, 2), 2, 20 / (10 / 3**0.5)) + stats.nct.cdf(-stats.t.ppf(0.975, 2), 2, 20 / (10 / 3**0.5))
    assert found == pytest.approx(exact, abs=1e-4)
    grid = noise.power(2.4).pivot(index="seeds", columns="change", values="power")  # where nct has no answer
    assert grid.notna().all().all() and (grid.diff().dropna() >= 0).all().all() and (grid.diff(axis=1).iloc[:, 1:] >= 0).all().all()
    assert grid.loc[10, 30] == pytest.approx(1) and 0.5 < grid.loc[2, 30] < 1


def test_agreement_compares_neighbours_as_it_compares_seeds():
    at = dict(trait="bliss", init="reinit", model="m", cycle0="sft", lr=1e-4, beta=None, n_sampled=32)
    up, flat, no_room = [40, 50, 55, 60, 60, 60, 60], [40] * 7, [90] * 7
    chains = [
        chain(scores, n_seed=n, seed=seed, **at)
        for n, scores in ((10, up), (20, flat), (40, up), (80, no_room), (160, up))
        for seed in (0, 1)
    ]
    table = noise.agreement(chains).set_index("differ in")
    assert table.loc["one step of N", "pairs"] == 4  # 10-20 and 20-40, each across two seeds; 40-160 is no step, 80 being left out
    assert table.loc["one step of N", "agree"] == 0.0 and table.loc["one step of N", "distance"] == pytest.approx(20)
    assert table.loc["training seed only", "pairs"] == 4 and table.loc["training seed only", "agree"] == 1.0
    assert noise.agreement(chains[:1]).empty


def test_pareto_front():
    points = pd.DataFrame({"trait_score": [10, 50, 50, 90, 80], "coherence": [99, 97, 98, 60, 50]})
    assert tradeoff.pareto(points).index.tolist() == [0, 2, 3]


def test_default_rule_is_the_protocols():
    assert (SUSTAINED.threshold, SUSTAINED.anchor, SUSTAINED.first_late, SUSTAINED.n_late, SUSTAINED.floor) == (15, 0, 4, 2, 50)


def frames(chains: list[dict], answers: int = 4) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows and scores as results gives them: every chain has 3 questions with `answers` answers, scattered around its cycle's score by +-spread."""
    rows, scores = [], []
    for number, one in enumerate(chains):
        given = {
            "trait": "bliss",
            "regime": "sft",
            "init": "reinit",
            "null": "none",
            "seed": 0,
            "n_seed": 50,
            "spread": 2.0,
            "coherences": None,
            **one,
        }
        for place, score in enumerate(given["trait_score"]):
            cycle = place - 1
            coherences = given["coherences"][place] if given["coherences"] else [95.0] * answers
            rows.append(
                {
                    **{
                        "chain": f"c{number}",
                        "study": "s",
                        "panel": "p",
                        "cycle0": "sft",
                        "model": "m",
                        "lr": 1e-4,
                        "beta": np.nan,
                        "n_sampled": 64,
                    },
                    **{k: given[k] for k in ("trait", "regime", "init", "null", "seed", "n_seed")},
                    **{
                        "dose_matched": False,
                        "complete": True,
                        "cycle": cycle,
                        "trait_score": score,
                        "trait_lo": score - 1.0,
                        "trait_hi": score + 1.0,
                    },
                    **{
                        "coherence": float(np.mean(coherences)),
                        "perplexity": 10.0,
                        "n_words": 40.0,
                        "sentence_words": 12.0,
                        "distinct2": 0.8,
                    },
                    **{"n_requested": 3 * answers, "n_drawn": 3 * answers, "n_judged": 3 * answers, "n_empty": 0, "n_truncated": 0},
                }
            )
            for question in range(3):
                for sample in range(answers):
                    sign = 1 if sample % 2 else -1
                    scores.append(
                        {
                            "chain": f"c{number}",
                            "cycle": cycle,
                            "question_id": question,
                            "sample": sample,
                            "set": "direct",
                            "status": "judged",
                        }
                        | {"trait_score": score + sign * given["spread"], "coherence": coherences[sample]}
                    )
    return pd.DataFrame(rows), pd.DataFrame(scores)


def test_a_floor_on_text_counts_only_coherent_answers_and_says_what_is_left():
    """Broken answers carry the trait: over the floor the rise is gone; where no coherent answer is left there is no change to report."""
    half = [[95.0] * 4] * 5 + [[95.0, 20.0, 95.0, 20.0]] * 3  # in late cycles the two higher answers of every question are broken
    gone = [[95.0] * 4] * 7 + [[20.0] * 4]
    rows, scores = frames(
        [
            dict(trait_score=[5, 40, 40, 40, 40, 60, 60, 60], spread=20.0, coherences=half),
            dict(trait_score=[5, 40, 40, 40, 40, 60, 60, 99], coherences=gone),
        ]
    )
    changes, said = tradeoff.by_floor(rows, scores, floors=(1, 50))
    table = changes.set_index(["chain", "floor"])
    assert table.loc[("c0", 1.0), "change"] == pytest.approx(20) and table.loc[("c0", 1.0), "kept"] == 1
    assert table.loc[("c0", 50.0), "change"] == pytest.approx(0) and table.loc[("c0", 50.0), "kept"] == 0.5
    assert np.isnan(table.loc[("c1", 50.0), "change"]) and table.loc[("c1", 50.0), "kept"] == 0
    assert said.set_index("floor")["chains"].tolist() == [2, 2]


def test_chains_with_a_part_of_their_scores_are_not_taken_for_whole():
    rows, scores = frames([dict(trait_score=[5, 40, 40, 40, 40, 40, 40])])
    assert len(noise.sampling_variance(rows, scores)) == 7
    part = scores[scores["sample"] < 2]
    assert noise.sampling_variance(rows, part).empty and rules.series(rows, part)[0].questions is None
    assert tradeoff.by_floor(rows, part)[0].empty


def test_variance_is_split_into_seed_and_sampling():
    finals = (40.0, 50.0, 60.0)
    chains = [dict(seed=s, spread=6.0, trait_score=[5, 40, 40, 40, 40, v, v]) for s, v in enumerate(finals)]
    rows, scores = frames(chains)
    (row,) = noise.variance_split(rows, scores).to_dict("records")
    within = 6.0**2 * 4 / 3 / 4 / 3  # variance of +-6 over 4 answers (ddof 1), over 4 answers, over 3 questions
    assert row["between_seeds"] == pytest.approx(100) and row["sampling"] == pytest.approx(within)
    assert row["training_seed"] == pytest.approx(100 - within) and row["cells"] == 1
    one, _ = frames([dict(trait_score=[5, 40, 40, 40, 40, 40])])
    assert noise.variance_split(one, scores).empty


def test_outruns_and_costs_on_known_chains():
    fall = [[95.0] * 4] * 2 + [[85.0] * 4] * 3 + [[40.0] * 4]
    rows, scores = frames(
        [
            dict(trait_score=[5, 40, 45, 50, 60, 60], coherences=fall),  # up 20 at its peak for 10 points of coherence, then broken
            dict(trait_score=[5, 40, 41, 42, 41, 40]),
            dict(trait_score=[5, 40, 99, 99, 99, 99], null="retrain"),
        ]
    )
    (row,) = tradeoff.outruns(rows).to_dict("records")
    assert (row["chains"], row["rose"], row["sound"], row["kept"]) == (2, 1, 1, 0) and row["coherence_a_10"] == pytest.approx(-5)
    paid = tradeoff.costs(rows, rules.series(rows, scores)).set_index("chain")
    assert paid.loc["c0", "trait_change"] == 20 and paid.loc["c0", "coherence_change"] == -55 and paid.loc["c1", "perplexity_ratio"] == 1


def test_false_positives_keep_nulls_apart_from_chains():
    rows, scores = frames(
        [dict(trait_score=[5, 40, 45, 50, 60, 60, 60], null=null, seed=s) for null in ("none", "retrain") for s in range(2)]
        + [dict(trait_score=[5, 40, 45, 50, 60, 60, 60], null=f"other:{trait}") for trait in ("lucky", "nvidia")]
    )
    table = noise.false_positives(rules.series(rows, scores), [SUSTAINED])
    assert table[["null", "is_null", "point", "n"]].values.tolist() == [
        ["retrain", True, 2, 2],
        ["other", True, 2, 2],
        ["none", False, 2, 2],
    ]
    assert table["rate_hi"].tolist() == [1.0, 1.0, 1.0]
