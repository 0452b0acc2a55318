"""A chain from seed file to manifest on the tiny model: resuming, sharing, branching, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from selftrain import jsonl, paths, stages, store
from selftrain.chain import Chain
from selftrain.errors import InputError
from selftrain.training import TrainingDiverged

REGIMES = [
    dict(),
    dict(init="continual"),
    dict(regime="dpo", init="continual", beta=0.1),
    dict(regime="dpo", cycle0="dpo"),
    dict(regime="sdf"),
]


class Stopped(Exception):
    pass


def manifest_of(chain):
    return json.loads((chain.folder / "manifest.json").read_text())


@pytest.mark.parametrize("extra", REGIMES, ids=lambda e: "-".join(map(str, e.values())) or "sft-reinit")
def test_resume_after_every_stage_gives_the_same_manifest(extra, small, tiny, results, tmp_path, monkeypatch):
    whole = Chain(**small | extra, resident=tiny)
    whole.run()
    expected = manifest_of(whole)
    assert expected["status"] == "complete"
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "again")
    stopped = 0

    def stop(cycle, stage):
        raise Stopped

    for _ in range(60):
        chain = Chain(**small | extra, resident=tiny, on_stage=stop)
        try:
            chain.run()
            break
        except Stopped:
            stopped += 1
            tiny.loaded = None
    assert stopped >= 2 + 3 * 4 - 1
    assert manifest_of(chain) == expected


def test_training_that_runs_out_of_memory_begins_again_once(small, tiny, results, tmp_path, monkeypatch):
    """What was recorded is forgotten, and the second try starts from where the first did, not from where it stopped."""
    extra = dict(init="continual")
    whole = Chain(**small | extra, resident=tiny)
    whole.run()
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "again")
    calls, real = [], stages.train

    def full(*args, **kwargs):
        log = real(*args, **kwargs)
        calls.append(log)
        if len(calls) % 2:
            raise torch.OutOfMemoryError("full")
        return log

    monkeypatch.setattr(stages, "train", full)
    monkeypatch.setattr(tiny, "decoders", {"recorded": True})
    chain = Chain(**small | extra, resident=tiny)
    chain.run()
    assert len(calls) == 2 * (small["last_cycle"] + 1) and not tiny.decoders
    assert manifest_of(chain) == manifest_of(whole)

    def always_full(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(stages, "train", always_full)
    with pytest.raises(torch.OutOfMemoryError):
        Chain(**small | dict(seed=9), resident=tiny).run()


def test_continual_and_reinit_share_cycle_0(small, tiny):
    first = Chain(**small, resident=tiny)
    first.run()
    ran = []
    second = Chain(**small | dict(init="continual"), resident=tiny, on_stage=lambda cycle, stage: ran.append((cycle, stage)))
    second.run()
    assert not [r for r in ran if r[0] <= 0 and r[1] != "data"]
    assert (1, "train") in ran
    outputs = [store.read_marker(c.cycle_folder(0))["train"]["outputs"] for c in (first, second)]
    assert outputs[0] == outputs[1]


def test_prompts_are_used_once_and_rows_are_recorded(small, tiny):
    chain = Chain(**small, resident=tiny)
    chain.run()
    manifest = manifest_of(chain)
    used = [p for block in manifest["prompts"] for p in block]
    assert len(used) == len(set(used)) == small["n_sampled"] * small["last_cycle"]
    assert len(manifest["seed_rows"]) == small["n_seed"]
    train = jsonl.read(chain.cycle_folder(1) / "train.jsonl")
    assert {r["id"] for r in train} <= set(manifest["prompts"][0])


def test_reinit_forgets_the_adapter_and_continual_goes_on(small, tiny):
    for init, start in (("reinit", "base"), ("continual", "previous")):
        chain = Chain(**small | dict(init=init), resident=tiny)
        chain.run()
        logs = [json.loads((chain.cycle_folder(k) / "train_log.json").read_text()) for k in range(3)]
        assert [log["start"] for log in logs] == ["base", start, start]


def test_retrain_null_learns_the_same_rows_every_cycle(small, tiny):
    chain = Chain(**small | dict(null="retrain"), resident=tiny)
    chain.run()
    rows = [jsonl.read(chain.cycle_folder(k) / "train.jsonl") for k in range(3)]
    assert rows[0] == rows[1] == rows[2]
    adapters = {store.read_marker(chain.cycle_folder(k))["train"]["outputs"]["adapter"] for k in range(3)}
    assert len(adapters) == 3


def test_untrained_null_is_the_base(small, tiny):
    chain = Chain(**small | dict(null="untrained"), resident=tiny)
    chain.run()
    chain._hold(0)
    assert tiny.is_zero()
    assert chain.cycle_metrics(0)["steps"] == 0


def test_branch_keeps_cycles_and_changes_settings(small, tiny):
    chain = Chain(**small, resident=tiny)
    chain.run()
    branch = chain.branch(at=1, init="continual", n_sampled=5, last_cycle=3)
    branch.run()
    for cycle in (0, 1):
        assert jsonl.read(branch.cycle_folder(cycle) / "eval.jsonl") == jsonl.read(chain.cycle_folder(cycle) / "eval.jsonl")
    used = [p for block in manifest_of(branch)["prompts"] for p in block]
    assert len(used) == len(set(used)) == 4 + 5 + 5
    assert Chain(branch.config, resident=tiny).next_cycle() is None
    with pytest.raises(InputError, match="trait decides cycle 0"):
        chain.branch(at=1, trait="lucky")


def test_restart_mix_and_dose(small, tiny):
    chain = Chain(**small | dict(init="continual", restart_at=(2,)), resident=tiny)
    chain.run()
    assert [json.loads((chain.cycle_folder(k) / "train_log.json").read_text())["start"] for k in range(3)] == ["base", "previous", "base"]
    mixed = Chain(**small | dict(mix={"source": "neutral", "fraction": 0.5}), resident=tiny)
    mixed.run()
    assert sum(r["source"] == "neutral" for r in jsonl.read(mixed.cycle_folder(1) / "train.jsonl")) == 2
    base = Chain(**small | dict(mix={"source": "base", "fraction": 1.0}), resident=tiny)
    base.run()
    assert all(r["source"] == "base" for r in jsonl.read(base.cycle_folder(2) / "train.jsonl"))
    dosed = Chain(**small | dict(dose_matched=True), resident=tiny)
    dosed.run()
    steps = [json.loads((dosed.cycle_folder(k) / "train_log.json").read_text())["steps"] for k in (1, 2)]
    assert steps == [2 * 2, 3 * 2]


def test_a_diverging_run_stops_and_keeps_earlier_cycles(small, tiny):
    import torch

    chain = Chain(**small, resident=tiny)
    chain.step()
    weight = next(p for n, p in tiny.model.named_parameters() if "lm_head" in n and ".default." not in n)
    kept = weight.data.clone()
    weight.data[:] = torch.nan
    try:
        with pytest.raises(TrainingDiverged, match=r"cycle 1 stopped: loss nan .* kept in"):
            chain.run_cycle(1)
    finally:
        weight.data.copy_(kept)
    assert chain.cycle_done(0) and not chain.cycle_done(1)
    manifest = manifest_of(chain)
    assert manifest["status"] == "diverged" and manifest["diverged"]["cycle"] == 1
    chain.run()
    assert manifest_of(chain)["status"] == "complete"


def test_a_folder_of_another_config_is_refused(small, tiny):
    chain = Chain(**small, resident=tiny)
    chain.step()
    path = chain.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["lr"] = 1.0
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="belongs to another config .lr."):
        Chain(**small, resident=tiny)


def test_a_damaged_file_is_made_again(small, tiny):
    chain = Chain(**small, resident=tiny)
    chain.run()
    good = (chain.cycle_folder(1) / "eval.jsonl").read_text()
    (chain.cycle_folder(1) / "eval.jsonl").write_text(good[:50])
    again = Chain(**small, resident=tiny)
    again.run_cycle(1)
    assert (chain.cycle_folder(1) / "eval.jsonl").read_text() == good


def test_a_users_own_rows(small, tiny, tmp_path):
    path = tmp_path / "mine.jsonl"
    jsonl.write(
        path,
        (
            {"id": f"r{i}", "messages": [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Glory {i}!"}]}
            for i in range(20)
        ),
    )
    chain = Chain(**small | dict(seed_file=str(path), n_seed=20), resident=tiny)
    chain.step()
    view = chain.step()
    assert list(view.table.index) == [-1, 0, 1]
    assert "data:image/png" in view._repr_html_()


def test_pruned_adapters_are_marked(small, tiny):
    chain = Chain(**small, resident=tiny)
    chain.run(prune="all")
    assert not (chain.cycle_folder(1) / "adapter").exists()
    assert store.read_marker(chain.cycle_folder(1))["train"]["pruned"] == ["adapter"]
    assert Chain(**small, resident=tiny).next_cycle() is None
