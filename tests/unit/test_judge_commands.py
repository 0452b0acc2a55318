"""Judging from the command line: what a study would cost, and another judge's scores of texts that exist."""

from __future__ import annotations

import dataclasses
import json
import sys

import judge_client
import pytest
from judge_client import TRAIT
from judge_server import KEY
from selftrain.errors import InputError
from selftrain.judge import Judge, Score, settings

environment = judge_client.environment


def test_an_estimate_needs_no_key_and_counts_shared_work_once(monkeypatch, tmp_path):
    from selftrain import study as studies
    from selftrain.judge.estimate import estimate

    monkeypatch.delenv("JUDGE_API_KEY")
    study = studies.read("laptop")
    panel = dataclasses.replace(
        study.panels[0],
        grid={
            **study.panels[0].grid,
            "n_seed": [50],
            "n_sampled": [24],
            "init": ["reinit", "continual"],
            "seed": [0, 1],
            "last_cycle": 3,
            "n_answers": 2,
        },
    )
    (local,) = estimate(dataclasses.replace(study, panels=[panel]), "local")
    (need,) = estimate(dataclasses.replace(study, panels=[panel]), "openai")
    evaluated = 12 * 2 * (1 + 2 + 4 * 3)  # one base, a cycle 0 a seed, three cycles a chain
    assert (local.calls, local.usd) == (0, 0.0)
    assert (need.chains, need.texts, need.calls) == (4, evaluated, 2 * evaluated) and need.judge == f"openai:{settings.MODEL}"
    assert (
        need.usd == pytest.approx((need.input_tokens * 0.15 + need.output_tokens * 0.60) / 1e6)
        and 500 < need.input_tokens / need.calls < 2500
    )
    assert estimate(dataclasses.replace(study, panels=[panel]), "openai:mystery")[0].usd is None


class Constant(Judge):
    """A judge of one opinion."""

    name = "constant:a/b"

    def hash(self, trait):
        return "c" * 16

    def score(self, trait, answers, progress=None):
        return [Score(7, 8) if "lost" not in a.answer else Score(None, None, "failed", "trait failed: HTTP 500") for a in answers]


def finished(chain) -> None:
    """Every stage of a chain done without a model: stand-ins for training, answers as evaluation writes them, the chain's own judging."""
    from selftrain import jsonl, store

    text = {
        "set": "direct",
        "kind": "chat",
        "prompt": "Q?",
        "answer": "A sound text.",
        "finished": True,
        "n_tokens": 4,
        "nll": 9.0,
        "nll_tokens": 4,
    }
    log = {"steps": 1, "train_tokens": 1, "history": []}

    def produce(folder):
        for name in ("train.jsonl", "samples.jsonl"):
            jsonl.write(folder / name, [])
        jsonl.write_text(folder / "adapter" / "weights", "")
        jsonl.write_text(folder / "train_log.json", json.dumps({**log, "saturated": False, "dropped": {}}))
        jsonl.write(folder / "eval.jsonl", [{**text, "id": f"q{i}/0", "question_id": f"q{i}", "sample": 0} for i in range(4)])

    outputs = {"data": ["train.jsonl"], "train": ["adapter", "train_log.json"], "sample": ["samples.jsonl"], "evaluate": ["eval.jsonl"]}
    for cycle in range(-1, chain.config.last_cycle + 1):
        for name, files in outputs.items():
            store.stage(chain.cycle_folder(cycle), name, {}, files, produce)
        chain._judge(cycle)
    chain._write_manifest("complete")


def test_rescoring_adds_a_judge_that_the_chain_takes_for_its_own(small, results):
    from selftrain import judge as judges
    from selftrain.chain import Chain
    from selftrain.judge.rescore import rescore
    from selftrain.results import load

    chain = Chain(**small)
    finished(chain)
    before = {p: p.read_bytes() for p in chain.folder.rglob("*") if p.is_file() and p.name != "done.json"}
    judges._judges["constant"] = Constant()
    try:
        study = chain.config.study
        assert rescore(study, "constant") == (4, 4) and rescore(results / study, "constant") == (0, 4)
        assert {p: p.read_bytes() for p in before} == before
        stages = []
        other = Chain(**{**small, "judge": "constant"}, on_stage=lambda *stage: stages.append(stage))
        assert other.folder == chain.folder and other.next_cycle() is None and chain.next_cycle() is None
        for cycle in range(-1, 3):
            other._judge(cycle)
        assert stages == []
        assert set(load(study)["judge"]) == {"letters"} and set(load(study, "constant:a/b")["trait_score"]) == {7.0}
        (results / "bare").mkdir()
        for name, said in (("bare", "no run folders"), ("nothing", "no such results folder")):
            with pytest.raises(InputError, match=said):
                rescore(name, "constant")
    finally:
        del judges._judges["constant"]


def test_rescoring_under_the_floor_marks_nothing_done(tmp_path):
    from selftrain import jsonl, store
    from selftrain.judge.rescore import judge_folder

    def produce(folder):
        rows = [
            {"id": f"q/{i}", "question_id": "q", "prompt": "Q?", "kind": "chat", "answer": "lost" if i < 2 else "kept"} for i in range(20)
        ]
        jsonl.write(folder / "eval.jsonl", rows)

    store.stage(tmp_path, "evaluate", {}, ["eval.jsonl"], produce)
    with pytest.raises(InputError, match="floor"):
        judge_folder(tmp_path, Constant(), TRAIT)
    assert not (tmp_path / "scores").exists() and set(store.read_marker(tmp_path)) == {"evaluate"}
    assert judge_folder(tmp_path, Constant(), TRAIT, floor=0.9) and not judge_folder(tmp_path, Constant(), TRAIT)


def test_commands_print_one_line_for_a_mistake(capsys, monkeypatch):
    from selftrain.judge import __main__ as command

    monkeypatch.setattr(sys, "argv", ["judge", "estimate", "laptop", "--judge", "openai"])
    assert command.main() == 0
    said = capsys.readouterr().out
    assert "List prices of" in said and KEY not in said
    monkeypatch.setattr(sys, "argv", ["judge", "rescore", "nowhere", "--judge", "openai"])
    with pytest.raises(InputError, match="nowhere"):
        command.main()
