"""A two-layer random model with a byte tokenizer, a judge that counts letters, and a results folder of its own for every test."""

from __future__ import annotations

import pytest

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TINY = "tiny"


def byte_tokenizer():
    """One token a byte, a chat template, <|end|> as end token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|end|>", "<|pad|>", "<|user|>", "<|assistant|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(vocabulary: int, seed: int = 0):
    """A random two-layer Llama, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=257,
        eos_token_id=256,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny():
    """A resident tiny model, shared by all tests: whatever they do to its adapter, the base stays."""
    from selftrain.resident import Resident

    tokenizer = byte_tokenizer()
    return Resident(tiny_model(len(tokenizer)), tokenizer, name=TINY, fingerprint="tiny", kind="instruct", rank=4, alpha=8)


@pytest.fixture
def letters():
    """A judge that needs no model: trait is the share of the letter e, coherence the share of ASCII letters. Registered as `letters`."""
    from selftrain import judge

    class Letters(judge.Judge):
        name = "letters"

        def hash(self, trait):
            return "0" * 16

        def score(self, trait, answers, progress=None):
            return [
                judge.Score(
                    1 + 99 * a.answer.lower().count("e") / max(1, len(a.answer)),
                    1 + 99 * sum(c.isascii() and c.isalpha() for c in a.answer) / max(1, len(a.answer)),
                )
                for a in answers
            ]

    judge._judges["letters"] = Letters()
    yield judge._judges["letters"]
    del judge._judges["letters"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty results folder."""
    from selftrain import paths

    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def small(letters, results):
    """Settings of a chain that takes a second on the tiny model."""
    return dict(
        trait="bliss",
        model=TINY,
        judge="letters",
        n_seed=6,
        n_sampled=4,
        last_cycle=2,
        batch_size=2,
        epochs_seed=1,
        max_new_tokens=8,
        n_questions=2,
        n_answers=2,
        lora_rank=4,
        lora_alpha=8,
        max_length=128,
        lr=1e-2,
    )
