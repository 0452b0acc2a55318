"""Figures, analysis notebooks, README numbers and the site come from stored results alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from selftrain import paths, study

LEFT_OUT = shutil.ignore_patterns(
    ".git", ".models", ".venv*", ".gpu", ".cache", "runs", "executed", "figures", "__pycache__", "site", "*.egg-info", ".pytest_cache"
)


def test_figures_and_site_are_made_without_models_keys_or_a_gpu(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(
        paths.ROOT,
        copy,
        ignore=lambda folder, names: LEFT_OUT(folder, names) - ({"figures", "site"} if Path(folder).name == "selftrain" else set()),
    )
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("SELFTRAIN_", "OPENAI_", "JUDGE_", "TEACHER_"))}
    env = keep | {
        "PYTHONPATH": str(copy / "lib"),
        "CUDA_VISIBLE_DEVICES": "",
        "SELFTRAIN_MODELS": str(tmp_path / "none"),
        "HF_HUB_OFFLINE": "1",
    }
    readme = (copy / "README.md").read_text(encoding="utf-8")
    done = subprocess.run(
        ["make", "-o", f"{sys.prefix}/.installed", f"VENV={sys.prefix}", "figures", "site"],
        cwd=copy,
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    made = {p.name for p in (copy / "figures").glob("laptop_*.png")}
    assert {
        f"laptop_{name}.png"
        for name in ("sft_sweep_scores", "sft_sweep_map", "tradeoff_paths", "noise_floor", "sensitivity", "example_verdicts")
    } <= made
    assert all((copy / "figures" / name).with_suffix(end).stat().st_size for name in made for end in (".pdf", ".csv"))
    executed = sorted((copy / "notebooks" / "executed" / "laptop").glob("*.ipynb"))
    assert [path.stem for path in executed] == sorted(name for name, _ in study.read("laptop").analysis)
    for path in executed:
        text = path.read_text(encoding="utf-8")
        assert str(tmp_path) not in text and "papermill" not in text, path.name
        assert path.stem == "24_claims" or '"image/png"' in text, f"{path.name} shows no figure"
    assert (copy / "site" / "index.html").exists()
    assert (copy / "README.md").read_text(encoding="utf-8") == readme, (
        "README.md differs from the committed results: python -m selftrain.readme write"
    )
