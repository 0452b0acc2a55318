"""Does every link of a built site lead somewhere? Pages, files and anchors, as they lie in the folder."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from selftrain.errors import InputError

_OUTSIDE = ("http", "https", "mailto", "data")


class _Page(HTMLParser):
    """Targets of href, src and srcset, and the ids that can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "poster"):
                self.targets.append(value or "")
            elif name == "id" and value:
                self.ids.add(value)


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def broken(folder: Path, views: set[tuple[str, str]] = frozenset()) -> list[tuple[str, str, str]]:
    """(page, link, why) of every internal link that leads nowhere.

    views: (study, chain) pairs that the sample browser knows; a fragment like #study=a&chain=b is a view and must name one of them.
    """
    folder = folder.resolve()
    pages = {path: _read(path) for path in sorted(folder.rglob("*.html"))}
    out = []
    for path, page in pages.items():
        for target in page.targets:
            why = _fault(path, target, folder, pages, views)
            if why:
                out.append((str(path.relative_to(folder)), target, why))
    return out


def _fault(page: Path, target: str, folder: Path, pages: dict[Path, _Page], views: set[tuple[str, str]]) -> str:
    parts = urlsplit(target)
    if parts.scheme in _OUTSIDE:
        return ""
    if parts.scheme or parts.netloc or parts.path.startswith("/"):
        return "not a link inside the site"
    goal = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not goal.is_relative_to(folder):
        return "leads out of the site"
    if not goal.is_file():
        return "no such file"
    if "=" in parts.fragment:
        view = parse_qs(parts.fragment)
        return "" if (*view.get("study", [""]), *view.get("chain", [""])) in views else "no such view"
    if parts.fragment and (goal not in pages or unquote(parts.fragment) not in pages[goal].ids):
        return "no such anchor"
    return ""


def check(folder: Path, views: set[tuple[str, str]] = frozenset()) -> None:
    """InputError, one line that names page and link, where a link leads nowhere."""
    faults = broken(folder, views)
    if faults:
        page, link, why = faults[0]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(f"{page}: broken link {link!r}: {why}{more}")
