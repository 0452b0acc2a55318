"""Which notebooks pytest runs: those whose model is there."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("SELFTRAIN_BATCH", "1")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")

MODELS = Path(os.environ.get("SELFTRAIN_MODELS", Path(__file__).parent / ".models"))
NEEDS = {"11_sdf.ipynb": "gemma-3-270m"}


def pytest_ignore_collect(collection_path, config):
    """Leave out a notebook whose model was not fetched (gemma is not part of `make models`: 240 MB, its own licence)."""
    needed = NEEDS.get(collection_path.name)
    return True if needed and not (MODELS / needed).exists() else None
