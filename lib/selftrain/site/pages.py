"""The site's pages: facts from the data, set into templates. Every text is escaped by the template engine."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import jinja2
import pandas as pd
import yaml

from selftrain import analysis, paths, results
from selftrain.figures import TRAIT_COLOURS
from selftrain.site.chains import ANSWER_FIELDS, CYCLE_FIELDS, KEYS, TEXT_LIMIT, StudyData
from selftrain.site.gallery import StoredFigure, key_figure
from selftrain.site.notebooks import NotebookPage
from selftrain.site.script import file_name

NAVIGATION = [("index.html", "Study"), ("figures.html", "Figures"), ("notebooks.html", "Notebooks"), ("browse.html", "Read the answers")]
SCRIPTS = ["store.js", "choices.js", "diff.js", "chart.js", "answers.js", "browse.js"]


def environment(templates: str) -> jinja2.Environment:
    """Templates that escape, and refuse a name that is not given."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def about(study: str) -> str:
    """What a study file says about itself: its `about`, or the comment at its top; empty where there is no such file."""
    path = paths.STUDIES / f"{study}.yaml"
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text) or {}
    if content.get("about"):
        return " ".join(str(content["about"]).split())
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment)


def study_facts(data: StudyData, figures: list[StoredFigure], notebooks: list[NotebookPage]) -> dict[str, Any]:
    """What the first page says of one study."""
    counts = results.summary(data.name)
    traits = sorted(counts.columns, key=lambda t: (list(TRAIT_COLOURS).index(t) if t in TRAIT_COLOURS else len(TRAIT_COLOURS), t))
    judges = sorted({f"{c['judge']} {c['judge_hash'][:8]}".strip() for c in data.chains})
    return {
        "name": data.name,
        "slug": file_name(data.name),
        "about": about(data.name),
        "traits": traits,
        "counts": [
            (f"{regime.upper()} {init}" + (f", {arm}" if arm else ""), [int(row[t]) for t in traits])
            for (regime, init, arm), row in counts.iterrows()
        ],
        "extremes": extremes(data),
        "judge": f"Judge: {', '.join(judges)}.",
        "kept": kept(data),
        "figures": [f for f in figures if f.study == data.name],
        "notebooks": [n for n in notebooks if n.study == data.name],
    }


def kept(data: StudyData) -> str:
    """How many of the judged answers can be read here, and why not all."""
    judged = int(data.table["n_judged"].sum())
    said = f"{data.shown:,} of {judged:,} judged answers can be read here"
    if data.shown < data.stored:
        return f"{said}; {data.stored:,} are stored, and a study brings at most {TEXT_LIMIT / 1e6:g} MB of text into this site."
    return f"{said}; the tables keep no more." if data.stored < judged else f"{said}."


def extremes(data: StudyData) -> list[dict[str, Any]]:
    """The chains whose score rose and fell most from cycle 0 to the last cycle, each as a link into the sample browser."""
    changes = analysis.changes(data.table)
    changes = changes.dropna(subset=["change"]) if len(changes) else changes
    entries = {c["chain"]: c for c in data.chains}
    out = []
    for word, row in _most(changes):
        entry = entries[row["chain"]]
        said = f"{word}: {entry['trait']}, {entry['regime'].upper()} {entry['arm']}, N={entry['n_seed']}, M={entry['n_sampled']}"
        view = {"study": data.name, "chain": row["chain"], "cycle": int(row["last_cycle"]), "with": 0}
        scores = {k: f"{row[k]:.0f}" for k in ("first", "last", "coherence_first", "coherence_last")}
        out.append({"said": said, "view": urlencode(view), "cycle": int(row["last_cycle"]), **scores})
    return out


def _most(changes: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    rose, fell = (changes[changes["change"] > 0], changes[changes["change"] < 0]) if len(changes) else (changes, changes)
    found = [("largest rise", rose.loc[rose["change"].idxmax()])] if len(rose) else []
    return found + ([("largest fall", fell.loc[fell["change"].idxmin()])] if len(fell) else [])


def browser_index(studies: list[StudyData]) -> dict[str, Any]:
    """What the sample browser knows before it has loaded any panel."""
    traits = {chain["trait"] for data in studies for chain in data.chains}
    return {
        "keys": list(KEYS.items()),
        "cycleFields": CYCLE_FIELDS,
        "answerFields": ANSWER_FIELDS,
        "colours": {t: TRAIT_COLOURS.get(t, "#767676") for t in sorted(traits)},
        "kept": {data.name: kept(data) for data in studies},
        "chains": [chain for data in studies for chain in data.chains],
    }


def rendered(
    env: jinja2.Environment, studies: list[StudyData], figures: list[StoredFigure], notebooks: list[NotebookPage]
) -> dict[str, str]:
    """Every page of the site as HTML, by its address."""
    names = [data.name for data in studies]
    shared = {"pages": NAVIGATION, "root": "", "colours": browser_index(studies)["colours"]}
    facts = {
        "studies": len(studies),
        "chains": sum(len(data.chains) for data in studies),
        "judged": sum(int(data.table["n_judged"].sum()) for data in studies),
        "shown": sum(data.shown for data in studies),
    }
    context = {
        "index.html": {"facts": facts, "studies": [study_facts(d, figures, notebooks) for d in studies], "key_figure": key_figure(figures)},
        "figures.html": {"groups": [(s, g) for s in [*names, ""] if (g := [f for f in figures if f.study == s])]},
        "notebooks.html": {"groups": [(s, [n for n in notebooks if n.study == s]) for s in dict.fromkeys(n.study for n in notebooks)]},
        "browse.html": {"scripts": SCRIPTS},
    }
    out = {page: env.get_template(page).render(here=page, **shared, **given) for page, given in context.items()}
    for page in notebooks:
        slug = file_name(page.study) if page.study in names else ""
        given = {**shared, "root": "../" * page.href.count("/"), "here": "notebooks.html"}
        out[page.href] = env.get_template("notebook.html").render(page={**vars(page), "slug": slug}, **given)
    return out
