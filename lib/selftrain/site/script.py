"""Data as JavaScript files: a page opened from a file URL may load scripts, but may not fetch JSON."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# Valid inside JSON, but lost, altered or invisible on some way to the page: C1 controls, line separators, lone surrogates, byte order mark.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")


def literal(value: Any) -> str:
    """A value as a JavaScript literal, keys in given order, UTF-8 kept; safe inside a script element too. NaN is refused."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text).replace("</", "<\\/").replace("<!--", "<\\u0021--")


def number(value: Any, digits: int = 1) -> float | int | None:
    """A rounded number, whole ones as int; None where it is missing."""
    if value is None or not math.isfinite(value := float(value)):
        return None
    value = round(value, digits)
    return int(value) if value == int(value) else value


def file_name(name: str) -> str:
    """A name that is safe in a path and in a URL: what is not a letter, digit, dot, dash or underscore becomes ~ and its code."""
    return re.sub(r"[^A-Za-z0-9._-]|^\.", lambda found: f"~{ord(found.group()):x}", name)
