"""Executed notebooks as pages: nbconvert's exporter with a slim template. Nothing here can execute a notebook."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import bleach
import nbformat
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter

from selftrain import paths
from selftrain.errors import InputError
from selftrain.site.script import file_name

TEMPLATES = Path(__file__).resolve().parent / "assets" / "nbconvert"
_TAGS = (
    "a abbr b blockquote br caption code col colgroup dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark ol p pre s "
    "small span strong sub summary sup table tbody td tfoot th thead tr u ul"
).split()
_CELL = ["colspan", "rowspan", "scope"]
_ATTRIBUTES = {"*": ["class", "id", "title"], "a": ["href"], "img": ["src", "alt", "width", "height"], "td": _CELL, "th": _CELL}
_SCHEMES = ["http", "https", "mailto", "data"]
_SHOWN = ("image/svg+xml", "image/png", "image/jpeg", "text/html", "text/markdown", "text/latex", "text/plain")


@dataclass(frozen=True)
class NotebookPage:
    """One executed copy: the page's address inside the site, its title and its body."""

    study: str
    name: str
    href: str
    title: str
    body: str


def executed(studies: list[str]) -> list[Path]:
    """notebooks/executed/<study>/<name>.ipynb, of these studies, in their order; copies in folders that are no study come last."""
    found = sorted((paths.NOTEBOOKS / "executed").glob("*/*.ipynb"))
    known = {p.name for p in paths.RESULTS.glob("*") if p.is_dir()} - set(studies)
    place = {study: i for i, study in enumerate(studies)}
    kept = [p for p in found if p.parent.name not in known and not p.name.startswith(".")]
    return sorted(kept, key=lambda p: (place.get(p.parent.name, len(place)), p.parent.name, p.name))


def href(path: Path) -> str:
    """Where a copy's page lies in the site."""
    return f"notebooks/{file_name(path.parent.name)}/{file_name(path.stem)}.html"


def convert(path: Path, pages: dict[str, str] | None = None) -> NotebookPage:
    """A notebook file as a page; `pages` are addresses of the other copies of its study, by notebook name. InputError where it is no notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises half a dozen kinds
        raise InputError(f"{paths.shown(path)}: not a notebook ({str(error).splitlines()[0][:100]})") from None
    titles = [
        re.sub(r"[`*_]", "", t) for c in notebook.cells if c.cell_type == "markdown" for t in re.findall(r"^# +(.+)$", c.source, re.M)
    ]
    body, _ = _exporter().from_notebook_node(_readable(notebook))
    body = _linked(body, path, pages or {})
    return NotebookPage(path.parent.name, path.stem, href(path), (titles or [path.stem])[0], body)


def clean(html: str) -> str:
    """HTML of a notebook with harmless markup kept and everything else, such as markup in a model's answer, shown as text."""
    return bleach.clean(html, tags=_TAGS, attributes=_ATTRIBUTES, protocols=_SCHEMES)


def clean_output(html: str) -> str:
    """As `clean`, for what a cell put out: an answer may write links and images as well, so links become text and images are shown as written."""
    kept = bleach.clean(html, tags=[tag for tag in _TAGS if tag != "img"], attributes=_ATTRIBUTES, protocols=_SCHEMES)
    return _worded(re.sub(r"</?a\b[^>]*>", "", kept))


def _worded(html: str) -> str:
    """The cells of every table column that holds words marked with the class `words`, so that they are set flush left and may wrap."""
    if "<table" not in html:
        return html
    soup = BeautifulSoup(html, "html.parser")
    for table in soup.find_all("table"):
        rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
        if table.find(rowspan=True) or table.find(colspan=True) or len({len(row) for row in rows}) != 1:
            continue
        for head, *cells in zip(*rows, strict=True):
            if any(re.search(r"[^\W\d_]{2}", cell.get_text()) and cell.get_text() not in ("NaN", "None", "inf", "-inf") for cell in cells):
                for cell in (head, *cells):
                    cell["class"] = "words"
    return str(soup)


def _exporter() -> HTMLExporter:
    return HTMLExporter(
        template_name="slim",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        filters={"clean_html": clean, "clean_output": clean_output},
    )


def _readable(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what a page cannot show: progress bars, widgets, scripts; neighbouring prints joined, figures given an alt text."""
    heading = "the notebook"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ +(.+)$", cell.source, re.M) or [heading])[-1]
        if cell.cell_type != "code":
            continue
        kept: list = []
        for output in cell.outputs:
            if output.output_type == "stream":
                if output.name != "stdout":
                    continue
                if kept and kept[-1].output_type == "stream":
                    kept[-1].text += output.text
                    continue
            elif "data" in output:
                widget = "application/vnd.jupyter.widget-view+json" in output.data
                output.data = {kind: value for kind, value in output.data.items() if kind in _SHOWN}
                if widget or not output.data:
                    continue
                if "text/html" in output.data:
                    output.data["text/html"] = re.sub(r"<(style|script)\b.*?</\1\s*>", "", output.data["text/html"], flags=re.S | re.I)
                output.metadata.setdefault("alt", f"Figure under “{heading}”")
            kept.append(output)
        cell.outputs = kept
    return notebook


def _linked(body: str, path: Path, pages: dict[str, str]) -> str:
    """The body with relative links led to the site's pages and figures; links to other files of the repository become text that names them."""
    root = "../" * href(path).count("/")

    def target(link: str) -> str | None:
        """The new address; None for a repository file that is not part of the site. What exists nowhere stays, for the link check to find."""
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or not parts.path:
            return link
        for base in (path.parent, paths.NOTEBOOKS):
            file = (base / unquote(parts.path)).resolve()
            if file.parent == paths.FIGURES.resolve():
                return f"{root}figures/{file.name}"
            if file.suffix == ".ipynb" and file.stem in pages:
                return f"{root}{pages[file.stem]}" + (f"#{parts.fragment}" if parts.fragment else "")
            if file.exists():
                return None
        return link

    def anchor(found: re.Match) -> str:
        new = target(found["link"].replace("&amp;", "&"))
        return found["said"] if new is None else f'<a href="{escape(new)}">{found["said"]}</a>'

    def image(found: re.Match) -> str:
        new = target(found[2].replace("&amp;", "&"))
        return f"{found[1]}{escape(new or found[2])}{found[3]}"

    body = re.sub(r'<a\b[^>]*?\bhref="(?P<link>[^"]*)"[^>]*>(?P<said>.*?)</a>', anchor, body, flags=re.S)
    return re.sub(r'(<img\b[^>]*?\bsrc=")((?!data:)[^"]*)(")', image, body)
