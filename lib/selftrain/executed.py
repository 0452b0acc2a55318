"""Executed notebooks as they are committed: outputs kept, everything that only this run and this machine know taken out."""

from __future__ import annotations

import json
from pathlib import Path

from selftrain import jsonl

KEPT = {"image/png", "text/html", "text/markdown", "text/plain"}


def keep(path: Path, target: Path) -> None:
    """Write an executed notebook to `target` without papermill's times and paths, without log output, and with one rendering of each output."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["metadata"] = {k: v for k, v in notebook["metadata"].items() if k in ("kernelspec", "language_info")}
    notebook["metadata"]["language_info"] = {"name": "python"}
    for place, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{place}"
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        outputs = []
        for output in cell.get("outputs", []):
            output.pop("metadata", None)
            if output["output_type"] in ("display_data", "execute_result"):
                output["metadata"] = {}
                data = {k: v for k, v in output["data"].items() if k in KEPT}
                if "image/png" in data:
                    data = {"image/png": data["image/png"], "text/plain": ["figure"]}
                output["data"] = data
            if output["output_type"] == "stream" and output["name"] == "stderr":
                continue
            outputs.append(output)
        if "outputs" in cell:
            cell["outputs"] = outputs
    target.parent.mkdir(parents=True, exist_ok=True)
    jsonl.write_text(target, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
