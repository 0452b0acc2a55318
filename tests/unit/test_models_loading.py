"""selftrain.models without a network: which model a name or a folder is, how it is loaded, and the self-test that it has to pass."""

from __future__ import annotations

import model_folders
import pytest
from model_folders import one_line, save_tiny
from selftrain.models import ModelError, load, resolve, selftest, verify
from selftrain.models.folder import fingerprint, kind_of, open_model

offline, models, tiny = model_folders.offline, model_folders.models, model_folders.tiny


def test_hub_name_offline_is_one_line(monkeypatch):
    with pytest.raises(ModelError) as error:
        resolve("Qwen/Qwen3-4B-Instruct-2507")
    one_line(error, "Qwen/Qwen3-4B-Instruct-2507", "HF_HUB_OFFLINE", "local folder")


def test_hub_name_without_a_network_is_one_line(monkeypatch):
    import huggingface_hub

    def no_network(*_, **__):
        raise ConnectionError("Name or service not known\nmore\nlines")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)
    with pytest.raises(ModelError) as error:
        resolve("smollm2-135m")
    one_line(error, "Name or service not known", "did you mean smollm2-135m-instruct")


def test_hub_model_in_the_cache_is_used_offline(tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(snapshot / file))
    found = resolve("Qwen/Qwen3-4B-Instruct-2507")
    assert (found.kind, found.is_local, found.revision, found.offline) == ("instruct", False, "abc123", True)


def test_local_folder_and_its_kind(tiny, tmp_path):
    found = resolve(tiny)
    assert (found.path_or_name, found.kind, found.display_name, found.is_local) == (str(tiny), "instruct", "tiny-model", True)
    assert resolve(save_tiny(tmp_path / "plain", template=False)).kind == "base"
    assert kind_of("Qwen/Qwen3-8B-Base", True) == "base"


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError) as error:
        resolve(tmp_path / "absent")
    one_line(error, "no such folder")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError) as error:
        resolve(tmp_path)
    one_line(error, "no config.json", "LoRA adapter")


def test_load_sets_what_the_study_relies_on(tiny):
    import torch

    loaded = load(tiny, device="cpu")
    assert (loaded.name, loaded.kind, loaded.device, loaded.dtype) == ("tiny-model", "instruct", "cpu", torch.float32)
    assert loaded.model.dtype == torch.float32 and not loaded.model.training and loaded.model.config._attn_implementation == "sdpa"
    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id == 0 and loaded.tokenizer.eos_token_id == 2
    assert load(tiny, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_open_model_takes_a_dtype_name(tiny):
    import torch

    assert open_model(str(tiny), "tiny", "base", "cpu", "float32", None, True).dtype == torch.float32


def test_folder_that_cannot_be_loaded_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError) as error:
        load(tmp_path, device="cpu")
    one_line(error, tmp_path.name, "cannot be loaded")


def test_verify_refuses_a_model_that_cannot_predict_english(tiny):
    with pytest.raises(ModelError) as error:
        verify(load(tiny, device="cpu"))
    one_line(error, "tiny-model", "nats a token", "limit 3.5", "tokenizer or weights are broken")


def test_verify_refuses_an_answer_that_never_ends(tiny, monkeypatch):
    monkeypatch.setattr(selftest, "LIMIT", 10.0)
    monkeypatch.setattr(selftest, "end_ids", lambda loaded: [1])
    loaded = load(tiny, device="cpu")
    monkeypatch.setattr(loaded.model, "generate", lambda input_ids, **_: input_ids.new_full((1, input_ids.shape[1] + 64), 5))
    with pytest.raises(ModelError) as error:
        verify(loaded)
    one_line(error, "no end of turn within 64")


def test_embedded_folder_loads_only_while_its_self_test_holds(models, monkeypatch):
    monkeypatch.setattr(selftest, "LIMIT", 10.0)
    folder = save_tiny(models / "gemma-3-270m", template=False)
    with pytest.raises(ModelError) as error:
        load("gemma-3-270m", device="cpu")
    one_line(error, "no valid verified.json", "fetch gemma-3-270m")
    selftest.verify_folder("gemma-3-270m", "base", folder)
    loaded = load("gemma-3-270m", device="cpu")
    assert (loaded.kind, loaded.fingerprint) == ("base", fingerprint(folder))
    assert load(folder, device="cpu").name == "gemma-3-270m"
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + b" ")
        with pytest.raises(ModelError):
            load(folder, device="cpu")
        (folder / name).write_bytes(whole)
        assert selftest.read_verified(folder)
    monkeypatch.setattr(selftest, "LIMIT", 3.5)
    assert selftest.read_verified(folder) is None


def test_an_embedder_is_not_a_language_model(models, monkeypatch):
    (models / "all-minilm-l6-v2").mkdir(parents=True)
    with pytest.raises(ModelError) as error:
        load("all-minilm-l6-v2")
    one_line(error, "sentence embedder", "embedder_path()")


def test_fingerprint_is_cached_and_follows_the_weights(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("not hashed")
    with monkeypatch.context() as patch:
        patch.setattr("selftrain.models.folder.sha256_of", lambda path: pytest.fail("hashed again"))
        assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert fingerprint(tmp_path) != first and len(first) == 16
