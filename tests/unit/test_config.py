"""Configs: presets, ids, hashes, grids, and every refusal in one line."""

from __future__ import annotations

import pytest
from selftrain.config import PRESETS, ChainConfig, expand
from selftrain.errors import InputError

BASE = dict(trait="bliss", n_seed=50, n_sampled=64)


def test_chain_id_names_what_the_contract_says():
    sft = ChainConfig.create(**BASE, seed=3)
    assert sft.chain_id == f"bliss-sft-reinit-n50-m64-s3-{sft.hash}" and len(sft.hash) == 6
    dpo = ChainConfig.create(**BASE, regime="dpo", init="continual", beta=0.05, null="other:lucky")
    assert dpo.chain_id.startswith("bliss-dpo-continual-n50-m64-b0.05-null-other-lucky-s0-")


def test_the_hash_follows_what_changes_results_and_nothing_else():
    one = ChainConfig.create(**BASE)
    for harmless in (dict(study="x"), dict(panel="y"), dict(last_cycle=9), dict(judge="openai")):
        assert one.changed(**harmless).hash == one.hash
    for telling in (
        dict(lr=1e-3),
        dict(seed=1),
        dict(init="continual"),
        dict(temperature=1.0),
        dict(restart_at=(2,)),
        dict(coherence_filter=50),
    ):
        assert one.changed(**telling).hash != one.hash
    assert one.changed(coherence_filter=50).hash != one.changed(coherence_filter=50, judge="openai").hash


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("regime", ["sft", "sdf", "dpo"])
def test_presets_are_complete(preset, regime):
    config = ChainConfig.create(**BASE, regime=regime, preset=preset)
    for key, value in PRESETS[preset][regime].items():
        assert getattr(config, key) == value


def test_dpo_defaults():
    continual = ChainConfig.create(**BASE, regime="dpo", init="continual")
    reinit = ChainConfig.create(**BASE, regime="dpo")
    assert (continual.reference, reinit.reference) == ("cycle_start", "base")
    assert continual.lr_seed == PRESETS["small"]["sft"]["lr"] != continual.lr
    assert ChainConfig.create(**BASE, regime="dpo", cycle0="dpo").lr_seed == continual.lr


def test_one_length_unless_two_are_asked_for():
    assert ChainConfig.create(**BASE, max_new_tokens=48).eval_max_new_tokens == 48
    assert ChainConfig.create(**BASE, max_new_tokens=48, eval_max_new_tokens=20).eval_max_new_tokens == 20


@pytest.mark.parametrize(
    "extra, message",
    [
        (dict(beta=0, regime="dpo"), "beta"),
        (dict(beta=-1, regime="dpo"), "beta"),
        (dict(beta=0.1), "belong to regime dpo"),
        (dict(restart_at=(9,)), "restart_at 9 lies outside"),
        (dict(null="other:bliss"), "contradicts the trait"),
        (dict(null="nothing"), "is not one of"),
        (dict(mix={"source": "base", "fraction": 1.2}), "mix.fraction"),
        (dict(mix={"source": "web", "fraction": 0.5}), "mix.source"),
        (dict(regime="dpo", n_sampled=4), "fewer pairs than batch_size"),
        (dict(regime="dpo", cycle0="dpo", n_seed=4), "fewer pairs than batch_size"),
        (dict(last_cycle=0), "last_cycle"),
        (dict(regime="rl"), "regime"),
        (dict(colour="red"), "unknown key 'colour'"),
        (dict(n_seed=0), "n_seed"),
        (dict(cycle0="dpo"), "belongs to regime dpo"),
        (dict(dose_matched=True, init="continual"), "dose_matched"),
        (dict(preset="huge"), "preset"),
        (dict(regime="dpo", reference="cycle_start"), "say reference: base"),
        (dict(seed_file="nowhere.jsonl"), "no such seed file"),
    ],
)
def test_bad_input_is_one_line(extra, message):
    with pytest.raises(InputError, match=message) as caught:
        ChainConfig.create(**BASE | extra)
    assert "\n" not in str(caught.value)


def test_grids_cross_lists_and_name_the_place_of_a_fault():
    configs = list(expand({**BASE, "n_seed": [5, 10], "seed": [0, 1, 2], "restart_at": [2, 3]}))
    assert len(configs) == 6 and configs[0].restart_at == (2, 3)
    with pytest.raises(InputError, match="panel p: config: lr"):
        list(expand({**BASE, "lr": [1e-4, -1]}, where="panel p"))
    with pytest.raises(InputError, match="empty list"):
        list(expand({**BASE, "seed": []}))
