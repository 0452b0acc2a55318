"""The static site: data split and escaped, links checked, builds repeatable, notebooks never executed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import site_study
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from selftrain import paths, results
from selftrain.errors import InputError
from selftrain.site import chains, gallery, links
from selftrain.site.build import build
from selftrain.site.notebooks import clean_output, convert
from selftrain.site.script import file_name, literal, number


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A repository of its own: results, figures and notebooks under tmp_path, empty."""
    for name in ("results", "figures", "notebooks"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(paths, name.upper(), tmp_path / name)
    monkeypatch.setattr(paths, "STUDIES", tmp_path / "notebooks" / "studies")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def stored(places):
    """That repository with one study and two figures."""
    site_study.write(places / "results")
    site_study.figure(places / "figures", "alpha_sft_sweep_scores")
    site_study.figure(places / "figures", "seed_map")
    return places


def script(path):
    """The value that a data file assigns."""
    return json.loads(re.fullmatch(r"[^=]+=(.*);\n", path.read_text(encoding="utf-8"), flags=re.S)[1])


def test_a_literal_is_json_that_survives_any_page():
    value = {"text": site_study.HOSTILE, "lone": "\ud800", "bom": "\ufeff", "c1": "\x85", "none": None}
    text = literal(value)
    assert json.loads(text) == value
    assert text.encode("utf-8").decode("utf-8") == text
    assert not re.search("</|<!--|[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]", text)
    assert "\U0001f308" in text  # readable characters are kept
    with pytest.raises(ValueError):
        literal(float("nan"))


def test_numbers_stay_missing_where_they_are_missing():
    assert [number(v) for v in (None, float("nan"), 97.0, 41.26, -1)] == [None, None, 97, 41.3, -1]


def test_file_names_are_safe_and_differ():
    names = ["a b", "a~20b", "a/b", "..", ".hidden", "lr_1e-5", "ä#?&%"]
    made = [file_name(n) for n in names]
    assert len(set(made)) == len(names) and made[5] == "lr_1e-5"
    assert all(re.fullmatch(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*", m) for m in made)


def test_data_is_split_by_panel_and_whole(stored):
    build(stored / "site")
    index = script(stored / "site/data/index.js")["index"]
    assert sorted({c["file"] for c in index["chains"]}) == ["alpha/bliss~201~23.js", "alpha/lucky.js"]
    assert sorted(p.name for p in (stored / "site/data/alpha").iterdir()) == ["bliss~201~23.js", "lucky.js"]
    texts = results.load_texts("alpha")
    seen = 0
    for entry in index["chains"]:
        panel = script(stored / "site/data" / entry["file"])
        for cycle, rows in panel["chains"][entry["chain"]]["answers"].items():
            for row in (dict(zip(index["answerFields"], r, strict=True)) for r in rows):
                one = texts[(texts["chain"] == entry["chain"]) & (texts["cycle"] == int(cycle)) & (texts["question_id"] == row["question"])]
                one = one[one["sample"] == row["sample"]].iloc[0]
                assert panel["texts"][row["text"]] == one["answer"] and row["status"] == one["status"]
                assert row["trait"] == (None if pd.isna(one["trait_score"]) else pytest.approx(one["trait_score"]))
                seen += 1
    assert seen == len(texts) == len(site_study.CHAINS) * len(site_study.CYCLES) * 6


def test_a_text_that_chains_share_is_kept_once(stored):
    build(stored / "site")
    kept = script(stored / "site/data/alpha/lucky.js")["texts"]
    assert len(kept) == len(set(kept)) and sum(t.startswith("the base says") for t in kept) == 6


def test_an_index_entry_says_what_the_manifest_says(stored):
    assert set(pd.read_parquet(stored / "results/alpha/tables/0.cycles.parquet")["n_sampled"]) == {6}
    found = {c["chain"]: c for c in chains.read("alpha").chains}
    one = found["bliss-sft-continual-n50-m48-s0"]
    assert one["n_sampled"] == 48  # M, although the table counts answers under that name
    assert (one["beta"], one["judge"], one["judge_hash"]) == (None, "letters", "00ff" * 4)
    arms = [c["arm"] for c in found.values()]
    assert arms == ["continual", "continual", "dose-matched reinit", "reinit", "continual", "continual", "reinit", "reinit, retrain null"]
    assert [c["variant"] for c in found.values() if c["regime"] == "dpo"] == ["lr 1e-05", "lr 4e-05"]
    assert {c["variant"] for c in found.values() if c["regime"] == "sft"} == {""}


def test_the_default_judge_is_the_one_of_load(stored):
    path = stored / "results/alpha/tables/1.cycles.parquet"
    rows, metadata = pd.read_parquet(path), pq.read_schema(path).metadata
    texts = pd.read_parquet(stored / "results/alpha/tables/1.texts.parquet")
    pd.concat([texts, texts.assign(judge="other", trait_score=1.0)]).to_parquet(stored / "results/alpha/tables/1.texts.parquet")
    both = pa.Table.from_pandas(pd.concat([rows, rows.assign(judge="other", judge_hash="ffff", trait_score=1.0)]), preserve_index=False)
    pq.write_table(both.replace_schema_metadata({**both.schema.metadata, b"manifests": metadata[b"manifests"]}), path)
    data = chains.read("alpha")
    assert {c["judge"] for c in data.chains} == {"letters"} and data.shown == len(texts) + 4 * 5 * 6
    scores = {row[2] for panel in data.panels.values() for c in panel["chains"].values() for rows in c["answers"].values() for row in rows}
    assert 1 not in scores


def test_texts_over_the_limit_are_thinned_evenly_and_said(stored, monkeypatch):
    texts = results.load_texts("alpha")
    whole = int(texts["answer"].str.encode("utf-8").str.len().sum())
    assert len(chains.thinned(texts, whole)) == len(texts) > len(chains.thinned(texts, whole - 1))
    half = chains.thinned(texts, whole // 2)
    assert half["answer"].str.encode("utf-8").str.len().sum() <= whole // 2
    assert half.groupby(["chain", "cycle"]).size().nunique() == 1  # as many from every cycle
    assert set(half["sample"]) == {0}  # every question's first answer before any second one
    assert chains.thinned(texts, 1).groupby(["chain", "cycle"]).size().eq(1).all()
    for module in ("chains", "pages"):
        monkeypatch.setattr(f"selftrain.site.{module}.TEXT_LIMIT", whole // 2)
    build(stored / "site")
    said = f"{len(half):,} of 228 judged answers can be read here; {len(texts)} are stored"
    assert said in (stored / "site/index.html").read_text() and said in (stored / "site/data/index.js").read_text()


def test_a_study_without_texts_or_complete_chains_still_builds(stored):
    for path in (stored / "results/alpha/tables").glob("*.texts.parquet"):
        path.unlink()
    assert build(stored / "site").answers == 0
    for path in (stored / "results/alpha/tables").glob("*.cycles.parquet"):
        pd.read_parquet(path).assign(complete=False).to_parquet(path)  # the manifests are gone as well
    assert build(stored / "site").chains == len(site_study.CHAINS)
    assert "no complete chain" in (stored / "site/index.html").read_text()


def test_pages_escape_what_others_wrote(stored):
    (stored / "notebooks/studies").mkdir()
    (stored / "notebooks/studies/alpha.yaml").write_text("study: alpha\nabout: <script>window.hacked = 3</script> & more\n")
    build(stored / "site")
    for path in (stored / "site").rglob("*.html"):
        assert "<script>window" not in path.read_text(encoding="utf-8"), path
    assert "&lt;script&gt;window.hacked = 3&lt;/script&gt; &amp; more" in (stored / "site/index.html").read_text()


def test_counts_and_links_of_the_first_page_come_from_results(stored):
    build(stored / "site")
    page = (stored / "site/index.html").read_text()
    assert "8 chains in 1 study" in " ".join(page.split())
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', page)
    cells = {label: re.findall(r"<td>(.*?)</td>", cell) for label, cell in rows}
    assert cells == {
        "DPO continual": ["–", "2"],
        "SFT continual": ["2", "–"],
        "SFT reinit": ["1", "1"],
        "SFT reinit, dose-matched": ["1", "–"],
        "SFT reinit, retrain null": ["–", "1"],
    }
    assert "largest rise" in page and "largest fall" not in page  # every score rises in this study
    assert 'src="figures/alpha_sft_sweep_scores.png"' in page


def test_figures_are_captioned_by_the_functions_that_draw_them(stored):
    assert {"sweep_scores", "sweep_map"} <= set(gallery.captions())
    first, last = gallery.stored(["alpha"])
    assert (first.name, first.study, first.width, first.height, first.ends) == (
        "alpha_sft_sweep_scores",
        "alpha",
        3,
        2,
        ("png", "pdf", "csv"),
    )
    assert (first.caption, first.part) == (gallery.captions()["sweep_scores"], "SFT") and last.study == last.part == ""
    (stored / "figures/alpha_broken.png").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="figures/alpha_broken.png: not a PNG"):
        gallery.stored(["alpha"])


@pytest.mark.parametrize(
    "link, why",
    [
        ("gone.html", "no such file"),
        ("index.html#gone", "no such anchor"),
        ("#gone", "no such anchor"),
        ("../outside.txt", "leads out of the site"),
        ("/etc/hostname", "not a link inside the site"),
        ("javascript:alert(1)", "not a link inside the site"),
        ("browse.html#study=alpha&amp;chain=gone", "no such view"),
    ],
)
def test_the_link_check_finds_what_leads_nowhere(tmp_path, link, why):
    for folder in (tmp_path / "site", tmp_path / "site/sub"):
        folder.mkdir()
    (tmp_path / "outside.txt").write_text("")
    (tmp_path / "site/browse.html").write_text("<p>")
    good = '<a id="here" href="#here">a</a><a href="sub/">b</a><img src="data:,"><a href="https://example.org/x">c</a>'
    (tmp_path / "site/index.html").write_text(good.replace("sub/", "browse.html#study=alpha&amp;chain=one"))
    assert links.broken(tmp_path / "site", {("alpha", "one")}) == []
    (tmp_path / "site/index.html").write_text(f'<a href="{link}">x</a>')
    with pytest.raises(InputError) as caught:
        links.check(tmp_path / "site", {("alpha", "one")})
    assert str(caught.value) == f"index.html: broken link {link.replace('&amp;', '&')!r}: {why}"


def test_a_broken_link_fails_the_build_and_leaves_the_old_site(stored):
    build(stored / "site")
    before = (stored / "site/index.html").read_bytes()
    site_study.notebook(stored / "notebooks", "alpha", "20_maps", [new_markdown_cell("# Maps\n\n[gone](nowhere.ipynb)")])
    with pytest.raises(InputError, match=r"^notebooks/alpha/20_maps.html: broken link 'nowhere.ipynb': no such file$"):
        build(stored / "site")
    assert (stored / "site/index.html").read_bytes() == before and not (stored / "site/notebooks").exists()
    assert not list(stored.glob(".site*"))


def test_two_builds_are_the_same_bytes(stored):
    site_study.notebook(stored / "notebooks", "alpha", "20_maps", [new_markdown_cell("# Maps"), new_code_cell("1 + 1")])
    for name in ("one", "two"):
        build(stored / name)
    trees = [{p.relative_to(stored / n): p.read_bytes() for p in (stored / n).rglob("*") if p.is_file()} for n in ("one", "two")]
    assert trees[0] == trees[1] and len(trees[0]) > 20
    assert not [p for p, content in trees[0].items() if str(stored).encode() in content], "a machine path in the site"


def test_building_never_executes_a_notebook(stored):
    trace = stored / "executed.txt"
    code = f"open({str(trace)!r}, 'w').write('x')"
    exec(code)  # the cell does leave a trace when it is executed
    trace.unlink()
    output = new_output("stream", name="stdout", text="what the cell printed once")
    site_study.notebook(stored / "notebooks", "alpha", "20_maps", [new_markdown_cell("# Maps"), new_code_cell(code, outputs=[output])])
    assert build(stored / "site").notebooks == 1
    assert not trace.exists()
    page = (stored / "site/notebooks/alpha/20_maps.html").read_text()
    assert "what the cell printed once" in page and "executed.txt" in page


def test_a_site_without_executed_notebooks_says_so(stored):
    built = build(stored / "site")
    assert built.notebooks == 0 and "no executed notebooks" in built.said()
    assert "No executed notebooks are stored" in (stored / "site/notebooks.html").read_text()


def test_a_notebook_page_shows_outputs_and_nothing_harmful(stored):
    frame = "<style>td {color: red}</style><table class='dataframe'><tr><th>a</th></tr></table><script>window.hacked = 4</script>"
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "a bar of progress"}
    outputs = [
        new_output("stream", name="stdout", text="one\n"),
        new_output("stream", name="stdout", text="two \x1b[31mred\x1b[0m <i>\n"),
        new_output("stream", name="stderr", text="a warning"),
        new_output("display_data", data=widget),
        new_output("display_data", data={"application/javascript": "window.hacked = 5"}),
        new_output("display_data", data={"text/html": frame}),
        new_output(
            "display_data", data={"text/markdown": f"**cycle 1**: {site_study.HOSTILE} [click](https://evil.example) [here](gone.html)"}
        ),
        new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}),
    ]
    source = "# A title of `mine`\n\nSee [the other](21_other.ipynb), [a figure](../figures/seed_map.png), [the log](../LOG.md), [web](https://example.org)."
    cells = [new_markdown_cell(source), new_code_cell("x = '<b>'", outputs=outputs), new_markdown_cell("[x](javascript:alert(1))")]
    site_study.notebook(stored / "notebooks", "alpha", "20_maps", cells)
    site_study.notebook(stored / "notebooks", "alpha", "21_other", [new_markdown_cell("plain")])
    (stored / "LOG.md").write_text("log")
    build(stored / "site")
    page = (stored / "site/notebooks/alpha/20_maps.html").read_text()
    body = page[page.index('<main id="main">') :]
    assert "<script" not in body and "onerror='" not in re.sub("&lt;.*?&gt;", "", body, flags=re.S) and "javascript:" not in body
    assert "click" in body and "evil.example" not in body and "gone.html" not in body
    assert "a warning" not in body and "a bar of progress" not in body and "color: red" not in body and "&lt;Figure&gt;" not in body
    assert "<pre>one\ntwo" in body and "&lt;i&gt;" in body and '<table class="dataframe">' in body
    assert 'alt="Figure under “A title of `mine`”"' in body
    assert 'href="../../notebooks/alpha/21_other.html"' in body and 'href="../../figures/seed_map.png"' in body
    assert "&lt;img src=x onerror=" in body  # markup in an answer is shown as it was written
    assert "[the log]" not in body and "the log" in body and "LOG.md" not in body and 'href="https://example.org"' in body
    assert "<title>A title of mine · selftrain</title>" in page and "21_other" in (stored / "site/notebooks.html").read_text()


def test_columns_of_words_are_set_flush_left():
    row = "<tr><td>{}</td><td>{}</td><td>{}</td></tr>".format
    table = (
        "<table><tr><th>claim</th><th>change</th><th>n</th></tr>" + row("it grows", "NaN", "3") + row("it fades", "-1.5", "4") + "</table>"
    )
    page = clean_output(table)
    assert (
        page.count('class="words"') == 3
        and '<td class="words">it grows</td><td>NaN</td>' in page
        and '<th class="words">claim</th>' in page
    )
    assert 'class="words"' not in clean_output("<table><tr><th rowspan='2'>of words</th><td>word</td></tr></table>")


def test_a_file_that_is_no_notebook_is_named_in_one_line(tmp_path):
    path = tmp_path / "executed" / "alpha" / "x.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text("{not json\n")
    with pytest.raises(InputError, match="x.ipynb: not a notebook") as caught:
        convert(path)
    assert "\n" not in str(caught.value)


def test_another_folder_is_never_overwritten(stored):
    (stored / "mine").mkdir()
    build(stored / "mine")  # empty: taken
    (stored / "other").mkdir()
    (stored / "other/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="exists and is no site built here"):
        build(stored / "other")
    assert (stored / "other/thesis.tex").exists()


def test_studies_can_be_chosen_and_must_exist(stored):
    site_study.write(stored / "results", "beta", site_study.CHAINS[:1])
    (stored / "results/scratch/runs").mkdir(parents=True)  # a run that has not finished a chain
    assert build(stored / "site").studies == ("alpha", "beta")
    assert build(stored / "site", ["beta"]).chains == 1
    assert not (stored / "site/data/alpha").exists() and "alpha" not in (stored / "site/figures.html").read_text()
    with pytest.raises(InputError, match="gone: no such results folder"):
        build(stored / "site", ["gone"])


def test_no_results_at_all_is_one_line(places):
    with pytest.raises(InputError, match="^results: no study with results; run `make reproduce`$"):
        build(places / "site")


def test_the_command_needs_no_model_and_no_network(stored):
    code = (
        "import socket, sys; socket.socket.connect = lambda *a: sys.exit('the network was asked')\n"
        "sys.argv = ['site', 'build', '--out', sys.argv[1]]\n"
        "from selftrain.site.__main__ import main; main()\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'openai'} & set(sys.modules); assert not heavy, heavy"
    )
    environment = {
        "SELFTRAIN_RESULTS": str(stored / "results"),
        "SELFTRAIN_FIGURES": str(stored / "figures"),
        "SELFTRAIN_MODELS": "/nowhere",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(stored / "site")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "8 chains, 240 answers" in done.stdout and "every link resolves" in done.stdout
