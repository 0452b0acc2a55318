"""The site in headless Chromium, from file URLs: no console errors, choices, keys, addresses, hostile text, light and dark, narrow and wide."""

from __future__ import annotations

import json
import os
import shutil
import time
from urllib.parse import parse_qs, urlsplit

import pytest
import site_study
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from selftrain import paths
from selftrain.site.build import build

api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package: pip install -e .[dev]")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
FIRST = "bliss-sft-continual-n50-m24-s0"
PAGES = ["index.html", "figures.html", "notebooks.html", "browse.html", "notebooks/alpha/20_maps.html"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A built site of two small studies, a figure and a notebook whose output is hostile."""
    root = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("results", "figures", "notebooks"):
            patch.setattr(paths, name.upper(), root / name)
        site_study.write(root / "results")
        site_study.write(root / "results", "beta", site_study.CHAINS[-1:])
        site_study.figure(root / "figures", "alpha_sweep_scores")
        answer = new_output("display_data", data={"text/markdown": site_study.HOSTILE, "text/html": site_study.HOSTILE})
        site_study.notebook(root / "notebooks", "alpha", "20_maps", [new_markdown_cell("# Maps"), new_code_cell("1", outputs=[answer])])
        build(root / "site")
    return root / "site"


@pytest.fixture(scope="module")
def chromium():
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


class Watched:
    """A page whose every console error, uncaught error, failed request and request to a network is kept in `faults`."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.context.set_default_timeout(10_000)
        self.page, self.faults, self.requests = self.context.new_page(), [], []
        self.page.on("console", lambda m: self.faults.append(f"console {m.type}: {m.text}") if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        self.page.on("requestfailed", lambda r: self.faults.append(f"failed: {r.url}"))
        self.page.on("request", self._requested)

    def _requested(self, request):
        self.requests.append(request.url)
        if not request.url.startswith(("file:", "data:")):
            self.faults.append(f"network: {request.url}")

    def open(self, path, fragment=""):
        self.page.goto(f"{path.as_uri()}{fragment}")
        if path.name == "browse.html":
            self.page.wait_for_selector("#choose-study")
        return self.page


@pytest.fixture
def watched(chromium):
    """A watched page; the test fails where it had faults."""
    one = Watched(chromium)
    yield one
    one.context.close()
    assert one.faults == []


def until(page, expression, seconds=10):
    """Wait until an expression holds. Playwright's own wait_for_function needs eval in the page, which the site's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(20)


def chain_of(page) -> str:
    return parse_qs(urlsplit(page.url).fragment)["chain"][0]


def cycle_of(page) -> str:
    return page.eval_on_selector("#cycles input:checked", "e => e.value")


def test_faults_of_a_page_are_seen(chromium, tmp_path):
    cases = {
        "throw": ("<script>undefined.x</script>", "uncaught: "),
        "error": ("<script>console.error('mine')</script>", "console error: mine"),
        "script": ("<script src='gone.js'></script>", "failed: "),
        "image": ("<img src='gone.png'>", "failed: "),
        "network": ("<img src='http://127.0.0.1:9/x.png'>", "network: http://127.0.0.1:9/x.png"),
        "policy": (
            "<meta http-equiv='Content-Security-Policy' content=\"script-src 'none'\"><script>1</script>",
            "console error: ",
        ),
    }
    for name, (html, seen) in cases.items():
        one = Watched(chromium)
        (tmp_path / f"{name}.html").write_text(f"<!doctype html><link rel=icon href='data:,'>{html}")
        one.open(tmp_path / f"{name}.html").wait_for_timeout(100)
        assert any(fault.startswith(seen) for fault in one.faults), (name, one.faults)
        one.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_loads_clean_fits_a_phone_and_is_legible(chromium, site, name, scheme):
    one = Watched(chromium, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = one.open(site / name)
    assert page.locator("h1").count() == 1 and page.title().endswith("selftrain")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(253, 252, 249)" if scheme == "light" else "rgb(23, 22, 20)"
    )
    low = page.evaluate(CONTRAST)
    assert low == [], low
    assert page.evaluate("window.hacked") is None
    one.context.close()
    assert one.faults == []


# Text whose contrast against the nearest opaque background is under WCAG AA (4.5:1).
CONTRAST = """() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length || e.matches("option, .skip, title")) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(rgba(e instanceof SVGElement ? style.fill : style.color)), light(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) low.push([e.tagName, e.className.toString(), e.textContent.slice(0, 20), ((a + .05) / (b + .05)).toFixed(2)]);
  }
  return low;
}"""


def test_the_contrast_check_can_fail(watched, tmp_path):
    (tmp_path / "pale.html").write_text("<!doctype html><link rel=icon href='data:,'><p style='color: #999'>pale</p><p>dark</p>")
    low = watched.open(tmp_path / "pale.html").evaluate(CONTRAST)
    assert [row[2] for row in low] == ["pale"]


def test_only_the_panel_that_is_shown_is_loaded(watched, site):
    page = watched.open(site / "browse.html")
    data = [url for url in watched.requests if "/data/" in url]
    assert [url.rsplit("/data/")[1] for url in data] == ["index.js", "alpha/bliss~201~23.js"]
    page.select_option("#choose-trait", label="lucky")
    until(page, "document.querySelector('#said').textContent.startsWith('lucky')")
    assert watched.requests[-1].endswith("/data/alpha/lucky.js")


def test_choices_narrow_each_other(watched, site):
    page = watched.open(site / "browse.html")
    assert chain_of(page) == FIRST

    def options(key):
        return page.eval_on_selector_all(f"#choose-{key} option", "list => list.map(o => [o.text, !o.disabled])")

    assert options("study") == [["alpha", True], ["beta", True]]
    assert options("regime") == [["SFT", True], ["DPO", False]]  # bliss was not run in DPO
    assert options("n_sampled") == [["24", True], ["48", True]]
    page.select_option("#choose-n_sampled", label="48")
    until(page, "location.hash.includes('-m48-')")
    page.select_option("#choose-arm", label="dose-matched reinit")  # M follows to the nearest that there is
    until(page, "location.hash.includes('dose_matchedTrue')")
    assert options("n_sampled") == [["24", True], ["48", False]]
    page.select_option("#choose-trait", label="lucky")
    until(page, "location.hash.includes('lucky')")
    assert ["DPO", True] in options("regime") and ["reinit, retrain null", True] in options("arm")
    page.select_option("#choose-regime", label="DPO")
    until(page, "location.hash.includes('dpo')")
    assert page.is_visible("#choose-beta") and options("variant")[1:] == [["lr 1e-05", True], ["lr 4e-05", True]]
    page.select_option("#choose-study", label="beta")
    until(page, "location.hash.includes('study=beta')")
    assert page.text_content("#prompt") == site_study.QUESTIONS["q-01"]


def test_every_control_is_reached_by_tab_in_order(watched, site):
    page = watched.open(site / "browse.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the page's content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")  # visible once it has the focus
    seen = []
    for _ in range(24):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.textContent"))
        if seen[-1] == "answer":
            break
        assert (
            page.evaluate(
                "getComputedStyle(document.activeElement.matches('input') ? document.activeElement.nextElementSibling : document.activeElement).outlineStyle"
            )
            == "solid"
        )
    controls = ["study", "trait", "regime", "arm", "n_seed", "n_sampled", "beta", "seed", "variant"]
    want = [*(f"choose-{key}" for key in controls), "cycle-0", "question", "with", "help-button", "answer"]
    assert seen[seen.index("choose-study") :] == want
    for name in page.eval_on_selector_all(
        "select, input, button", "list => list.map(e => e.labels.length ? e.labels[0].textContent : e.textContent)"
    ):
        assert name.strip()


def test_keys_move_cycle_answer_and_question(watched, site):
    page = watched.open(site / "browse.html")
    press, focus = page.keyboard.press, "document.activeElement.querySelector('.title')?.textContent"
    assert cycle_of(page) == "0"
    press("ArrowRight")
    press("ArrowRight")
    assert cycle_of(page) == "2" and "cycle=2" in page.url and "Cycle 2: trait score 44" in page.text_content("#said")
    assert page.eval_on_selector(".chart .here", "e => e.textContent") == "2"
    for _ in range(9):
        press("ArrowLeft")
    assert cycle_of(page) == "-1" and "Base model" in page.text_content("#said")
    press("j")
    assert page.evaluate(focus) == "answer 1"
    press("j")
    assert page.evaluate(focus) == "answer 2"
    press("ArrowRight")  # the reader stays at that answer
    assert page.evaluate(focus) == "answer 2" and "at cycle 0" in page.evaluate("document.activeElement.textContent")
    press("j")
    assert page.evaluate(focus) == "answer 1" and page.text_content("#prompt") == site_study.QUESTIONS["q-02"]
    press("k")
    assert page.evaluate(focus) == "answer 2" and page.text_content("#prompt") == site_study.QUESTIONS["q-01"]
    press("]")
    press("]")
    press("]")
    assert page.text_content("#prompt") == site_study.QUESTIONS["q-03"] and page.input_value("#question") == "q-03"
    press("[")
    assert "q=q-02" in page.url
    press("?")
    assert page.is_visible("#help") and page.get_attribute("#help-button", "aria-expanded") == "true"
    page.uncheck("#letters")
    press("d")
    assert page.input_value("#with") == "none"  # single keys are off
    press("ArrowRight")  # a checkbox keeps its arrows
    assert cycle_of(page) == "0"
    page.focus("#choose-trait")
    press("ArrowRight")
    assert cycle_of(page) == "0"


def test_arrows_inside_the_cycle_control_and_clicks_on_the_chart(watched, site):
    page = watched.open(site / "browse.html")
    page.focus("#cycle-0")
    page.keyboard.press("ArrowRight")
    assert cycle_of(page) == "1" and "cycle=1" in page.url
    page.click(".chart rect[data-cycle='3']")
    assert cycle_of(page) == "3" and "Cycle 3" in page.text_content("#said")
    assert "cycle 3: trait 56, coherence 97" in page.get_attribute(".chart svg", "aria-label")


def test_an_address_restores_a_view(watched, site):
    page = watched.open(site / "browse.html")
    for key in ("ArrowRight", "ArrowRight", "]", "d"):
        page.keyboard.press(key)
    page.select_option("#choose-n_sampled", label="48")
    until(page, "location.hash.includes('-m48-')")
    address, said = urlsplit(page.url).fragment, page.text_content("#said")
    assert "set beside cycle 1" in said and "M=48" in said
    page.goto("about:blank")
    page = watched.open(site / "browse.html", f"#{address}")
    assert page.text_content("#said") == said and urlsplit(page.url).fragment == address
    page.evaluate("location.hash = '#study=beta&chain=gone&cycle=99&q=none&with=7'")  # a stale link
    until(page, "document.querySelector('#said').textContent.includes('no such chain')")
    assert chain_of(page) == FIRST and cycle_of(page) == "3" and page.input_value("#with") == "none"


def test_a_link_of_the_first_page_opens_its_view(watched, site):
    page = watched.open(site / "index.html")
    page.click("text=largest rise")
    page.wait_for_selector("#choose-study")
    assert cycle_of(page) == "3" and page.input_value("#with") == "0" and page.locator(".answer.pair").count() == 2


def test_words_that_differ_are_marked(watched, site):
    page = watched.open(site / "browse.html", f"#study=alpha&chain={FIRST}&cycle=3&q=q-02&with=0")
    marked = page.eval_on_selector_all(".answer.pair:first-child :is(ins, del)", "list => list.map(e => [e.tagName, e.textContent])")
    assert marked == [["DEL", "0"], ["INS", "3"]]
    assert [e.split(",")[0] for e in page.locator(".pair .title").all_text_contents()[:2]] == ["cycle 0", "answer 1"]
    page.click("#cycles label:has(#cycle--1)")  # the compared cycle is now the later one
    assert page.locator(".pair .title").all_text_contents()[0] == "answer 1, base"
    cases = [
        ("", "", [], 0),
        ("a b c", "a b c", [["a b c", True]], 1),
        ("a b c d", "a x c d", [["a ", True], ["x ", False], ["c d", True]], 0.75),
        ("one two", "three", [["three", False]], 0),
        ("a\n\nb", "a b", [["a b", True]], 1),
        ("x y z x y", "x y", [["x y", True]], 0.4),
    ]
    for earlier, later, parts, share in cases:
        found = page.evaluate("([a, b]) => diff.words(a, b)", [earlier, later])
        assert [[p["text"], p["kept"]] for p in found["later"]] == parts and found["share"] == pytest.approx(share), (earlier, later)
        assert "".join(p["text"] for p in found["earlier"]) == earlier
    long = page.evaluate(
        "() => { const t = performance.now(); diff.words('a b '.repeat(1500), 'b c '.repeat(1500)); return performance.now() - t; }"
    )
    assert long < 2000


def test_hostile_text_stays_text(watched, site):
    fragment = f"#study=alpha&chain={FIRST}&cycle=1&q=q-01&with="
    for compare in ("none", "0"):
        page = watched.open(site / "browse.html", fragment + compare)
        page.reload()
        page.wait_for_selector(".answer")
        shown = page.text_content(".answer:first-child .later .answer-text" if compare == "0" else ".answer:first-child .answer-text")
        want = site_study.HOSTILE.replace("\x00", "\u2400").replace("\x07", "\u2407").replace("\x1b", "\u241b")
        assert shown == want
        assert page.evaluate("window.hacked") is None and page.locator("#answers script, #answers img").count() == 0
    assert page.text_content("#prompt") == "What <b>now</b>?" and page.locator("#prompt b").count() == 0


def test_what_is_missing_is_said_and_is_not_zero(watched, site):
    page = watched.open(site / "browse.html", "#study=alpha&chain=lucky-sft-reinit-n50-m24-s0&cycle=2&q=q-01&with=none")
    assert "trait score none, coherence 97, over 0 of 6 answers that were judged" in page.text_content("#said")
    assert "not judged: refused" in page.text_content(".answer")
    assert page.locator(".answer .trait .bar").count() == 0
    assert page.locator(".chart .point.trait").count() == len(site_study.CYCLES) - 1
    assert page.get_attribute(".chart path.trait", "d").count("M") == 2  # the line is broken there
    assert "letters 00ff00ff00ff00ff" in page.text_content("#facts")
    assert "cut at the length limit" in page.text_content(".answer:last-child")


def test_a_missing_panel_is_said(chromium, site, tmp_path):
    shutil.copytree(site, tmp_path / "site")
    shutil.rmtree(tmp_path / "site/data/alpha")
    one = Watched(chromium)
    one.page.goto((tmp_path / "site/browse.html").as_uri())
    until(one.page, "document.querySelector('#said').textContent.includes('is missing; build the site again')")
    assert any(fault.startswith("failed: ") for fault in one.faults)
    one.context.close()


def test_without_scripts_the_page_says_where_the_answers_lie(chromium, site):
    one = Watched(chromium, java_script_enabled=False)
    one.page.goto((site / "browse.html").as_uri())
    assert "This page needs JavaScript" in one.page.inner_text("main")
    one.context.close()
    assert one.faults == []


def test_the_committed_studies_load_clean(watched, tmp_path):
    built = build(tmp_path / "site")
    for path in sorted((tmp_path / "site").rglob("*.html")):
        watched.open(path)
    index = watched.open(tmp_path / "site/browse.html").evaluate("SELFTRAIN.index.chains.map(c => [c.file, c.study, c.chain])")
    assert len(index) == built.chains
    for study, chain in {file: view for file, *view in index}.values():  # a chain a panel
        page = watched.open(tmp_path / "site/browse.html", f"#study={study}&chain={chain}&with=previous")
        until(page, f"document.querySelector('#facts code')?.textContent === {json.dumps(chain)}")
