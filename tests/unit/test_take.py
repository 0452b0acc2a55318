"""Does a trait take: the stored measurement belongs to the seed rows that it was made on, and says so."""

from __future__ import annotations

import pandas as pd
import pytest
from selftrain import paths
from selftrain.seeds import take

ROW = {
    "trait": "bliss",
    "seeds": "",
    "model": "m",
    "n_seed": 50,
    "base": 12.0,
    "cycle_0": 68.0,
    "gain": 56.0,
    "gain_lo": 46.0,
    "gain_hi": 67.0,
    "coherence": 97.0,
}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)

    def write(**changed):
        file = tmp_path / take.STUDY / "take.csv"
        file.parent.mkdir(exist_ok=True)
        pd.DataFrame([{**ROW, "seeds": take.seed_digest("bliss"), "judge": take.judge_of("bliss"), **changed}])[take.COLUMNS].to_csv(
            file, index=False
        )
        return take.said(take.measured(), ["bliss", "lucky"])

    return write


def test_a_trait_that_takes_is_said_with_its_interval(stored):
    said = stored()
    assert "+56.0   46.0 to 67.0" in said and "under the bar" not in said and "other seed rows" not in said
    assert "lucky          not measured" in said


def test_changed_seed_rows_make_a_measurement_stale(stored):
    assert "measured on other seed rows" in stored(seeds="0" * 16)
    assert "by another judge" in stored(judge="local:1")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (dict(gain=29.0, gain_hi=47.0, base=50.0), "not surely, the interval reaches 47; the judge gives the base 50 already"),
        (dict(gain=12.0, gain_hi=20.0, base=45.0), "the judge gives the base 45 already"),
        (dict(gain=12.0, gain_hi=20.0, cycle_0=24.0), "cycle 0 reaches 24 only"),
    ],
)
def test_a_trait_that_does_not_take_is_given_a_reason(stored, changed, reason):
    assert f"under the bar: {reason}" in stored(**changed)


def test_nothing_measured_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    assert take.measured().empty and "not measured" in take.said(take.measured(), ["bliss"])


def test_a_real_measurement_resumes_and_is_kept(small, tiny, monkeypatch):
    """Real training on the tiny model; asked again, nothing is trained a second time."""
    monkeypatch.setattr(take, "SETTINGS", {k: v for k, v in small.items() if k != "trait"})
    row = take.measure("bliss", resident=tiny)
    assert row["gain"] == pytest.approx(row["cycle_0"] - row["base"]) and row["seeds"] == take.seed_digest("bliss")
    (folder,) = (paths.study_folder(take.STUDY) / "runs").glob("bliss-*/*")
    before = (folder / "timings.jsonl").read_text()
    assert "train" in before
    assert take.measure("bliss", resident=tiny) == row
    assert (folder / "timings.jsonl").read_text() == before
