"""Unsloth in a process of its own: recorded sampling says what its patched model says, and a chain of SFT and one of DPO run on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from selftrain import paths

MODEL = "smollm2-135m-instruct"
SAMPLED = """
import json
import os
from gpu_rows import rows_of, settings
from selftrain.bench import correctness
from selftrain.bench.sizes import prompts
from selftrain.resident import Resident
from selftrain.sampling import Request, sample
from selftrain.training import train
resident = Resident.open("smollm2-135m-instruct", rank=16, alpha=32, trainer="unsloth")
resident.fresh(1)
train(resident, rows_of(resident, "chat", 32), settings(lr=1e-3))
ids, mask, fast, start = correctness.recorded(resident, prompts(16), 32)
plain = correctness.forward_logps(resident.model, ids, mask, start)
with resident.as_base():
    base = correctness.forward_logps(resident.model, ids, mask, start)
made = sample(resident, [Request(t, i) for i, t in enumerate(prompts(32))], kind="chat", max_new_tokens=24, temperature=0.8)
print(json.dumps({
    "trainer": resident.trainer, "plain": resident.plain_sampling, "said": sorted(resident.said), "answers": sum(bool(m.text) for m in made),
    "gap": correctness.difference(fast, plain), "moved": correctness.difference(plain, base), "noise": correctness.NOISE[str(resident.layers.model.dtype)],
}))
"""
CHAIN = """
import json, sys
from selftrain.chain import BASE, Chain
regime, init = sys.argv[1:3]
chain = Chain(study="gpu", panel=f"unsloth_{regime}", trait="bliss", regime=regime, init=init, trainer="unsloth", n_seed=8, n_sampled=8, last_cycle=1,
              n_questions=2, n_answers=2, max_new_tokens=24, batch_size=4, **({"cycle0": "sft", "lr": 4e-5} if regime == "dpo" else {}))
for cycle in (BASE, 0, 1):
    chain.run_cycle(cycle)
log = json.loads((chain.cycle_folder(1) / "train_log.json").read_text())
print(json.dumps({"trainer": log["trainer"], "cycles": len(chain.manifest()["cycles"]), "plain": chain._resident.plain_sampling}))
"""


def printed(code, tmp_path, *given):
    """The JSON that a process of its own prints last."""
    env = {
        **os.environ,
        "SELFTRAIN_RESULTS": str(tmp_path),
        "PYTHONPATH": f"{paths.ROOT / 'tests' / 'gpu'}:{paths.ROOT / 'lib'}:{':'.join(filter(None, sys.path))}",
    }
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(autouse=True)
def there(unsloth):
    if not (paths.MODELS / MODEL).exists():
        pytest.skip("needs the embedded model: make models")


def test_recorded_steps_say_what_the_patched_model_says(tmp_path):
    found = printed(SAMPLED, tmp_path)
    assert found["trainer"] == "unsloth" and not found["plain"] and found["answers"] > 24, found
    assert found["gap"]["mean"] <= found["noise"][0] and found["gap"]["max"] <= found["noise"][1], found
    assert found["moved"]["mean"] > 3 * found["gap"]["mean"], "the adapter says nothing, so that nothing was shown"


@pytest.mark.parametrize(("regime", "init"), [("sft", "reinit"), ("dpo", "continual")])
def test_a_chain_runs_on_unsloth(tmp_path, regime, init):
    assert printed(CHAIN, tmp_path, regime, init) == {"trainer": "unsloth", "cycles": 3, "plain": False}
