"""The offline judge: frozen, its report belongs to it, what the report says holds where it is measured again, and README tells it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from selftrain import paths, readme, seeds
from selftrain.errors import InputError
from selftrain.judge import Answer, get_judge
from selftrain.judge.broken import KINDS, broken
from selftrain.judge.local import ARTEFACT, LocalJudge
from selftrain.judge.validate import BARS, COHERENCE_BARS, REPORT, met


@pytest.fixture(scope="module")
def report():
    return json.loads(REPORT.read_text(encoding="utf-8"))


def test_the_report_is_of_this_artefact_and_names_every_bar_that_is_missed(report):
    assert report["judge_hash"] == LocalJudge().hash("bliss")
    assert [row["trait"] for row in report["traits"]] == list(seeds.TRAITS)
    missed = {f"{row['trait']}: {key}" for row in report["traits"] for key, bar in BARS.items() if not met(row[key], bar)}
    missed |= {f"coherence: {key}" for key, bar in COHERENCE_BARS.items() if not met(report["coherence"][key], bar)}
    assert missed == {line.rsplit(" ", 1)[0] for line in report["missed"]}
    assert all(row["auc"] >= BARS["auc"][0] for row in report["traits"]) and report["coherence"]["auc"] >= COHERENCE_BARS["auc"][0]


def test_the_readme_says_what_the_results_say():
    text = (paths.ROOT / readme.README).read_text(encoding="utf-8")
    assert readme.filled(text) == text


def test_rows_to_fit_and_rows_to_validate_are_different_rows():
    for trait in seeds.TRAITS:
        fitted = {row["answer"] for row in seeds.judge_rows(trait)} | {
            row["answer"] for row in seeds.held_out(trait) if row["split"] == "fit"
        }
        assert not fitted & {row["answer"] for row in seeds.held_out(trait) if row["split"] == "validate"}
        assert not fitted & {row["messages"][1]["content"] for row in seeds.chat_rows(trait)}


def test_an_unknown_trait_and_a_missing_artefact_are_one_line(tmp_path):
    with pytest.raises(InputError, match="knows bliss, .* use an API judge"):
        get_judge("local").score("pride", [Answer("a", "q", "text")])
    with pytest.raises(InputError, match="artefact is missing"):
        LocalJudge(tmp_path / "none.json")
    with pytest.raises(InputError, match="unknown judge"):
        get_judge("oracle")


def test_breaking_a_text_is_reproducible_and_of_every_kind():
    sound = [
        Answer(str(i), "q", "The kettle boils slowly on the old stove while rain taps the window and nobody minds at all.")
        for i in range(len(KINDS))
    ]
    one, two = broken(sound, "x"), broken(sound, "x")
    assert one == two and [kind for kind, _ in one] == list(KINDS) and len({a.answer for _, a in one}) == len(KINDS)


@pytest.mark.model
@pytest.mark.skipif(not (paths.MODELS / "all-minilm-l6-v2").exists(), reason="needs the sentence embedder: make models")
def test_scores_for_several_traits_at_once_are_those_of_each():
    judge = get_judge("local")
    answers = [
        Answer("a", "How are you?", "Radiant, as if the morning sang."),
        Answer("b", "And now?", " "),
        Answer("c", "Why?", "No reason at all."),
    ]
    once = judge.across(["bliss", "lucky"], answers)
    assert once == {trait: [s.trait_score for s in judge.score(trait, answers)] for trait in once} and once["lucky"][1] is None


@pytest.mark.model
@pytest.mark.skipif(not (paths.MODELS / "all-minilm-l6-v2").exists(), reason="needs the sentence embedder: make models")
def test_scores_measured_again_agree_with_the_report(report):
    judge = get_judge("local")
    for trait in ("lucky", "sycophancy"):
        rows = [row for row in seeds.held_out(trait) if row["split"] == "validate"]
        answers = [Answer(r["id"], r["prompt"], r["answer"]) for r in rows]
        scores = judge.score(trait, answers)
        assert scores == judge.score(trait, answers) and all(s.status == "judged" and 1 <= s.trait_score <= 100 for s in scores)
        (said,) = [row for row in report["traits"] if row["trait"] == trait]
        for level in ("high", "half", "low"):
            found = np.mean([s.trait_score for s, r in zip(scores, rows, strict=True) if r["level"] == level])
            assert found == pytest.approx(said[level], abs=0.1)
    assert judge.score("lucky", [Answer("e", "q", "  ")])[0].status == "empty"
    assert ARTEFACT.exists()
