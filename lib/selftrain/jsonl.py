"""JSON lines: read with line numbers, write atomically, append durably; and hashes of values and files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from selftrain.errors import InputError
from selftrain.paths import shown


def numbered(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number, object) of a JSON-lines file; InputError names the first bad line."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{shown(path)}: no such file")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{shown(path)}:{line}: not UTF-8; save the file as UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{shown(path)}:{number}: malformed JSON ({error.msg} at column {error.colno}); write one object a line"
            ) from None
        if not isinstance(row, dict):
            raise InputError(f"{shown(path)}:{number}: expected a JSON object, found {type(row).__name__}")
        yield number, row


def read(path: Path) -> list[dict]:
    """All objects of a JSON-lines file."""
    return [row for _, row in numbered(path)]


def dumps(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, UTF-8 kept; NaN refused."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def write(path: Path, rows: Iterable[dict]) -> None:
    """Write rows to a neighbouring temporary file and rename it: the file is whole or absent."""
    write_text(path, "".join(dumps(row) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def digest(value: Any, length: int = 16) -> str:
    """First `length` hex digits of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()[:length]


def file_digest(path: Path, length: int = 16) -> str:
    """First `length` hex digits of a file's sha256."""
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()[:length]
