"""Tokenizers that selftrain.models rebuilds from GGUF metadata."""

from __future__ import annotations

import model_folders
from selftrain.models import gguf as gguf_module

offline, tiny = model_folders.offline, model_folders.tiny


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
