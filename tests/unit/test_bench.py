"""The bench's arithmetic and bookkeeping: floors, ratios, targets, parts that fail alone, and the comparison of log-probs."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import psutil
import pytest
import torch
from selftrain import formats, jsonl, passes, paths, trainers
from selftrain.bench import __main__ as bench
from selftrain.bench import correctness, floors, large, measure, ours, packing, report
from selftrain.bench.floors import Peaks, Shape
from selftrain.bench.sizes import SIZES, Sizes, config, items, prompts
from selftrain.resident import Resident
from selftrain.training import Settings

TINY_QWEN = {**large.SHAPES["4b"], "vocab_size": 49_152, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
TINY_QWEN |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
needs_models = pytest.mark.skipif(not (paths.MODELS / "smollm2-135m-instruct").exists(), reason="needs the embedded model: make models")


def spread(x):
    return measure.spread([x * 0.9, x, x * 1.1])


def made(**parts):
    """A CUDA result with the parts given, sizes of the full bench."""
    shape = vars(Shape(1_000_000, 2, 100))
    side = dict(startup_seconds=10.0, first_sample_seconds=5.0, first_cycle_seconds=9.0, peak_memory_gb=4.0, shape=shape)
    base = {**side, "sample_tokens_per_second": spread(5_000), "train_step_seconds": spread(0.3), "cycle_seconds": spread(40.0)}
    ours = {**side, "sample_tokens_per_second": spread(70_000), "train_step_seconds": spread(0.2), "cycle_seconds": spread(10.0)}
    ours |= {"mean_sequence": 100.0, "train_tokens_a_step": 800.0, "train_steps_a_cycle": 32, "sample_step_seconds": spread(0.012)}
    results = {"baseline": base, "ours": ours, **parts}
    return {
        "date": "2026-11-23",
        "quick": False,
        "device": {"type": "cuda", "name": "NVIDIA H100 80GB HBM3"},
        "sizes": asdict(SIZES["cuda"]),
        "peaks": asdict(Peaks(1e12, 1e14, "a test")),
        "parts": {name: {"status": "ok", "seconds": 1.0, "results": r} for name, r in results.items()},
    }


def trained(trainer, rate, memory, size=4_000_000_000, bits=16):
    return {
        **dict(model="4b", trainer=trainer, bits=bits, length=512, train_tokens_per_second=spread(rate), memory_without_weights_gb=memory),
        **dict(peak_memory_gb=memory + 8, sample_tokens_per_second=spread(900), shape={"parameters": size}),
    }


def test_floors_are_bytes_and_operations():
    shape, peaks = Shape(1_000_000, 2, 100), Peaks(1e9, 1e12, "a test")
    assert floors.sampling_step(shape, batch=10, length=50, peaks=peaks) == pytest.approx((2_000_000 + 10 * 50 * 100) / 1e9)
    assert floors.sampling_step(shape, 10, 50, replace(peaks, flops=1e6)) == pytest.approx(2 * 1_000_000 * 10 / 1e6)
    assert floors.training_step(shape, 1600, peaks) == pytest.approx(6 * 1_000_000 * 1600 / 1e12)


@pytest.mark.parametrize("name, bandwidth", [("NVIDIA H100 80GB HBM3", 3.35e12), ("NVIDIA H100 PCIe", 2.0e12), ("NVIDIA H200", 4.8e12)])
def test_peaks_go_by_the_devices_name(name, bandwidth):
    assert floors.peaks_of(name).bandwidth == bandwidth and floors.peaks_of("GeForce 256") is None


def test_a_models_shape_leaves_its_adapter_out(tiny):
    shape = Shape.of(tiny.model)
    assert shape.parameters == sum(p.numel() for name, p in tiny.model.named_parameters() if "lora" not in name)
    assert (shape.element, shape.kv_bytes) == (4, 2 * 2 * 2 * 8 * 4)


def test_ratios_say_how_many_times_better():
    result = made()
    assert report.ratio(result, "sample_tokens_per_second", more=True) == pytest.approx(14)
    assert report.ratio(result, "cycle_seconds", more=False) == pytest.approx(4)
    result["parts"]["baseline"]["status"] = "failed"
    assert report.ratio(result, "cycle_seconds", more=False) is None


def test_targets_are_reached_missed_or_not_measured():
    packed = {"jobs": 8, "chains_per_hour": 120.0, "window_seconds": 120}
    result = made(packing_8=packed, train_4b_trl_16_512=trained("trl", 1000, 20.0), train_4b_unsloth_16_512=trained("unsloth", 1300, 15.0))
    found = {t["target"]: t for t in report.targets(result)}
    assert found["sampling, times the baseline"]["reached"] and found["sampling, tokens/s"]["reached"]
    assert found["a cycle in one process, times the baseline"]["found"] == pytest.approx(4)
    over = found["throughput with packing, times the baseline"]  # the baseline makes 3600 / (7 x 40 s) chains an hour
    assert over["found"] == pytest.approx(120 / (3600 / 280)) and over["reached"] is False
    assert found["chains (cycles 0-6) a minute, over at least 6 minutes"]["reached"] is None  # the window was too short
    by_trainer = [t for name, t in found.items() if "Unsloth" in name]
    assert [(t["found"], t["reached"]) for t in by_trainer] == [(pytest.approx(1.3), True), (pytest.approx(0.75), False)]
    alone = report.targets(made(packing_1={"jobs": 1, "chains_per_hour": 90.0, "window_seconds": 60}))
    assert {t["target"]: t for t in alone}["throughput with packing, times the baseline"]["reached"] is None
    long = made(packing_4={**packed, "jobs": 4, "chains_per_hour": 660.0, "window_seconds": 360})
    assert {t["target"]: t for t in report.targets(long)}["chains (cycles 0-6) a minute, over at least 6 minutes"]["reached"]


def test_all_committed_runs_of_a_device_stand_beside_each_other_and_the_newest_whole_one_is_taken(tmp_path, monkeypatch):
    packed = {"jobs": 8, "chains_per_hour": 480.0, "window_seconds": 360, "at_once": True}
    both = {f"train_4b_{trainer}_16_512": trained(trainer, 1000, 20.0) for trainer in ("trl", "unsloth")}
    whole, part = made(packing_8=packed, **both), made()
    other = made(**both) | {"device": {"type": "cuda", "name": "NVIDIA A100"}}
    for name, result, day in (
        ("b", whole, "2026-11-23"),
        ("b-2", whole, "2026-11-23"),
        ("a", part, "2026-11-24"),
        ("c", whole | {"quick": True}, "2026-11-25"),
        ("0", other, "2026-11-22"),
    ):
        result["parts"]["ours"]["commit"] = f"{name[0]}234567890"
        report.write(tmp_path / "bench" / f"{name}.json", result | {"date": day})
    monkeypatch.setattr(report, "COMMITTED", tmp_path / "bench")
    assert report.newest("cuda", committed=True)[0].name == "b-2.json"
    first, second, third = report.runs("NVIDIA H100 80GB HBM3")
    assert first[:4] == ["[2026-11-23](results/bench/b.json), b234567", "70,000 (14.0 x)", "0.2 (1.5 x)", "10 (4.0 x)"]
    assert first[4:6] == ["-", "480"] and "b-2.json" in second[0] and first[1:] == second[1:]
    assert first[6].startswith("chains (cycles 0-6) a minute, over at least 6 minutes; Unsloth's") and first[6].endswith("(of 7 measured)")
    assert third[0].startswith("[2026-11-24]") and third[4:] == ["-", "-", "none (of 3 measured)"]
    assert {len(row) for row in (first, second, third)} == {len(report.RUNS)}


def test_the_crossover_is_the_size_from_which_unsloth_stays_faster():
    def result(*rates):
        parts = {}
        for n, (size, trl, unsloth) in enumerate(rates):
            parts[f"train_{n}_trl_16_512"] = trained("trl", trl, 1.0, size)
            parts[f"train_{n}_unsloth_16_512"] = trained("unsloth", unsloth, 1.0, size)
        return made(**parts)

    assert report.crossover(result((6e8, 100, 90), (17e8, 50, 60), (4e9, 20, 30))) == 17e8
    assert report.crossover(result((6e8, 100, 110), (17e8, 50, 40), (4e9, 20, 30))) == 4e9
    assert report.crossover(result((6e8, 100, 90), (4e9, 20, 10))) is None


def test_auto_changes_trainers_where_the_committed_bench_says():
    found = report.newest("cuda", committed=True)[1]
    sizes = sorted({trl["shape"]["parameters"] for _, trl, _ in report.pairs_of_trainers(found) if trl["bits"] == 16})
    above = report.crossover(found)
    assert max([size for size in sizes if size < above], default=0) < trainers.CROSSOVER <= above


def test_every_number_of_a_result_can_be_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    gap = {"mean": 0.01, "max": 0.2}
    logprobs = dict(dtype="torch.bfloat16", fast_against_plain=gap, plain_cache_against_plain=gap, limit=gap, within_noise=True)
    scores = dict(answers=[512, 511], limit=0.01, p_value=0.4, same_distribution=True)
    packed = {"jobs": 2, "chains_per_hour": 300.0, "window_seconds": 120, "at_once": True}
    turns = {**packed, "at_once": False}
    losses = dict(steps=7, max_relative=0.004, limit=0.02, within_noise=True, own_step_seconds=0.25, replayed_step_seconds=0.0312)
    result = made(correctness={"losses": losses, "logprobs": logprobs, "scores": scores}, packing_2=packed, packing_2_turns=turns)
    for name in ("packing_2", "packing_2_turns"):
        result["parts"][name]["note"] = "beside a [busy] neighbour"
    result["parts"]["train_4b_unsloth_4_512"] = {"status": "failed", "seconds": 3.0, "error": "no [such] thing"}
    path = report.file_for("NVIDIA H100 80GB HBM3", False, date(2026, 11, 23))
    assert path.name == "nvidia-h100-80gb-hbm3-2026-11-23.json"
    report.write(path, result)
    assert report.newest("cuda")[0] == path and report.newest("cuda", committed=True)[0] != path
    bench.show(path)
    shown = capsys.readouterr().out
    for text in (
        "14.00",
        "chains/hour, 2 processes at once",
        "Note: packing_2, packing_2_turns: beside a [busy] neighbour",
        "chains/hour, 2 processes in turns (asked",
        "within noise",
        "losses of 7 steps",
        "0.40%, 0.0312 and 0.25 s a step",
        "0.4",
        "train_4b_unsloth_4_512 failed: no [such] thing",
        "not measured",
    ):
        assert text in shown
    assert report.floors(result)["sample_tokens_per_second"] == pytest.approx(1e14 / 2e6)  # bound by operations


def test_both_sides_get_the_same_work():
    sizes = SIZES["cpu-quick"]
    assert len(prompts(7)) == 7 and len({i.id for i in items(20)}) == 20
    assert config(sizes).max_new_tokens == sizes.new_tokens and config(sizes).batch_size == sizes.train_batch
    for size in SIZES.values():  # a cycle needs two batches to time a step, and its texts must be there
        assert size.n_sampled >= 2 * size.train_batch and size.repeats >= 3
        assert len(items(size.n_sampled)) == size.n_sampled and len(prompts(size.n_sampled + size.n_eval)) == size.n_sampled + size.n_eval


def test_a_part_that_fails_is_a_result_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    sizes = replace(SIZES["cpu-quick"], model="./nowhere")
    ((name, failed),) = bench.in_a_process(["ours"], sizes, "cpu")
    assert name == "ours" and failed["status"] == "failed" and "no such folder" in failed["error"]
    asked = []

    def pretend(names, sizes, device):
        asked.extend(names)
        for name in names:
            yield name, failed if name == "baseline" else {"status": "ok", "seconds": 1.0, "results": made()["parts"]["ours"]["results"]}

    monkeypatch.setattr(bench, "in_a_process", pretend)
    monkeypatch.setattr(bench, "part_names", lambda sizes, device: ["baseline", "ours"])
    monkeypatch.setattr(floors, "measured_cpu", lambda: Peaks(1e10, 1e11, "a test"))
    assert bench.run("cpu", True, None, False, None) == 1
    assert bench.run("cpu", True, None, False, None) == 1
    assert asked == ["baseline", "ours", "baseline"]  # what is done is not run again
    (path,) = (tmp_path / "bench").glob("*.json")
    assert json.loads(path.read_text())["floors"] and "no such folder" in capsys.readouterr().out


def test_parts_are_named_and_unknown_ones_refused():
    names = bench.part_names(SIZES["cuda"], "cuda")
    assert len(names) == len(set(names)) and {"packing_8", "train_4b_unsloth_4_2048", "train_0.6b_trl_16_512"} <= set(names)
    assert bench.part_names(SIZES["cpu"], "cpu") == ["baseline", "ours", "correctness"]
    together = bench.groups(names)
    assert sorted(sum(together, [])) == sorted(names) and ["packing_8_turns"] in together
    assert ["packing_1", "packing_2", "packing_4", "packing_8"] in together
    assert ["train_4b_unsloth_4_512", "train_4b_unsloth_4_2048"] in together and len(together) == 9
    with pytest.raises(bench.InputError, match="one trainer"):
        large.lengths_of(["train_4b_trl_16_512", "train_4b_trl_4_512"])
    with pytest.raises(bench.InputError, match="no part 'speed'"):
        bench.run("cpu", True, ["speed"], False, None)
    assert Sizes(**asdict(SIZES["cuda"])) == SIZES["cuda"]


def test_the_cached_path_gives_the_plain_forwards_logprobs_and_a_changed_weight_is_seen(tiny):
    tiny.fresh(0)
    texts = ["One.", "A much longer prompt than the other one.", "Three?"]
    found = correctness.logprobs(tiny, texts, 6)
    assert found["tokens"] == 18 and found["within_noise"] and found["dtype"] == "torch.float32"
    ids, mask, fast, start = correctness.recorded(tiny, texts, 6)
    weight = tiny.model.get_base_model().lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        other = correctness.difference(fast, correctness.forward_logps(tiny.model, ids, mask, start))
        weight.copy_(kept)
    assert other["mean"] > correctness.NOISE["torch.float32"][0]


@needs_models
def test_steps_in_bfloat16_are_as_near_to_float32_as_the_forward():
    small = Resident.open("smollm2-135m-instruct", rank=16, alpha=32, device="cpu")
    small.fresh(0)
    with torch.no_grad():
        for name, p in small.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02)
            elif "lora_" not in name:
                p.data = p.to(torch.bfloat16)
    found = correctness.logprobs(small, prompts(8), 16)
    assert found["plain_against_float32"]["mean"] > 0.01, "nothing was rounded, so that nothing was shown"
    assert found["as_exact"], found
    for group in small.layers.groups:
        group.expand *= 2
    small.layers.refresh = lambda: None
    worse = correctness.logprobs(small, prompts(8), 16)
    assert not worse["as_exact"], "an adapter twice as strong was not seen"


def test_losses_of_padded_passes_are_compared_with_the_models_own(tiny, monkeypatch):
    rows = [formats.training_row(tiny.tokenizer, item, 500) for item in items(5)]
    settings = Settings(1e-2, "constant", 1, 2, 0.0, 0.0, 1.0, 3)
    assert correctness.losses(tiny, rows, settings) is None  # a CPU records nothing
    monkeypatch.setattr(passes, "_why_not", lambda resident, length: "" if resident.plain_training else None)
    found = correctness.losses(tiny, rows, settings)
    assert found["steps"] == 3 and found["max_relative"] < 1e-4 and found["within_noise"] and not tiny.plain_training
    real = passes.hidden_states
    monkeypatch.setattr(passes, "hidden_states", lambda *given: real(*given) * 100)
    assert not correctness.losses(tiny, rows, settings)["within_noise"]
    tiny.forget()


@needs_models
@pytest.mark.model
def test_training_at_a_shape_runs_on_a_cpu_with_a_tiny_shape(tmp_path):
    sizes = replace(SIZES["cpu-quick"], large_rows=2, large_steps=5)
    names = ["train_4b_trl_16_32", "train_4b_trl_16_64"]
    found, longer = large.run(sizes, "cpu", names, shapes={"4b": TINY_QWEN}, folder=tmp_path / "tiny-qwen")
    assert (found["length"], longer["length"]) == (32, 64) and longer["losses"][0] == pytest.approx(10.8, abs=0.5)
    assert len(found["losses"]) == 5 and len(found["train_step_seconds"]["values"]) == 2
    assert found["train_tokens_per_second"]["max"] == pytest.approx(64 / found["train_step_seconds"]["min"])
    assert found["shape"]["parameters"] < 10_000_000 and found["losses"][0] == pytest.approx(10.8, abs=0.5)  # ln 49,152, random weights


def test_parts_that_ended_are_kept_where_a_later_one_of_their_process_fails(tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_text(f"""#!{sys.executable}
import sys, time, pathlib
first, folder = sys.argv[sys.argv.index("parts") + 1], pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
(folder / f"{{first}}.json").write_text('{{"losses": [1.5]}}')
time.sleep(0.5)
sys.exit("the second part broke")
""")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    found = dict(bench.in_a_process(["a", "b", "c"], SIZES["cpu-quick"], "cpu"))
    assert found["a"]["status"] == "ok" and found["a"]["results"] == {"losses": [1.5]}
    assert (found["b"]["status"], found["b"]["error"]) == ("failed", "the second part broke") and "c" not in found
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "part_names", lambda sizes, device: ["train_a_trl_16_1", "train_b_trl_16_1", "train_c_trl_16_1"])
    monkeypatch.setattr(floors, "measured_cpu", lambda: Peaks(1e10, 1e11, "a test"))
    monkeypatch.setattr(report, "tables", lambda result: [])
    monkeypatch.setattr(report, "write", lambda path, result: jsonl.write_text(path, json.dumps(result)))
    assert bench.run("cpu", True, None, False, None) == 1
    (path,) = (tmp_path / "bench").glob("*.json")  # what came after a failed part had a process of its own, and ended
    assert [p["status"] for p in json.loads(path.read_text())["parts"].values()] == ["ok", "failed", "ok"]


def test_what_a_part_has_started_ends_with_it(tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_text(f"""#!{sys.executable}
import pathlib, subprocess, sys, time
worker = subprocess.Popen([{sys.executable!r}, "-c", "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"])
(pathlib.Path({str(tmp_path)!r}) / "worker").write_text(str(worker.pid))
time.sleep(600)
""")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(bench, "LIMIT", 3)
    ((_, failed),) = bench.in_a_process(["a"], SIZES["cpu-quick"], "cpu")
    assert failed["error"] == "more than 3 s"
    worker = int((tmp_path / "worker").read_text())
    until = time.monotonic() + 10
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.1)
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE


class Worker(threading.Thread):
    """A packed process as a thread, with what packing.run asks of a process."""

    def __init__(self, command, **_):
        super().__init__(daemon=True)
        self.index, self.folder, self.device = int(command[-1]), Path(command[4]), command[6]
        self.start()

    def run(self):
        packing.worker(self.index, self.folder, SIZES["cpu-quick"], self.device)

    def poll(self):
        return None if self.is_alive() else 0

    def wait(self, seconds):
        self.join(seconds)

    def kill(self):
        assert not self.is_alive()


def test_packed_windows_count_the_cycles_that_ended_in_them(monkeypatch):
    seeds = []

    class Chain:
        def __init__(self, config, resident):
            seeds.append(config.seed)

        def run_cycle(self, cycle):
            time.sleep(2.5 if cycle == 2 else 0.05)

    monkeypatch.setattr(packing.subprocess, "Popen", Worker)
    monkeypatch.setattr(ours, "opened", lambda sizes, device: None)
    monkeypatch.setattr("selftrain.chain.Chain", Chain)
    sizes = replace(SIZES["cpu-quick"], packing_jobs=(1, 2), packing_seconds=1, packing_long=2)
    one, two = packing.run(sizes, "cpu", [1, 2])
    assert [one["window_seconds"], two["window_seconds"]] == [1, 2] and (one["started"], two["started"]) == (2, 2)
    assert one["cycles"] == 2 and two["cycles"] == 2 * 2  # neither the base nor a cycle that ends after the window counts
    assert len(seeds) == len(set(seeds))
    assert two["chains_per_hour"] == pytest.approx(two["cycles"] / 7 / 2 * 3600)
    (turns,) = packing.run(sizes, "cpu", [2], service=False)
    assert turns["window_seconds"] == 1 and not turns["at_once"]


def test_random_rows_are_whole_and_never_end():
    rows = large.random_rows(4, 16, 300, end=7)
    assert all(len(r["input_ids"]) == 16 and r["labels"] == r["input_ids"] and 7 not in r["input_ids"] and not r["ends"] for r in rows)


def test_steps_are_timed_between_their_ends():
    clock = measure.Steps()
    clock.at = [1.0, 3.0, 3.5, 4.5]
    assert clock.seconds() == [2.0, 0.5, 1.0] and clock.seconds(skip=3) == [1.0]
