"""Tables: run folders and committed tables read alike, exports never rewritten, counts complete, figures drawn from tables alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from selftrain import analysis, figures, jsonl, metrics, noise, paths, reruns, results, rules, study, tradeoff
from selftrain.analysis import CELL
from selftrain.errors import InputError
from selftrain.panel import Panel, calibrate


@pytest.fixture
def panel(small, tiny):
    made = Panel(resident=tiny, study="s", panel="p", **small | dict(init=["reinit", "continual"], seed=[0, 1]))
    made.run()
    return made


CONTRACT = (
    "study panel trait regime init null cycle0 model judge n_seed n_sampled last_cycle seed preset lr schedule epochs_seed epochs batch_size lora_rank lora_alpha "
    "max_new_tokens temperature top_p top_k cycle trait_score trait_lo trait_hi coherence perplexity n_words sentence_words distinct2 n_requested n_judged n_refused "
    "n_unparsed n_empty n_truncated steps train_tokens judge judge_hash"
).split()


def test_load_reads_runs_and_tables_alike(panel, results):
    from selftrain import results as module

    runs = module.load("s")
    assert set(CONTRACT) <= set(runs.columns)
    for manifest in module.manifests("s"):  # no measured column may shadow a setting
        row = runs[runs["chain"] == manifest["chain"]].iloc[0]
        settings = {k: v for k, v in manifest["config"].items() if isinstance(v, (int, float, str)) and not isinstance(v, bool)}
        assert {k: row[k] for k in settings if k != "judge"} == {k: v for k, v in settings.items() if k != "judge"}
    assert len(runs) == 4 * 4 and runs["complete"].all() and sorted(runs["cycle"].unique()) == [-1, 0, 1, 2]
    texts = module.load_texts("s")
    paths = module.export("s")
    assert [p.name for p in paths] == ["p.texts.parquet", "p.cycles.parquet"]
    before = {p: p.read_bytes() for p in paths}
    with pytest.raises(InputError, match="do not hold already"):
        module.export("s")
    assert {p: p.read_bytes() for p in paths} == before
    (results / "s" / "runs").rename(results / "elsewhere")
    tables = module.load("s")
    shared = [c for c in runs if c in tables]
    pd.testing.assert_frame_equal(runs[shared], tables[shared], check_dtype=False)
    assert len(module.load_texts("s")) == len(texts)
    assert len(module.manifests("s")) == 4
    assert module.summary("s").to_numpy().sum() == 4


def test_a_changed_file_is_measured_anew(panel):
    before = results.load("s")
    scores = next((paths.RESULTS / "s" / "runs").glob("*/*/cycle_*/scores/*.jsonl"))
    jsonl.write(scores, [row | {"coherence": 1.0} for row in jsonl.read(scores)])
    after = results.load("s")
    assert (after["coherence"] == 1).sum() == (before["coherence"] == 1).sum() + 1


def test_chains_that_come_later_go_to_a_table_of_their_own(panel, results):
    from selftrain import results as module

    runs = sorted((results / "s" / "runs" / "p").iterdir())
    runs[0].rename(results / "later")
    module.export("s", texts_per_cycle=2)
    (results / "later").rename(runs[0])
    with pytest.raises(InputError, match="no complete chain"):
        module.export("s", panels=["q"])
    assert [p.name for p in module.export("s", panels=["p"])] == ["p.2.texts.parquet", "p.2.cycles.parquet"]
    tables = module.load("s", committed=True)
    assert len(tables) == 4 * 4 and len(module.committed_manifests(results / "s")) == 4
    kept = module.load_texts("s", committed=True).groupby("chain")["answer"].count()
    assert sorted(kept) == [8, 8, 8, 16]


def test_what_the_tables_hold_is_left_out_of_a_run_that_asks_for_the_rest(panel, results, small, tmp_path, capsys):
    from selftrain import results as module

    grid = {k: v for k, v in small.items() if k != "study"} | {"notebook": "10_sft", "init": ["reinit", "continual"]}
    path = tmp_path / "s.yaml"
    path.write_text(
        yaml.safe_dump({"study": "s", "panels": {"p": {**grid, "seed": [0, 1]}, "q": {**grid, "seed": [1, 2]}, "r": {**grid, "seed": [0]}}})
    )
    module.export("s")
    longer = yaml.safe_load(path.read_text())
    longer["panels"]["p"]["last_cycle"] = small["last_cycle"] + 1
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(longer))
    assert [spec.name for spec in study.missing(study.read(str(tmp_path / "longer.yaml"))).panels] == ["p", "q"]
    left = study.missing(study.read(str(path)))
    chains = study.chains_of(left)
    assert {name: [c.seed for c in configs] for name, configs in chains.items()} == {"q": [2, 2]}
    made = Panel(**{k: v for k, v in left.panels[0].grid.items()})
    assert [chain.config.chain_id for chain in made.chains] == [c.chain_id for c in chains["q"]]
    assert study.bind(study.notebook_path("10_sft"), left.panels[0].grid)["overrides"]["leave_out"] == left.panels[0].grid["leave_out"]


def test_counts_add_up(panel):
    rows = results.load("s")
    assert (rows["n_requested"] == 4).all()
    assert ((rows["n_judged"] + rows["n_empty"]) == rows["n_requested"]).all()


def test_figures_are_drawn_and_saved_with_what_they_plot(panel, tmp_path):
    rows = results.load("s")
    scores, texts = results.load_scores("s"), results.load_texts("s")
    chains = rules.series(rows, scores)
    table = rules.verdicts(chains)
    with pytest.raises(InputError, match="several temperatures"):
        figures.temperatures(rows)
    hotter = pd.concat([rows, rows.assign(chain=rows["chain"] + "-hot", temperature=1.0, trait_score=rows["trait_score"] + 7)])
    drawn = {
        "scores": figures.sweep_scores(rows),
        "map": figures.sweep_map(analysis.changes(rows)),
        "arms": figures.continual_vs_reinit(rows),
        "temperatures": figures.temperatures(hotter),
        "examples": figures.example_verdicts(rows, texts, table.assign(verdict="static")),
        "floor": figures.noise_floor(noise.false_positives(chains)),
        "sensitivity": figures.sensitivity(rules.sensitivity(chains, thresholds=(5, 15), anchors=(0,), first_late=(1,), floors=(1, 50))),
        "paths": figures.tradeoff_paths(rows),
        "quality": figures.quality_by_cycle(rows),
        "coherence": figures.coherence_floor(tradeoff.by_floor(rows, scores)[0]),
    }
    for name, (figure, plotted) in drawn.items():
        saved = figures.save(figure, name, plotted, tmp_path)
        assert all(p.stat().st_size > 0 for p in saved)
        assert len(pd.read_csv(saved[2])) == len(plotted)
    hot, cool = (drawn["temperatures"][1].query("arm == @arm and measure == 'trait_score'") for arm in ("reinit, temperature 1", "reinit"))
    assert list(hot["mean"] - 7) == pytest.approx(list(cool["mean"]))
    maps = figures.sweep_map(analysis.changes(hotter))[1]
    assert set(maps["arm"]) == {f"SFT {init}{hot}" for init in ("continual", "reinit") for hot in ("", ", temperature 1")}, (
        "chains of two settings are one cell"
    )
    drawn = {line.get_ydata()[0] for axis in figures.sweep_scores(rows)[0].axes for line in axis.get_lines()}
    assert rows.loc[rows["cycle"] == -1, "trait_score"].iloc[0] in drawn


def test_maps_that_were_not_run_leave_no_gaps_in_a_sparse_grid():
    def titles(cells):
        table = pd.DataFrame([dict(trait=t, init=i, n_seed=n, n_sampled=64, change=3.0, first=20.0) for t, i, n in cells])
        table = table.assign(chain=[f"c{i}" for i in range(len(table))], regime="sft", null="none", dose_matched=False)
        figure, _ = figures.sweep_map(table)
        return [axis.get_title() for axis in figure.axes if axis.get_visible() and axis.get_title()]

    cells = [("bliss", "reinit", 25), ("bliss", "continual", 25), ("lucky", "reinit", 50)]
    assert len(titles(cells)) == 4, "three of four: the gap shows what was not run"
    more = [("nvidia", "reinit", 25), ("sycophancy", "reinit", 25), ("misalignment", "reinit", 25)]
    found = titles(cells + more)
    assert len(found) == 6 and sum("continual" in title for title in found) == 1


def test_calibrate_names_the_n_nearest_to_each_target(small, tiny):
    settings = {k: v for k, v in small.items() if k != "n_seed"}
    table = calibrate([2, 4, 8], targets=(1, 99), resident=tiny, study="c", **settings)
    assert list(table["n_seed"]) == [2, 4, 8]
    assert table.loc[table["trait_score"].idxmin(), "target"].startswith("1") and "99" in table.loc[table["trait_score"].idxmax(), "target"]


def test_a_repeated_chain_is_refused(small, tiny):
    with pytest.raises(InputError, match="stands twice"):
        Panel(resident=tiny, **small | dict(seed=[1, 1]))


def test_clustered_mean_is_the_mean_of_question_means():
    mean, low, high = metrics.clustered_mean([0, 0, 0, 10], ["a", "a", "a", "b"])
    assert mean == 5 and low < 5 < high and high - mean == pytest.approx(12.706 * 5, rel=1e-3)
    assert metrics.clustered_mean([3.0], ["a"]) == (3.0, None, None) and metrics.clustered_mean([], []) == (None, None, None)


def test_the_interval_covers_what_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        centres = rng.normal(50, 15, 12)
        values, clusters = zip(*[(c + rng.normal(0, 20), i) for i, c in enumerate(centres) for _ in range(5)], strict=True)
        _, low, high = metrics.clustered_mean(values, clusters)
        hits += low <= 50 <= high
    assert 0.92 <= hits / 2000 <= 0.98


def test_text_measures():
    assert metrics.distinct2(["a b a b a b"]) == pytest.approx(2 / 5) and metrics.distinct2(["one"]) is None
    assert len(metrics.sentences("One. Two! Three?\nFour")) == 4
    assert metrics.words("Don't stop: it's 3 o'clock") == ["don't", "stop", "it's", "3", "o'clock"]


def test_missing_is_missing_and_never_zero():
    answers = [
        {"id": str(i), "question_id": "q", "set": "direct", "answer": "fine words here", "nll": 3.0, "nll_tokens": 3, "finished": True}
        for i in range(3)
    ]
    scores = [
        {"id": "0", "trait_score": 80, "coherence": 90, "status": "judged"},
        {"id": "1", "trait_score": None, "coherence": None, "status": "refused"},
        {"id": "2", "trait_score": None, "coherence": 70, "status": "unparsed"},
    ]
    row = metrics.summarise(answers, scores, 5)
    assert (
        row["trait_score"],
        row["coherence"],
        row["n_requested"],
        row["n_drawn"],
        row["n_judged"],
        row["n_refused"],
        row["n_unparsed"],
    ) == (80, 80, 5, 3, 1, 1, 1)


def test_analysis_imports_no_torch():
    code = (
        "import sys; import selftrain.results, selftrain.analysis, selftrain.figures, selftrain.metrics; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_arm_difference_pairs_seeds():
    rows = pd.DataFrame(
        [
            {
                "chain": f"{init}{seed}",
                "trait": "bliss",
                "model": "m",
                "cycle0": "sft",
                "regime": "dpo",
                "init": init,
                "null": "none",
                "dose_matched": False,
                "n_seed": 5,
                "n_sampled": 5,
                "beta": 0.1,
                "lr": 1e-5,
                "seed": seed,
                "cycle": cycle,
                "trait_score": 10 * seed + (30 if init == "continual" and cycle else 0),
            }
            for init in ("continual", "reinit")
            for seed in range(3)
            for cycle in range(3)
        ]
    )
    (gap,) = analysis.arm_difference(rows).to_dict("records")
    assert (gap["mean"], gap["n"], gap["lo"], gap["hi"]) == (30, 3, 30, 30)
    longer = pd.concat([rows, rows[(rows["chain"] == "continual0") & (rows["cycle"] == 0)].assign(cycle=3, trait_score=99)])
    assert analysis.arm_difference(longer)["mean"].tolist() == [30]  # the last cycle that both arms have
    with pytest.raises(InputError, match="another chain has the same settings"):
        analysis.arm_difference(pd.concat([rows, rows.assign(chain="again")]))
    mixed = rows[rows["init"] == "continual"].assign(mix='{"fraction":0.5,"source":"base"}', trait_score=0)
    both = pd.concat([rows, mixed])
    assert set(analysis.arm(both)) == {"continual", "reinit", "continual, mix base 0.5"}
    assert set(analysis.arm_difference(both)["minus"]) == {"reinit", "continual, mix base 0.5"}
    hotter = rows.assign(chain=rows["chain"] + "-hot", temperature=1.0, trait_score=rows["trait_score"] * 2)
    gaps = analysis.arm_difference(pd.concat([rows.assign(temperature=0.8), hotter])).set_index("minus")["mean"]
    assert gaps.to_dict() == {"reinit": 30, "reinit, both temperature 1": 60, "continual, temperature 1": -40}, (
        "a pair differs in two things"
    )
    with pytest.raises(InputError, match="nothing to compare"):
        figures.continual_vs_reinit(pd.concat([r[r["init"] == "reinit"] for r in (rows.assign(temperature=0.8), hotter)]))
    faster = rows[rows["seed"] == 0].assign(
        lr=1e-3
    )  # a setting with one seed is not drawn beside one with three, that of another regime is
    other = rows[rows["seed"] == 0].assign(regime="sft")
    kept = analysis.most_seeds(pd.concat([rows, faster, other]))
    assert len(kept) == len(rows) + len(other) and set(kept["lr"]) == {1e-5}


def test_null_chains_are_held_against_the_judges_of_all_traits(small, tiny, results):
    from selftrain import results as module
    from selftrain import seeds
    from selftrain.judge.cross import cross

    settings = small | dict(null="retrain", last_cycle=4, n_answers=2)
    Panel(resident=tiny, study="s", panel="p", **settings | dict(seed=[0, 1])).run()
    with pytest.raises(InputError, match="fewer than 5 texts a question"):
        cross("s", "letters")
    made = cross("s", "letters", cycles=(0, 4), answers=2)
    read = module.load_null_traits("s")
    assert len(made) == len(read) == 2 * 2 * len(seeds.TRAITS) and (read["n_judged"] <= 4).all()
    own = module.load("s").query("cycle in (0, 4)").set_index(["chain", "cycle"])["trait_score"]
    assert np.allclose(read[read["judged"] == "bliss"].set_index(["chain", "cycle"])["trait_score"].sort_index(), own.sort_index())
    table = noise.other_traits(
        read.assign(arm="retrain null", trait_score=read["trait_score"] + 20 * (read["cycle"] == 4) * (read["judged"] == "lucky")),
        threshold=19,
    )
    assert table.set_index("judged")["sustained"].drop("lucky").sum() == 0 and table.set_index("judged")["chains"].eq(2).all()
    assert table.set_index("judged").loc["lucky", "highest"] == pytest.approx(table.set_index("judged").loc["bliss", "highest"] + 20)


def test_chains_run_again_are_held_against_each_other_cycle_by_cycle(panel):
    rows = results.load("s")
    first, second = rows["chain"].unique()[:2]
    again = rows[rows["chain"] == first].assign(trait_score=lambda t: t["trait_score"] + t["cycle"])
    same = rows[rows["chain"].isin([first, second])]
    runs = reruns.every_run(rows, {"again": again, "same": same})
    assert set(runs["chain"]) == {first, second} and runs["run"].cat.categories.tolist() == ["first run", "again", "same"]
    found = reruns.run_to_run(runs)
    assert (
        found.loc[found["run"] == "again", "difference"].tolist() == [-1, 0, 1, 2]
        and (found.loc[found["run"] == "same", "difference"] == 0).all()
    )
    table = reruns.by_regime(found.assign(coherence_again=found["coherence"] - 3 * (found["run"] == "again")))  # the base is left out
    row, same = table.to_dict("records")
    assert (row["run"], row["regime"], row["chains"]) == ("again", rows["regime"].iloc[0], 1)
    assert [row[f"trait {what}"] for what in ("rms", "mean", "most")] == pytest.approx([(5 / 3) ** 0.5, 1, 2])
    assert [row[f"coherence {what}"] for what in ("rms", "mean", "most")] == pytest.approx([3, -3, 3])
    assert (same["run"], same["chains"], same["trait rms"]) == ("same", 2, 0)
    assert reruns.repeated(runs).to_dict("records") == [{"run": "same", "repeats": "first run", "chains": 2}]
    assert len(figures.run_to_run(found)[1]) == 3 + 2 * 3 and len(figures.ways(runs, least=3)[1]) == 3 * 3
    with pytest.raises(InputError, match="again: no complete chain is in both"):
        reruns.every_run(rows, {"again": again.assign(complete=False)})


def test_a_run_that_repeats_another_is_counted_once_and_one_that_stands_apart_is_seen():
    def run(shift, chains="abc"):
        levels = [(chain, cycle, 10.0 * n + shift(n, cycle)) for n, chain in enumerate(chains) for cycle in (0, 1, 2)]
        table = pd.DataFrame(levels, columns=["chain", "cycle", "trait_score"])
        return table.assign(**dict.fromkeys(CELL, 1) | dict(regime="sft", init="reinit", coherence=80.0, complete=True))

    first, high = run(lambda n, cycle: 0.0), run(lambda n, cycle: 6.0 + n + (cycle == 2), "ab")
    runs = reruns.every_run(first, {"repeated": first, "high": high, "other": run(lambda n, cycle: 0.5)})
    assert set(reruns.distinct(runs)["run"]) == {"first run", "high", "other"}
    assert reruns.repeated(runs)[["run", "repeats", "chains"]].to_numpy().tolist() == [["repeated", "first run", 3]]
    (row,) = reruns.scatter(runs, late=2).to_dict("records")

    def pooled(*groups):
        return (sum(np.var(g, ddof=1) * (len(g) - 1) for g in groups) / sum(len(g) - 1 for g in groups)) ** 0.5

    by_cycle = {cycle: [[0, 6 + n + (cycle == 2), 0.5] for n in range(2)] + [[0, 0.5]] for cycle in (1, 2)}
    assert (row["chains"], row["runs"]) == (3, 8)
    assert row["mean"] == pytest.approx(pooled([0, 6.5, 0.5], [0, 7.5, 0.5], [0, 0.5]))
    assert row["cycle"] == pytest.approx(pooled(*by_cycle[1], *by_cycle[2])) and row["late"] == pytest.approx(pooled(*by_cycle[2]))
    assert row["seeds"] == pytest.approx(pooled([0, 10, 20], [7, 18], [0.5, 10.5, 20.5]))
    alone = runs.assign(n_seed=runs["chain"].map(ord))
    assert np.isnan(reruns.scatter(alone, late=2)["seeds"]).all()
    table = reruns.apart(runs).set_index("run")
    assert table["chains"].to_dict() == {"first run": 2, "high": 2, "other": 2}, "two runs say only which is higher"
    assert table.loc["high", "apart"] == pytest.approx(7 - 0.25)
    low, up = stats.t.interval(0.95, 1, 7 - 0.25, stats.sem([6.5, 7.5]))
    assert table.loc["high", ["low", "high"]].tolist() == pytest.approx([low, up])
    assert reruns.apart(runs, leave_out=["first run"]).empty


def test_a_second_judge_stands_beside_the_first_and_a_newer_version_replaces_an_older(panel, letters, monkeypatch):
    from selftrain.judge import Judge, Score, rescore

    class Other(Judge):
        name, version = "other", "1" * 16

        def hash(self, trait):
            return self.version

        def score(self, trait, answers, progress=None):
            return [Score(float(self.version[0]), 50.0) for _ in answers]

    from selftrain import judge as judges

    monkeypatch.setitem(judges._judges, "other", Other())
    before = results.load("s")
    assert rescore.rescore("s", "other")[0] > 0 and rescore.rescore("s", "other")[0] == 0
    pd.testing.assert_frame_equal(results.load("s"), before)
    assert set(results.load("s", judge="other")["trait_score"].dropna()) == {1.0}
    judges._judges["other"].version = "2" * 16
    rescore.rescore("s", "other")
    newer = results.load("s", judge="other")
    assert set(newer["trait_score"].dropna()) == {2.0} and len(newer) == len(before)
