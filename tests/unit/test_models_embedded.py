"""The embedded models' real weights, where they were fetched."""

from __future__ import annotations

import model_folders
import pytest
from selftrain.models import EMBEDDED, load, selftest, verify

offline = model_folders.offline


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
