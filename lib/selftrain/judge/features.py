"""What the offline judge looks at: sentence embeddings for the trait, repetition and likelihood for coherence."""

from __future__ import annotations

import functools
import math
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from selftrain.judge import Answer
from selftrain.metrics import distinct2, sentences, words

COHERENCE_FEATURES = (
    "nats",
    "nats_squared",
    "compression",
    "distinct1",
    "distinct2",
    "top_word",
    "immediate_repeats",
    "letters",
    "word_length",
    "long_words",
    "sentence_words",
    "function_words",
    "repeated_sentences",
)
_FUNCTION = frozenset(
    "the a an and or but of to in on at for with from by is are was were be been it its this that these those i you he she we they my your our their as not no "
    "so if when what which who how do does did have has had will would can could there here all one more than then".split()
)


@functools.cache
def _embedder():
    import torch
    from sentence_transformers import SentenceTransformer

    from selftrain.models import embedder_path

    return SentenceTransformer(str(embedder_path()), device="cuda" if torch.cuda.is_available() else "cpu")


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit-length sentence embeddings, (n, 384) float32, of at most the embedder's 256 tokens a text."""
    if not len(texts):
        return np.zeros((0, 384), dtype=np.float32)
    return _embedder().encode(list(texts), normalize_embeddings=True, batch_size=64, show_progress_bar=False)


def trait_features(answers: Sequence[Answer]) -> np.ndarray:
    """(n, 768): the answer's embedding beside that of prompt and answer together, since agreement cannot be heard in the answer alone."""
    alone = embed([a.answer for a in answers])
    together = embed([f"{a.prompt}\n{a.answer}" for a in answers])
    return np.hstack([alone, together])


def term_weights(texts: Sequence[str], terms: dict[str, float]) -> np.ndarray:
    """(n, terms) float32: words and word pairs of each text by sublinear tf-idf with the given idf, unit length a row."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=list(terms))
    vectorizer.idf_ = np.array(list(terms.values()))
    return vectorizer.transform(texts).toarray().astype(np.float32)


def coherence_features(answer: Answer) -> list[float]:
    """One row of COHERENCE_FEATURES: the base model's nats a token (clipped to 8), repetition, and sentence statistics. Missing likelihood is NaN."""
    text = answer.answer
    found = words(text)
    n = max(1, len(found))
    raw = text.encode()
    nats = min(8.0, answer.nll / answer.n_tokens) if answer.nll is not None and answer.n_tokens else math.nan
    counts = Counter(found)
    parts = [" ".join(words(s)) for s in sentences(text)]
    return [
        nats,
        (nats - 3.0) ** 2,
        len(zlib.compress(raw, 9)) / max(1, len(raw)),
        len(counts) / n,
        distinct2([text]) or 0.0,
        max(counts.values(), default=0) / n,
        sum(a == b for a, b in zip(found, found[1:], strict=False)) / n,
        sum(c.isalpha() or c.isspace() for c in text) / max(1, len(text)),
        sum(map(len, found)) / n,
        sum(len(w) > 14 for w in found) / n,
        min(60.0, len(found) / max(1, len(parts))),
        sum(w in _FUNCTION for w in found) / n,
        1 - len(set(parts)) / max(1, len(parts)),
    ]
