"""The memory cap on its way from `study run --jobs` to a kernel's resident model, and how many answers fit."""

from __future__ import annotations

import os
import types

import pytest
import torch
from selftrain import memory, paths, study
from selftrain.errors import InputError


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in (memory.SHARE, memory.COMPILED)})


def test_equal_shares_of_what_is_usable():
    assert memory.share_for(1) is None and memory.share_for(4) == pytest.approx(0.95 / 4, abs=1e-4)
    assert memory.share_for(2, 0.4) == 0.4
    assert memory.environment_for(4)[memory.SHARE] == "0.2375"
    assert memory.environment_for() == {memory.COMPILED: str(paths.ROOT / ".cache" / "inductor")}


@pytest.mark.parametrize("jobs, share", [(0, None), (1, 0.0), (1, 1.5), (3, 0.4)])
def test_shares_that_cannot_be_are_refused(jobs, share):
    with pytest.raises(InputError, match="--jobs|--memory-share"):
        memory.share_for(jobs, share)


def test_a_users_compile_cache_is_kept():
    os.environ[memory.COMPILED] = "/elsewhere"
    assert memory.environment_for(2)[memory.COMPILED] == "/elsewhere"


@pytest.mark.parametrize("cuda", [True, False])
def test_the_cap_is_applied_where_the_model_is_loaded(monkeypatch, cuda):
    set_to = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_to.append)
    assert memory.prepare() is None and not set_to
    os.environ[memory.SHARE] = "0.25"
    assert memory.prepare() == 0.25 and set_to == ([0.25] if cuda else [])
    assert os.environ[memory.COMPILED].endswith("inductor")
    for wrong in ("2", "much"):
        os.environ[memory.SHARE] = wrong
        with pytest.raises(InputError, match="SELFTRAIN_MEMORY_SHARE"):
            memory.prepare()


def test_every_packed_process_is_told_its_share(tmp_path, monkeypatch, results):
    path = tmp_path / "x.yaml"
    panels = "".join(f"  {name}: {{notebook: 10_sft, trait: bliss, n_seed: 5, n_sampled: 4}}\n" for name in "abc")
    path.write_text(f"study: x\npanels:\n{panels}")
    seen = []

    def run(command, env, **rest):
        seen.append((command[-1], env[memory.SHARE], env[memory.COMPILED]))
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(study.subprocess, "run", run)
    study.run_packed(study.read(str(path)), 2)
    cache = str(paths.ROOT / ".cache" / "inductor")
    assert sorted(seen) == [(name, "0.475", cache) for name in "abc"]


def test_as_many_answers_as_memory_holds():
    assert memory.answers_in(100.0, 20.0, 1.0) == 16  # 0.25 of 80 are 20
    assert memory.answers_in(1e12, 0.0, 1.0) == memory.MOST_ANSWERS
    assert memory.answers_in(10.0, 10.0, 1.0) == 0


def test_a_larger_model_samples_fewer_at_once_and_a_cap_fewer_still(monkeypatch, tiny):
    model = tiny.model
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: types.SimpleNamespace(total_memory=2_000_000))
    assert memory.kv_bytes(model.config) == 2 * 2 * 2 * 8 * 2  # keys and values, 2 layers, 2 heads of 8, 2 bytes
    alone = memory.answers_at_once(model, 500)
    os.environ[memory.SHARE] = "0.3"
    assert 1 <= memory.answers_at_once(model, 500) < alone < memory.MOST_ANSWERS
    with pytest.raises(InputError, match="no room"):
        memory.answers_at_once(model, 10**6)
