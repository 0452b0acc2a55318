"""The stored figures with captions: a figure is named like the function that draws it, and captioned by that function's docstring."""

from __future__ import annotations

import ast
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from selftrain import paths
from selftrain.errors import InputError

PACKAGE = Path(__file__).resolve().parent.parent
ENDS = ("png", "pdf", "csv")
REGIMES = ("sft", "sdf", "dpo")


@dataclass(frozen=True)
class StoredFigure:
    """figures/<name>.png with its size in pixels; `study` is empty where the figure belongs to none, `part` is what its name has between
    study and function (a regime, a trait), `ends` are the files to download."""

    name: str
    study: str
    part: str
    caption: str
    width: int
    height: int
    ends: tuple[str, ...]

    @property
    def alt(self) -> str:
        """The caption's first clause, and what cannot be seen is in the csv."""
        return f"{self.caption.split(';')[0].rstrip('.')}. The csv holds the plotted values."


def captions() -> dict[str, str]:
    """First docstring sentence of every function in the figure modules, by name; read, not imported."""
    found = {}
    for path in sorted([*PACKAGE.glob("figures*.py"), *PACKAGE.glob("figures*/*.py")]):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and (said := ast.get_docstring(node)):
                found[node.name] = " ".join(said.split("\n\n")[0].replace("`", "").split())
    return found


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG in pixels; InputError where it is not one."""
    head = path.read_bytes()[:24]
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise InputError(f"{paths.shown(path)}: not a PNG; draw it again with `make figures`")
    return struct.unpack(">II", head[16:24])


def stored(studies: list[str]) -> list[StoredFigure]:
    """Every figures/*.png, those of `studies` first and in their order, those of no study last; figures of studies left out are left out."""
    known = captions()
    every = sorted({*studies, *(p.name for p in paths.RESULTS.glob("*") if p.is_dir()), *(p.stem for p in paths.STUDIES.glob("*.yaml"))})
    found = []
    for path in sorted(paths.FIGURES.glob("*.png")):
        study = max((s for s in every if path.stem.startswith(f"{s}_")), key=len, default="")
        if study and study not in studies:
            continue
        rest = path.stem.removeprefix(f"{study}_") if study else path.stem
        function = max((f for f in known if rest == f or rest.endswith(f"_{f}")), key=len, default="")
        part = rest.removesuffix(function).strip("_") if function else ""
        caption = known.get(function) or f"{rest.replace('_', ' ').capitalize()}."
        ends = tuple(end for end in ENDS if path.with_suffix(f".{end}").exists())
        part = " ".join(word.upper() if word in REGIMES else word for word in part.split("_"))
        found.append(StoredFigure(path.stem, study, part, caption, *png_size(path), ends))
    return sorted(found, key=lambda f: (studies.index(f.study) if f.study else len(studies), f.name))


def key_figure(figures: list[StoredFigure]) -> StoredFigure | None:
    """The figure that README.md shows first, if it is among these; else the first one."""
    readme = paths.ROOT / "README.md"
    shown = re.search(r"!\[[^\]]*\]\(figures/([^)]+)\.png\)", readme.read_text(encoding="utf-8")) if readme.exists() else None
    named = [f for f in figures if shown and f.name == shown.group(1)]
    return (named or figures or [None])[0]
