"""The one module that knows where things lie."""

from __future__ import annotations

import os
from pathlib import Path


def find_root() -> Path:
    """Repository root: the folder with pyproject.toml above the working folder, else above this file."""
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "pyproject.toml").exists() and (folder / "seeds").is_dir():
                return folder
    return Path.cwd()


ROOT = find_root()
SEEDS = ROOT / "seeds"
RESULTS = Path(os.environ.get("SELFTRAIN_RESULTS", ROOT / "results"))
FIGURES = Path(os.environ.get("SELFTRAIN_FIGURES", ROOT / "figures"))
NOTEBOOKS = ROOT / "notebooks"
STUDIES = NOTEBOOKS / "studies"
EXECUTED = Path(os.environ.get("SELFTRAIN_EXECUTED", NOTEBOOKS / "executed"))
MODELS = Path(os.environ.get("SELFTRAIN_MODELS", ROOT / ".models"))


def study_folder(study: str) -> Path:
    """results/<study>, the folder of everything that one study file produced."""
    return RESULTS / study


def panel_folder(study: str, panel: str) -> Path:
    """results/<study>/runs/<panel>, the git-ignored run folders of one panel's chains."""
    return study_folder(study) / "runs" / panel


def shown(path: Path) -> str:
    """A path as a reader should see it: relative to the repository where it lies inside."""
    try:
        return str(Path(path).resolve().relative_to(ROOT))
    except ValueError:
        return str(path)
