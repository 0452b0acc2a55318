"""A capped process stays within its share of the device, and a model still samples there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from selftrain import memory, paths

GREEDY = """
import torch
from selftrain import memory
memory.prepare()
total, held = torch.cuda.get_device_properties(0).total_memory, []
try:
    while len(held) < 4096:
        held.append(torch.empty(2**28, dtype=torch.uint8, device="cuda"))
except torch.cuda.OutOfMemoryError:
    pass
print(torch.cuda.max_memory_reserved() / total)
"""
SAMPLING = """
import torch
from selftrain.bench.sizes import prompts
from selftrain.resident import Resident
from selftrain.sampling import Request, sample
resident = Resident.open("smollm2-135m-instruct", rank=16, alpha=32)
resident.fresh(0)
made = sample(resident, [Request(t, i) for i, t in enumerate(prompts(64))], kind="chat", max_new_tokens=16, temperature=0.8)
assert len(made) == 64 and not resident.plain_sampling
print(torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory)
"""


def share_used(code: str, share: float) -> float:
    env = {**os.environ, **memory.environment_for(1, share)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.strip().splitlines()[-1])


def test_no_more_than_the_share_is_taken():
    assert 0.15 < share_used(GREEDY, 0.2) <= 0.2


@pytest.mark.skipif(not (paths.MODELS / "smollm2-135m-instruct").exists(), reason="needs the embedded model: make models")
def test_a_model_samples_within_its_share():
    assert 0 < share_used(SAMPLING, 0.1) <= 0.1
