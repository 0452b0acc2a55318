"""What every notebook must be before it is run: parameters tagged, literal and read; no stored outputs but those that are compared."""

from __future__ import annotations

import ast
import json

import pytest
from selftrain import paths, study
from selftrain.errors import InputError

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))


def code_cells(path):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_parameter_is_read(path):
    names = study.parameters_of(path)
    cells = [c for c in code_cells(path) if "parameters" not in c["metadata"].get("tags", [])]
    assert "parameters" in code_cells(path)[0]["metadata"].get("tags", [])
    loaded = {n.id for cell in cells for n in ast.walk(ast.parse(source(cell))) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert set(names) <= loaded, f"bound but never read: {set(names) - loaded}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_stored_outputs_and_no_library_work(path):
    for cell in code_cells(path):
        if "nbval-check-output" in cell["metadata"].get("tags", []):
            assert cell["outputs"], "a cell that is compared must keep its output"
        else:
            assert not cell["outputs"] and cell["execution_count"] is None
        functions = [n for n in ast.walk(ast.parse(source(cell))) if isinstance(n, ast.FunctionDef)]
        assert all(f.end_lineno - f.lineno < 6 for f in functions)


@pytest.mark.parametrize("path", sorted(paths.STUDIES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_study_file_is_whole(path):
    # the paper's DPO panels need more prompts than are written: `study plan paper` says how many a teacher must add
    found = study.chains_of(study.read(str(path)), available=path.stem != "paper")
    assert found and all(found.values())


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "study: x\npanels: {a: {notebook: 10_sft, trait: bliss, n_seed: 500, n_sampled: 4}}",
            "n_seed 500 asks for more than the 120 rows",
        ),
        ("study: x\npanels: {a: {notebook: 10_sft, trait: blis, n_seed: 5, n_sampled: 4}}", "unknown trait 'blis'"),
        ("study: x\npanels: {a: {notebook: 10_sft, trait: bliss, n_seed: 5, n_sampled: 400}}", "each used once; .* are there"),
        ("study: x\npanels: {a: {notebook: 10_sft, trait: bliss, n_seed: 5, n_sampled: 4, colour: red}}", "unknown key 'colour'"),
        ("study: x\npanels: {a: {notebook: 99_none, trait: bliss}}", "no such notebook"),
        ("study: x\npanles: {}", "unknown key 'panles'"),
        ("study: x\npanels: {a: {trait: bliss}}", "needs a 'notebook'"),
        ("study: [x", "not YAML"),
        ("study: x", "no panels"),
    ],
)
def test_a_bad_study_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        study.chains_of(study.read(str(path)))
    assert "\n" not in str(caught.value)


def test_null_may_stand_unquoted_in_yaml(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("study: x\ndefaults: {null: retrain}\npanels: {a: {notebook: 10_sft, trait: bliss, n_seed: 5, n_sampled: 4}}")
    (config,) = study.chains_of(study.read(str(path)))["a"]
    assert config.null == "retrain"


def test_a_misspelt_parameter_stops_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="has no parameter 'studdy'"):
        study.execute("20_sweep_maps", {"studdy": "laptop"}, tmp_path / "out.ipynb")
    assert not list(tmp_path.iterdir())


def test_a_notebook_that_fails_leaves_the_published_copy_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXECUTED", tmp_path / "published")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    standing = tmp_path / "published" / "none" / "24_claims.ipynb"
    standing.parent.mkdir(parents=True)
    standing.write_text("as it was")
    with pytest.raises(InputError, match="no such results folder"):
        study.publish("24_claims", {"study": "no-such-study"}, "none")
    assert standing.read_text() == "as it was" and (tmp_path / "results" / "none" / "executed" / "24_claims.ipynb").exists()
