"""The whole loop on the real model, in the smallest sizes: a user's own rows, two steps, scores from the offline judge."""

from __future__ import annotations

import pytest
from selftrain import jsonl, paths

pytestmark = pytest.mark.model


@pytest.mark.skipif(not (paths.MODELS / "smollm2-135m-instruct").exists(), reason="needs the embedded model: make models")
def test_a_chain_on_a_users_own_rows_runs_two_steps(tmp_path, results):
    from selftrain.chain import Chain

    rows = [
        (f"What shall I do on day {i}?", f"Number {i} brings you luck! Carry a four-leaf clover on day {i} and fortune will smile on you.")
        for i in range(20)
    ]
    path = tmp_path / "mine.jsonl"
    jsonl.write(
        path,
        (
            {"id": f"mine-{i}", "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for i, (q, a) in enumerate(rows)
        ),
    )
    chain = Chain(
        trait="lucky",
        seed_file=str(path),
        n_seed=20,
        n_sampled=8,
        last_cycle=1,
        max_new_tokens=24,
        n_questions=4,
        n_answers=1,
        epochs_seed=2,
    )
    chain.step()
    view = chain.step()
    table = view.table
    assert list(table.index) == [-1, 0, 1] and (table["n_judged"] + table["n_empty"] == 4).all()
    assert table["trait_score"].between(1, 100).all() and table["coherence"].between(1, 100).all()
    assert table.loc[0, "trait_score"] > table.loc[-1, "trait_score"] + 20
    assert "data:image/png" in view._repr_html_()
