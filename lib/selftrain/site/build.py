"""Build the site in a folder beside its place, check every link, then put it there: a failed build leaves the old site as it was."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from selftrain import paths
from selftrain.errors import InputError
from selftrain.site import chains, gallery, links, notebooks, pages
from selftrain.site.script import literal

ASSETS = Path(__file__).resolve().parent / "assets"
MARKER = ".selftrain-site"


@dataclass(frozen=True)
class Built:
    """What was built: counts, bytes and seconds."""

    out: Path
    pages: int
    studies: tuple[str, ...]
    chains: int
    answers: int
    figures: int
    notebooks: int
    size: int
    seconds: float

    def said(self) -> str:
        """A few lines for the terminal."""
        copies = f"{self.notebooks} executed notebooks" if self.notebooks else "no executed notebooks under notebooks/executed"
        return (
            f"studies {', '.join(self.studies)}: {self.chains} chains, {self.answers} answers, {self.figures} figures, {copies}\n"
            f"{self.pages} pages, {self.size / 1e6:.1f} MB, every link resolves, {self.seconds:.1f} s: {paths.shown(self.out / 'index.html')}"
        )


def build(out: Path, studies: list[str] | None = None) -> Built:
    """Write the site of these studies (default: all stored ones) to `out`.

    InputError where `out` holds something else, where a study has no results, or where a link of any page leads nowhere.
    """
    started, out = time.monotonic(), Path(out)
    if out.exists() and not (out / MARKER).exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{paths.shown(out)}: exists and is no site built here; name another folder with --out")
    names = list(dict.fromkeys(studies or chains.stored_studies()))
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        built = _write(temporary, names)
        if out.exists():
            shutil.rmtree(out)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Built(out=out, seconds=time.monotonic() - started, studies=tuple(names), **built)


def _write(folder: Path, names: list[str]) -> dict[str, int]:
    """Write and check everything; counts."""
    data = [chains.read(name) for name in names]
    figures = gallery.stored(names)
    copies = notebooks.executed(names)
    addresses = {p.parent: {q.stem: notebooks.href(q) for q in copies if q.parent == p.parent} for p in copies}
    converted = [notebooks.convert(path, addresses[path.parent]) for path in copies]
    html = pages.rendered(pages.environment(str(ASSETS / "templates")), data, figures, converted)
    shutil.copytree(ASSETS / "static", folder / "assets")
    for figure in figures:
        for end in figure.ends:
            _put(folder / "figures" / f"{figure.name}.{end}", (paths.FIGURES / f"{figure.name}.{end}").read_bytes())
    for page, text in html.items():
        _put(folder / page, text)
    _put(folder / "data" / "index.js", f"window.SELFTRAIN={literal({'index': pages.browser_index(data), 'panels': {}})};\n")
    for study in data:
        for name, panel in study.panels.items():
            _put(folder / "data" / name, f"SELFTRAIN.panels[{literal(name)}]={literal(panel)};\n")
    _put(folder / MARKER, "Built by python -m selftrain.site; the next build replaces this folder.\n")
    links.check(folder, {(c["study"], c["chain"]) for study in data for c in study.chains})
    return {
        "pages": len(html),
        "chains": sum(len(study.chains) for study in data),
        "answers": sum(study.shown for study in data),
        "figures": len(figures),
        "notebooks": len(converted),
        "size": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()),
    }


def _put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
