"""Which endpoint a judge or a teacher speaks to, and how patiently: everything from the environment, the key never kept."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from selftrain import jsonl
from selftrain.errors import InputError

MODEL = "gpt-4o-mini-2024-07-18"
OPENAI = "https://api.openai.com/v1"
ROLES = ("judge", "teacher")  # each has variables of its own, JUDGE_* and TEACHER_*


@dataclass(frozen=True)
class Settings:
    """Times in seconds. `attempts` calls are made for one reply, the waits between them doubling from `delay` up to `longest_wait`.

    `max_usd` caps what one model may take of a study (a judge) or of a file (a teacher), earlier runs included.
    """

    model: str = MODEL
    base_url: str = OPENAI
    concurrency: int = 16
    timeout: float = 60.0
    attempts: int = 8
    delay: float = 1.0
    longest_wait: float = 120.0
    max_usd: float | None = None
    role: str = "judge"

    @property
    def endpoint(self) -> str:
        """Digest of the address; addresses can be private."""
        return jsonl.digest(self.base_url)


def read(model: str | None = None, role: str = "judge", timeout: float = 60) -> Settings:
    """Settings from the environment, here with a judge's names.

    JUDGE_MODEL, JUDGE_BASE_URL (else OPENAI_BASE_URL), JUDGE_CONCURRENCY, JUDGE_TIMEOUT, JUDGE_ATTEMPTS, JUDGE_RETRY_DELAY, JUDGE_MAX_USD.
    """
    env, mine = os.environ.get, role.upper()
    base = (env(f"{mine}_BASE_URL") or env("OPENAI_BASE_URL") or OPENAI).strip().rstrip("/")
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{mine}_BASE_URL (or OPENAI_BASE_URL) is not an http(s) address, such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise InputError(
            f"{mine}_BASE_URL (or OPENAI_BASE_URL) carries a user, password or query; leave it bare and put the key into {mine}_API_KEY"
        )
    cap = env(f"{mine}_MAX_USD")
    return Settings(
        model or env(f"{mine}_MODEL") or MODEL,
        base,
        int(_number(f"{mine}_CONCURRENCY", 16, 1, 512)),
        _number(f"{mine}_TIMEOUT", timeout, 0.01),
        int(_number(f"{mine}_ATTEMPTS", 8, 1, 100)),
        _number(f"{mine}_RETRY_DELAY", 1, 0),
        max_usd=_number(f"{mine}_MAX_USD", 0, 0) if cap else None,
        role=role,
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


def api_key(role: str = "judge") -> str:
    """JUDGE_API_KEY (of a teacher, TEACHER_API_KEY), else OPENAI_API_KEY; read where a client is made and kept nowhere else."""
    own = f"{role.upper()}_API_KEY"
    for name in (own, "OPENAI_API_KEY"):
        key = os.environ.get(name, "").strip()
        if key:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(f"{name} holds a space, a line break or a character that no key has; copy it again")
            return key
    raise InputError(f"no API key: set {own} or OPENAI_API_KEY (any word, for a server of your own that asks for none)")


def redacted(text: str) -> str:
    """A text without the keys, should an endpoint have echoed one."""
    for name in (*(f"{role.upper()}_API_KEY" for role in ROLES), "OPENAI_API_KEY"):
        key = os.environ.get(name, "").strip()
        if len(key) >= 8:
            text = text.replace(key, "[key]")
    return text
