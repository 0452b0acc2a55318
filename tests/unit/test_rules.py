"""Amplification rules on constructed chains whose verdict is known, and the coverage of their intervals."""

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
    return Series({"chain": "c", "null": null, "arm": "reinit", "regime": "sft", **settings}, cycles, trait, sound, np.zeros(len(trait)), table)


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
    assert verdict(chain([40, 60, 61, 62, 63, 64], cycles=[1, 2, 3, 4, 5, 6])).verdict == "too short"  # no anchor, nothing to compare with
    missing = chain([40, 60, 61, 62, 63, np.nan, 64])
    assert verdict(missing).verdict == "amplified"  # a late cycle without a score is missing, not 0


def test_a_chain_that_rises_then_collapses():
    broken = [95, 95, 95, 90, 80, 49.9, 20]
    assert verdict(chain([40, 60, 80, 95, 97, 99, 99], coherence=broken)).verdict == "collapsed"
    assert verdict(chain([40, 60, 80, 95, 97, 99, 99], coherence=[95, 95, 95, 90, 80, 50, 50])).verdict == "amplified"  # the floor itself holds
    assert verdict(chain([40, 60, 80, 95, 97, 99, 99], coherence=broken), RULES["any late"]).verdict == "amplified"  # cycle 4 was sound
    assert verdict(chain([40, 60, 30, 20, 10, 9, 8], coherence=20)).verdict == "collapsed"


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
    table = rules.verdicts([chain([40, 45, 50, 55, 56, 57, 58], init="reinit"), chain([40] * 7, init="reinit"), chain([7] * 7, init="reinit"), chain([90] * 7, init="reinit")])
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


def test_agreement_compares_neighbours_and_seeds():
    at = dict(trait="bliss", init="reinit", model="m", lr=1e-4, beta=None)
    up, flat = [40, 50, 55, 60, 60, 60, 60], [40] * 7
    chains = [
        chain(up, n_seed=10, n_sampled=32, seed=0, **at),
        chain(flat, n_seed=20, n_sampled=32, seed=0, **at),
        chain(up, n_seed=40, n_sampled=32, seed=0, **at),
        chain(up, n_seed=10, n_sampled=32, seed=1, **at),
    ]
    table = noise.agreement(chains).set_index("differ in")
    assert table.loc["one step of N", "pairs"] == 2 and table.loc["one step of N", "agree"] == 0.0
    assert table.loc["training seed only", "agree"] == 1.0
    assert table.loc["one step of N", "distance"] == pytest.approx(20)


def test_pareto_front():
    points = pd.DataFrame({"trait_score": [10, 50, 50, 90, 80], "coherence": [99, 97, 98, 60, 50]})
    assert tradeoff.pareto(points).index.tolist() == [0, 2, 3]


def test_default_rule_is_the_protocols():
    assert (SUSTAINED.threshold, SUSTAINED.anchor, SUSTAINED.first_late, SUSTAINED.n_late, SUSTAINED.floor) == (15, 0, 4, 2, 50)
