"""From a GGUF file to an ordinary model folder: bf16 safetensors, a plain config, and a tokenizer rebuilt from the vocabulary.

transformers converts the weights of both embedded models correctly, but neither tokenizer: SmolLM2's gets the wrong end
token and no padding token, gemma's falls into twice the pieces. So both are rebuilt here from what the GGUF holds.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from selftrain.models.embedded import Embedded, ModelError
from selftrain.models.folder import quiet

NORMAL, CONTROL, USER = 1, 3, 4  # GGUF token types
IMAGE = {"<start_of_image>", "<end_of_image>"}


def convert(model: Embedded, gguf: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (bf16) and the tokenizer files of `gguf` into `folder`."""
    fields = read_fields(gguf)
    tokenizer = {"gpt2": _byte_level_tokenizer, "llama": _spm_tokenizer}[fields["tokenizer.ggml.model"]](fields)
    _save_weights(gguf, folder, tokenizer)
    tokenizer.save_pretrained(folder)
    if (tokenizer.chat_template is not None) != (model.kind == "instruct"):
        raise ModelError(
            f"{model.name}: {gguf.name} {'has a' if tokenizer.chat_template else 'has no'} chat template, unlike a model of kind {model.kind}"
        )


def read_fields(gguf: Path) -> dict[str, Any]:
    """Every metadata value of the file by its key."""
    from gguf import GGUFReader

    return {key: field.contents() for key, field in GGUFReader(gguf).fields.items()}


def _save_weights(gguf: Path, folder: Path, tokenizer: Any) -> None:
    """Dequantise through transformers, then save a clean copy: a model loaded from GGUF keeps a quantization_config and cannot be saved."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    with quiet(), redirect_stderr(io.StringIO()):  # a bar of its own that no setting turns off
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype", "torch_dtype"):
        settings.pop(key, None)
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    clean = type(loaded)(type(loaded.config).from_dict({**settings, **tokens}))
    clean.load_state_dict(loaded.state_dict())
    clean.generation_config = GenerationConfig(**tokens)
    with quiet():
        clean.to(torch.bfloat16).save_pretrained(folder)


def _byte_level_tokenizer(fields: dict[str, Any]) -> Any:
    """SmolLM2's tokenizer: byte-level BPE with single digits; no BOS is added, since the chat template writes it.

    The chat template is kept as shipped. It opens with a default system turn ("You are a helpful AI assistant named
    SmolLM, trained by Hugging Face") whenever the first message is not a system message.
    End of turn <|im_end|> (2) is the end token, <|endoftext|> (0) the padding and unknown token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    )
    template = fields["tokenizer.chat_template"]
    return _wrap(
        backend, fields["llama.context_length"], template, bos="<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", unk="<|endoftext|>"
    )


def _spm_tokenizer(fields: dict[str, Any]) -> Any:
    """Gemma's tokenizer: SentencePiece BPE written as merges, with byte fallback, no prefix space, and BOS first.

    Merges are all splits of each normal token into two tokens, ordered by the merged token's score. User-defined tokens
    (runs of newlines, spaces and tabs, HTML tags) are matched before anything else, as SentencePiece does. Checked against
    a plain SentencePiece loop: the same ids on 49 texts. The image markers, which this base model sometimes writes between
    paragraphs, are special tokens here, so that skip_special_tokens drops them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    vocab = {token: i for i, token in enumerate(tokens)}
    unk, bos = tokens[fields["tokenizer.ggml.unknown_token_id"]], tokens[fields["tokenizer.ggml.bos_token_id"]]
    merges = spm_merges(tokens, fields["tokenizer.ggml.scores"], types)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = {token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL} | IMAGE.intersection(vocab)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens if token in special])
    user = [token for token, kind in zip(tokens, types, strict=True) if kind == USER and token not in special]
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in user])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocab[bos])]
    )
    roles = {"eos": tokens[fields["tokenizer.ggml.eos_token_id"]], "pad": tokens[fields["tokenizer.ggml.padding_token_id"]]}
    return _wrap(backend, fields["gemma3.context_length"], None, bos=bos, unk=unk, **roles)


def spm_merges(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """The BPE merges that a SentencePiece vocabulary implies, best first: (left, right) with left + right a normal token."""
    ids = {token: i for i, token in enumerate(tokens) if types[i] == NORMAL}
    found = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[i], left, right))
    found.sort()
    return [(tokens[left], tokens[right]) for _, left, right in found]


def _wrap(backend: Any, length: int, template: str | None, **special: str) -> Any:
    """A transformers tokenizer around a tokenizers-library one; `length` is the model's context in tokens."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in special.items()},
    )
    wrapped.chat_template = template
    return wrapped
