"""Where tests and notebooks under test read and write: a copy of the committed tables, never the user's own results and figures."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent
MODELS = Path(os.environ.get("SELFTRAIN_MODELS", ROOT / ".models"))
NEEDS = {"11_sdf.ipynb": "gemma-3-270m"}

scratch = Path(tempfile.mkdtemp(prefix="selftrain-tests-"))
atexit.register(shutil.rmtree, scratch, ignore_errors=True)
for tables in ROOT.glob("results/**/tables"):
    shutil.copytree(tables, scratch / tables.relative_to(ROOT))
os.environ |= {
    "SELFTRAIN_RESULTS": str(scratch / "results"),
    "SELFTRAIN_FIGURES": str(scratch / "figures"),
    "SELFTRAIN_EXECUTED": str(scratch / "executed"),
    "SELFTRAIN_BATCH": "1",
    "HF_HUB_OFFLINE": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


def pytest_ignore_collect(collection_path, config):
    """Leave out a notebook whose model was not fetched (gemma is not part of `make models`: 240 MB, its own licence)."""
    needed = NEEDS.get(collection_path.name)
    return True if needed and not (MODELS / needed).exists() else None
