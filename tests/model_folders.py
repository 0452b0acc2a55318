"""What tests of selftrain.models share: a tiny model saved as a folder, an empty models folder, no network, and errors of one line."""

from __future__ import annotations

import pytest
from selftrain import paths
from selftrain.models import gguf


def one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    """The error is a single line that holds every part."""
    text = str(error.value)
    assert "\n" not in text, text
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"


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

    tokenizer = gguf._byte_level_tokenizer(byte_fields())
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
