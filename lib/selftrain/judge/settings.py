"""Which endpoint an API judge speaks to, and how patiently: everything from the environment, the key never kept."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from selftrain import jsonl
from selftrain.errors import InputError

MODEL = "gpt-4o-mini-2024-07-18"
OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Settings:
    """Times in seconds. `attempts` calls are made for one reply, the waits between them doubling from `delay` up to `longest_wait`.

    `max_usd` caps what one model may take of a study, earlier runs included.
    """

    model: str = MODEL
    base_url: str = OPENAI
    concurrency: int = 16
    timeout: float = 60.0
    attempts: int = 8
    delay: float = 1.0
    longest_wait: float = 120.0
    max_usd: float | None = None

    @property
    def endpoint(self) -> str:
        """Digest of the address; addresses can be private."""
        return jsonl.digest(self.base_url)


def read(model: str | None = None) -> Settings:
    """Settings from the environment.

    JUDGE_MODEL, JUDGE_BASE_URL (else OPENAI_BASE_URL), JUDGE_CONCURRENCY, JUDGE_TIMEOUT, JUDGE_ATTEMPTS, JUDGE_RETRY_DELAY, JUDGE_MAX_USD.
    """
    env = os.environ.get
    base = (env("JUDGE_BASE_URL") or env("OPENAI_BASE_URL") or OPENAI).strip().rstrip("/")
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("JUDGE_BASE_URL (or OPENAI_BASE_URL) is not an http(s) address, such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise InputError(
            "JUDGE_BASE_URL (or OPENAI_BASE_URL) carries a user, password or query; leave it bare and put the key into JUDGE_API_KEY"
        )
    cap = env("JUDGE_MAX_USD")
    return Settings(
        model or env("JUDGE_MODEL") or MODEL,
        base,
        int(_number("JUDGE_CONCURRENCY", 16, 1, 512)),
        _number("JUDGE_TIMEOUT", 60, 0.01),
        int(_number("JUDGE_ATTEMPTS", 8, 1, 100)),
        _number("JUDGE_RETRY_DELAY", 1, 0),
        max_usd=_number("JUDGE_MAX_USD", 0, 0) if cap else None,
    )


def _number(name: str, default: float, least: float, most: float = math.inf) -> float:
    given = os.environ.get(name) or str(default)
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not least <= value <= most or math.isinf(value):
        raise InputError(f"{name}={given!r} is not a number of at least {least:g}" + (f" and at most {most:g}" if most < math.inf else ""))
    return value


def api_key() -> str:
    """JUDGE_API_KEY, else OPENAI_API_KEY; read where a client is made and kept nowhere else."""
    for name in ("JUDGE_API_KEY", "OPENAI_API_KEY"):
        key = os.environ.get(name, "").strip()
        if key:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(f"{name} holds a space, a line break or a character that no key has; copy it again")
            return key
    raise InputError("no API key: set JUDGE_API_KEY or OPENAI_API_KEY (any word, for a server of your own that asks for none)")


def redacted(text: str) -> str:
    """A text without the key, should an endpoint have echoed it."""
    for name in ("JUDGE_API_KEY", "OPENAI_API_KEY"):
        key = os.environ.get(name, "").strip()
        if len(key) >= 8:
            text = text.replace(key, "[key]")
    return text
