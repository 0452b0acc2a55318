"""`study plan`: what is missing is told, not refused; shared work is counted once; time comes from what was measured."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from selftrain import paths, plan, regimes, study, throughput
from selftrain.bench.floors import Shape
from selftrain.config import expand
from selftrain.errors import InputError

GRID = "notebook: 10_sft, trait: bliss, n_seed: [5], n_sampled: [4], last_cycle: 2, max_new_tokens: 20, n_answers: 1, seed: [0]"


def made(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return plan.make(study.read(str(path)))


def configs(**grid):
    return list(expand({"trait": "bliss", "n_seed": 6, "n_sampled": 8, "last_cycle": 2, "batch_size": 2, **grid}))


def seconds(*chains):
    """Work of some chains, what they share counted once."""
    m, found = throughput.machine(), {}
    for config in chains:
        found |= dict(plan.work(config, m, m.shape))
    return found


def test_missing_prompts_and_rows_are_counted_with_the_command_that_fills_them(tmp_path):
    text = "study: x\npanels:\n  a: {notebook: 10_sft, trait: bliss, n_seed: [200], n_sampled: [10, 1000], last_cycle: 3}\n"
    (panel,) = made(tmp_path, text)
    prompts, seeds = panel.rows
    assert panel.chains == 2 and prompts.needed == 3000
    assert prompts.missing == 3000 - prompts.there and f"generate prompts --n {prompts.missing}" in prompts.command
    assert seeds.missing == 200 - seeds.there and "generate bliss --kind chat --n 200" in seeds.command
    with pytest.raises(InputError, match="200 asks for more"):
        study.chains_of(study.read(str(tmp_path / "x.yaml")))


def test_prompts_there_are_those_a_chain_can_draw():
    (config,) = configs()
    rows = plan.prompt_rows(config)
    assert rows.needed == 16 == sum(map(len, regimes.plan(config).prompts)) and not rows.missing
    assert plan.prompt_rows(configs(null="retrain")[0]).needed == 0
    assert plan.prompt_rows(configs(regime="sdf")[0]).what == "openings"


def test_a_study_without_gaps_says_so(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("study: x\npanels:\n  a: {%s}\n" % GRID)  # noqa: UP031
    plan.show(study.read(str(tmp_path / "x.yaml")))
    shown = capsys.readouterr().out
    assert "missing: nothing" in shown and "estimate" in shown and throughput.machine().source in shown


def test_shared_work_is_counted_once():
    one, other = configs(init=["reinit", "continual"])
    together, alone = seconds(one, other), seconds(one)
    shared = set(seconds(one)) & set(seconds(other))
    assert len([name for name in shared if name.startswith("evaluate")]) == 2 and any(name.startswith("train") for name in shared)
    assert sum(together.values()) == pytest.approx(sum(alone.values()) + sum(v for k, v in seconds(other).items() if k not in shared))


def test_base_answers_of_several_betas_are_sampled_once():
    chains = configs(regime="dpo", beta=[0.05, 0.1], cycle0="sft")
    found = [name for name in seconds(*chains) if name.startswith("base answers")]
    assert len(found) == chains[0].last_cycle
    assert len([n for n in seconds(*configs(regime="dpo", beta=0.1, cycle0="dpo")) if n.startswith("base answers")]) == 3
    assert not [name for name in seconds(*configs()) if name.startswith("base answers")]


def test_more_work_takes_longer_and_a_larger_model_too():
    (small,) = configs()
    total = sum(seconds(small).values())
    for change in (dict(last_cycle=4), dict(max_new_tokens=400), dict(n_answers=200), dict(epochs=9)):
        assert sum(seconds(*configs(**change)).values()) > total
    m, four = throughput.machine(), throughput.shape_of("Qwen/Qwen3-4B-Instruct-2507")
    assert four.kv_bytes == 2 * 36 * 8 * 128 * 2
    assert throughput.sampling_seconds(m, four, 500, 50, 400) > throughput.sampling_seconds(m, m.shape, 500, 50, 400)
    assert throughput.training_seconds(m, four, 10, 800) > throughput.training_seconds(m, m.shape, 10, 800)


def test_the_measured_machine_gives_its_own_numbers_back():
    m = throughput.machine()
    again = throughput.sampling_seconds(m, m.shape, m.batch, 50.0, 100)
    assert again == pytest.approx(100 * m.sampling_step, rel=0.05)
    assert throughput.training_seconds(m, m.shape, 1, m.train_tokens) == pytest.approx(m.train_step, rel=0.05)
    four = throughput.shape_of("Qwen/Qwen3-4B")
    assert throughput.training_seconds(m, four, 1, 10) == m.unsloth_step > 2 * m.train_step
    assert throughput.training_seconds(m, four, 1, 1e5) > 2 * m.unsloth_step
    assert 0.2 < m.utilisation < 1 and m.utilisation != throughput.UTILISATION, "it is read, not typed"


def test_ones_own_bench_replaces_the_committed_one_if_its_gpu_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    committed = throughput.machine()
    assert "H100" in committed.source
    ours = {
        **dict(shape=vars(Shape(10**8, 2, 1000)), mean_sequence=90.0, sample_step_seconds={"median": 0.01}, train_tokens_a_step=800.0),
        **dict(train_step_seconds={"median": 0.2}, startup_seconds=20.0, first_sample_seconds=40.0),
    }
    result = dict(date="2026-12-01", quick=False, device={"type": "cuda", "name": "NVIDIA H200"}, sizes={"batch": 512})
    result["parts"] = {"ours": {"status": "ok", "results": ours}}
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "nvidia-h200-2026-12-01.json").write_text(json.dumps(result))
    unknown = {**result, "device": {"type": "cuda", "name": "Some GPU"}, "date": "2027-01-01"}
    found = throughput.machine()
    (tmp_path / "bench" / "some-gpu.json").write_text(json.dumps(unknown))
    assert throughput.machine() == committed
    assert (found.sampling_step, found.train_step, found.startup, found.batch) == (0.01, 0.2, 60.0, 512)
    assert found.peaks.bandwidth == 4.8e12 and "NVIDIA H200, 2026-12-01" in found.source


def test_a_model_of_unknown_size_has_no_time(tmp_path):
    (panel,) = made(tmp_path, "study: x\npanels:\n  a: {%s, model: someone/else}\n" % GRID)  # noqa: UP031
    assert panel.gpu_seconds is None


@pytest.mark.parametrize("extra, code, said", [("", 0, "1 chains in 1 panels"), (", colour: red", 1, "unknown key 'colour'")])
def test_the_command_exits_as_it_should(tmp_path, extra, code, said):
    (tmp_path / "x.yaml").write_text("study: x\npanels:\n  a: {%s%s}\n" % (GRID, extra))  # noqa: UP031
    command = [sys.executable, "-m", "selftrain.study", "plan", str(tmp_path / "x.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code and said in (done.stderr if code else done.stdout)
    assert not code or done.stderr.count("\n") == 1


def test_the_papers_study_is_the_original_grid():
    found = study.chains_of(study.read("paper"), available=False)
    by_regime = {}
    for panel in found.values():
        for c in panel:
            by_regime.setdefault(c.regime, []).append(c)
    assert {c.trait for c in by_regime["sft"]} == {c.trait for c in by_regime["sdf"]} == set(plan.seeds.TRAITS)
    for regime in ("sft", "sdf"):
        assert len(by_regime[regime]) == 7 * 25 and len({(c.n_seed, c.n_sampled) for c in by_regime[regime]}) == 25
    assert {c.beta for c in by_regime["dpo"]} == {0.01, 0.03, 0.05, 0.1} and {c.cycle0 for c in by_regime["dpo"]} == {"dpo"}
    assert {c.model for c in by_regime["sdf"]} == {"Qwen/Qwen3-4B-Base"}
    assert all(c.preset == "paper" and c.last_cycle == 6 and c.judge == "openai" for panel in found.values() for c in panel)
