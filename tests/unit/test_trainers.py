"""Which trainer is chosen and refused, how a model is loaded for Unsloth, and that training's losses stay what they are."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch
from selftrain import trainers
from selftrain.bench import trajectory
from selftrain.chain import Chain
from selftrain.config import ChainConfig
from selftrain.errors import InputError
from selftrain.formats import Item
from selftrain.resident import Resident
from selftrain.training import longest_row, train

ITEMS = [Item(f"i{n}", "chat", f"Question {n}?", f"{'Well, ' * (n % 3 + 1)}number {n} it is.", finished=n % 4 != 3) for n in range(8)]


@pytest.fixture
def machine(monkeypatch):
    """Set up what `choose` looks at: machine(installed, cuda, unsloth_loaded, trl_loaded)."""

    find = trainers.importlib.util.find_spec

    def set_up(installed=True, cuda=True, unsloth=False, trl=False, memory_gb=80):
        spec = object() if installed else None
        monkeypatch.setattr(trainers.importlib.util, "find_spec", lambda name: spec if name == "unsloth" else find(name))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(trainers.memory, "room", lambda: memory_gb * 1e9)
        for name, there in (("unsloth", unsloth), ("trl", trl)):
            if there:
                monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
            else:
                monkeypatch.delitem(sys.modules, name, raising=False)

    return set_up


def refused(asked, model, message):
    with pytest.raises(InputError, match=message) as caught:
        trainers.choose(asked, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "model, installed, cuda, expected",
    [
        ("Qwen/Qwen3-4B-Instruct-2507", True, True, "unsloth"),
        ("meta-llama/Llama-3.1-8B", True, True, "unsloth"),
        ("Qwen/Qwen3-1.7B", True, True, "trl"),
        ("someone/model-of-unknown-size", True, True, "trl"),
        ("Qwen/Qwen3-4B-Instruct-2507", False, True, "trl"),
        ("Qwen/Qwen3-4B-Instruct-2507", True, False, "trl"),
    ],
)
def test_auto_goes_by_device_installation_and_size(machine, model, installed, cuda, expected):
    machine(installed=installed, cuda=cuda)
    assert trainers.choose("auto", model) == expected


def test_auto_takes_the_trainer_that_needs_less_where_memory_is_short(machine):
    machine(memory_gb=22)
    assert trainers.choose("auto", "Qwen/Qwen3-1.7B") == "unsloth" and trainers.choose("auto", "Qwen/Qwen3-0.6B") == "trl"
    machine(memory_gb=76)
    assert trainers.choose("auto", "Qwen/Qwen3-1.7B") == "trl"
    assert trainers.crossover(1e12) == trainers.CROSSOVER


def test_a_named_trainer_is_taken_whatever_the_size(machine):
    machine()
    assert trainers.choose("unsloth", "Qwen/Qwen3-0.6B") == "unsloth"
    assert trainers.choose("trl", "Qwen/Qwen3-4B") == "trl"


def test_unsloth_is_refused_where_it_cannot_run(machine):
    machine(installed=False, cuda=True)
    refused("unsloth", "m-4B", "pip install")
    machine(installed=True, cuda=False)
    refused("unsloth", "m-4B", "CUDA device and there is none; say trainer: trl")


def test_one_process_has_one_trainer(machine, caplog):
    machine(unsloth=True)
    refused("trl", "m-4B", "patched this process")
    refused("auto", "m-100m", "patched this process")
    machine(trl=True)
    refused("unsloth", "m-4B", "imported before TRL")
    assert trainers.choose("auto", "m-4B") == "trl" and "restart to use Unsloth" in caplog.text
    machine(trl=True, unsloth=True)
    assert trainers.choose("auto", "m-4B") == "unsloth"


def test_a_chain_that_asks_for_unsloth_is_refused_here_before_training(small, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    chain = Chain(**small, trainer="unsloth")
    with pytest.raises(InputError, match="trainer: unsloth"):
        chain.step()
    assert not (chain.folder / "cycle_00").exists()


def test_a_shared_resident_must_be_of_the_trainer_asked_for(small, tiny):
    with pytest.raises(InputError, match="trained by trl, this chain asks for trainer unsloth"):
        _ = Chain(**small, trainer="unsloth", resident=tiny).resident


def test_parameters_are_counted_from_headers_and_read_from_names(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, str(tmp_path / "model.safetensors"))
    assert trainers.parameters_of(str(tmp_path)) == 22
    assert trainers.parameters_of("Qwen/Qwen3-1.7B-Base") == 1_700_000_000
    assert trainers.parameters_of("some/gemma-3-270m-it") == 270_000_000
    assert trainers.parameters_of("some/model-2507") is None


def test_the_key_names_no_other_chain_and_stands_in_the_train_log(small, tiny):
    one = ChainConfig.create(trait="bliss", n_seed=5, n_sampled=5)
    assert one.trainer == "auto" and one.changed(trainer="trl").chain_id == one.chain_id
    with pytest.raises(InputError, match="trainer"):
        one.changed(trainer="axolotl")
    chain = Chain(**small, resident=tiny)
    chain.step()
    import json

    assert json.loads((chain.cycle_folder(0) / "train_log.json").read_text())["trainer"] == "trl"


def test_unsloth_is_told_everything_that_it_would_decide_itself(tiny, monkeypatch):
    """A stand-in for the library: what it is asked for, and that its model is used as it comes."""
    asked = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**given):
            asked["load"] = given
            return "model", "tokenizer"

        @staticmethod
        def get_peft_model(model, **given):
            asked["lora"] = given
            return tiny.model

    module = types.ModuleType("unsloth")
    module.FastLanguageModel = FastLanguageModel
    monkeypatch.setitem(sys.modules, "unsloth", module)
    loader = trainers.unsloth_loader(rank=4, alpha=8)
    assert loader("here", torch.bfloat16, revision="abc", local_files_only=True) is tiny.model
    assert asked["load"] == {
        **dict(model_name="here", max_seq_length=trainers.MAX_LENGTH, dtype=torch.bfloat16, load_in_4bit=False, use_exact_model_name=True),
        **dict(use_gradient_checkpointing=False, fix_tokenizer=False, offload_embedding=False, revision="abc", local_files_only=True),
    }
    assert asked["lora"]["target_modules"] == "all-linear" and (asked["lora"]["r"], asked["lora"]["lora_alpha"]) == (4, 8)
    taken = Resident(tiny.model, tiny.tokenizer, name="t", fingerprint="t", kind="instruct", rank=4, alpha=8, trainer="unsloth")
    assert taken.model is tiny.model
    taken.fresh(1)
    rows = trajectory.rows_for(tiny.tokenizer, "sft", ITEMS)
    assert train(taken, rows, trajectory.SETTINGS).trainer == "unsloth"
    monkeypatch.setattr(trainers, "MAX_LENGTH", longest_row(rows) - 1)
    with pytest.raises(InputError, match="longer than"):
        train(taken, rows, trajectory.SETTINGS)


def test_nothing_that_unsloth_patches_is_imported_before_a_model_is_loaded():
    code = "import sys, selftrain.panel, selftrain.display; print(sorted({'transformers', 'peft', 'trl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# Per-step losses of the tiny random model (tests/conftest.py), trl 1.14.2, torch 2.13.0, on a CPU.
GOLDEN = {
    "sft": [5.5652, 5.5103, 5.4637, 5.4135, 5.3986, 5.3844, 5.384, 5.3728],
    "dpo": [0.6931, 0.7454, 0.6885, 0.6951, 0.6825, 0.6974, 0.6938, 0.7018],
}


@pytest.mark.parametrize("regime", ["sft", "dpo"])
def test_the_golden_trajectory_is_stable(tiny, regime):
    from dataclasses import replace

    settings = replace(trajectory.SETTINGS, lr=1e-2, batch_size=2, beta=0.1 if regime == "dpo" else None)
    found = trajectory.losses(tiny, trajectory.rows_for(tiny.tokenizer, regime, ITEMS), settings, "base" if regime == "dpo" else None)
    assert found == pytest.approx(GOLDEN[regime], abs=2e-4), [round(x, 4) for x in found]
    assert sum(found) / len(found) == pytest.approx(sum(GOLDEN[regime]) / len(found), abs=5e-5)


def test_trajectories_agree_within_the_stated_tolerance_and_no_further():
    losses = [3.0, 2.5, 2.0, 1.5]
    assert trajectory.agree(losses, [x + (-1) ** n * 0.04 for n, x in enumerate(losses)]) is None
    assert "step 3" in trajectory.agree(losses, [3.0, 2.5, 2.06, 1.5])
    assert "mean" in trajectory.agree(losses, [x + 0.03 for x in losses])
    assert "steps against" in trajectory.agree(losses, losses[:3])
