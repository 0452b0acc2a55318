"""Tests for a CUDA device; without one each is skipped, with the reason. On a GPU host: make gpu-test."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from selftrain import paths


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == paths.ROOT / "tests" / "gpu":
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def unsloth():
    """Skips where Unsloth is not installed. It is not imported here: it would patch this process."""
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("needs unsloth: pip install -e .[gpu]")


@pytest.fixture(scope="session")
def smollm():
    """The embedded instruct model, resident on the device, trained by TRL."""
    from selftrain.resident import Resident

    if not (paths.MODELS / "smollm2-135m-instruct").exists():
        pytest.skip("needs the embedded model: make models")
    return Resident.open("smollm2-135m-instruct", rank=16, alpha=32, trainer="trl")


@pytest.fixture(scope="session")
def gemma():
    """The embedded base model, whose attention slides, resident on the device."""
    from selftrain.resident import Resident

    if not (paths.MODELS / "gemma-3-270m").exists():
        pytest.skip("needs gemma: python -m selftrain.models fetch gemma-3-270m")
    return Resident.open("gemma-3-270m", rank=16, alpha=32, trainer="trl")
