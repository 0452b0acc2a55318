"""Raw replies, kept for good: append-only JSON lines that any number of processes share, found again by what was asked."""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selftrain import jsonl, paths
from selftrain.errors import InputError

_BLOCK = 1 << 26
_open: dict[tuple[str, str], Replies] = {}
_opening = threading.Lock()


def folder_of(study: Path | None) -> Path:
    """Where a study's replies lie, results/<study>/judge_cache; .cache/judge where no study is known."""
    return Path(study) / "judge_cache" if study else paths.ROOT / ".cache" / "judge"


def replies(folder: Path, model: str) -> Replies:
    """The replies in a folder, one object a process: locks of the operating system belong to the process, not to the object."""
    key = (str(Path(folder).resolve()), model)
    with _opening:
        if key not in _open:
            _open[key] = Replies(Path(folder), model)
        return _open[key]


class Replies:
    """All *.jsonl of a folder are read, committed ones among them; new replies go to <model>.jsonl.

    A line is {key, question, trait, model, tokens: [input, output], at, body}. Memory holds where each reply lies, not the reply.
    A line that a killed process left unfinished is passed over.
    """

    def __init__(self, folder: Path, model: str):
        self.folder, self.path = folder, folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', model)}.jsonl"
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        for fd in getattr(self, "_files", {}).values():
            os.close(fd)
        self._files: dict[Path, int] = {}
        self._read: Counter[Path] = Counter()
        self._places: dict[str, list[tuple[Path, int, int]]] = defaultdict(list)
        self._claimed: set[str] = set()
        self._tokens: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._writable = False

    # ---- reading

    def _file(self, path: Path) -> int:
        """One descriptor a file, never closed: closing any would drop this process's locks on it."""
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[path]

    def refresh(self) -> None:
        """Take in what was appended since, by this process or another."""
        with self._lock:
            if any(
                not p.exists() or os.stat(p).st_ino != os.fstat(fd).st_ino or os.fstat(fd).st_size < self._read[p]
                for p, fd in self._files.items()
            ):
                self._forget()  # deleted or replaced under us
            for path in sorted(self.folder.glob("*.jsonl")):
                fd = self._file(path)
                while (
                    end := (data := os.pread(fd, _BLOCK, self._read[path])).rfind(b"\n") + 1
                ):  # what follows is a line that is being written
                    self._take(path, data[:end])
                    self._read[path] += end

    def _take(self, path: Path, data: bytes) -> None:
        at = self._read[path]
        for line in data.split(b"\n")[:-1]:
            try:
                row = json.loads(line)
                self._places[row["key"]].append((path, at, len(line)))
                for i, n in enumerate(row["tokens"] or ()):
                    self._tokens[row["model"]][i] += n
            except (ValueError, KeyError, TypeError, IndexError):
                pass
            at += len(line) + 1

    def get(self, key: str) -> list[str]:
        """Bodies of the replies to what the key names, oldest first."""
        with self._lock:
            return [json.loads(os.pread(self._file(path), length, at))["body"] for path, at, length in self._places.get(key, ())]

    def tokens(self, model: str) -> tuple[int, int]:
        """(input, output) tokens of all replies of a model in this folder."""
        with self._lock:
            return tuple(self._tokens.get(model, (0, 0)))

    # ---- writing

    def _own(self) -> int:
        """Descriptor of the file that this process appends to."""
        if not self._writable:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise InputError(
                    f"{paths.shown(self.path)}: cannot be written ({error.strerror}); replies that are paid for must be kept"
                ) from None
            old, self._files[self.path], self._writable = self._files.get(self.path), fd, True
            if old is not None:
                os.close(old)
        return self._files[self.path]

    def put(self, key: str, *, question: str, trait: str | None, model: str, tokens: tuple[int, int], body: str) -> None:
        """Append one reply as one whole line, then take it in."""
        row: dict[str, Any] = {
            "key": key,
            "question": question,
            "trait": trait,
            "model": model,
            "tokens": list(tokens),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "body": body,
        }
        line = (jsonl.dumps(row) + "\n").encode()
        with self._lock:
            fd = self._own()
            _lock(fd, fcntl.LOCK_EX, 0)
            try:
                size = os.fstat(fd).st_size
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    line = b"\n" + line  # somebody was killed in the middle of a line
                if os.write(fd, line) != len(line):
                    raise InputError(f"{paths.shown(self.path)}: the disk is full")
            finally:
                _lock(fd, fcntl.LOCK_UN, 0)
            self.refresh()

    # ---- asking once

    def claim(self, key: str) -> bool:
        """Take the right to ask for a key; False while another process or thread has it. A killed process loses its claims."""
        with self._lock:
            if key in self._claimed or not _lock(self._own(), fcntl.LOCK_EX | fcntl.LOCK_NB, _offset(key)):
                return False
            self._claimed.add(key)
            self.refresh()
            return True

    def release(self, key: str) -> None:
        """Give the right back."""
        with self._lock:
            if key in self._claimed:
                self._claimed.discard(key)
                _lock(self._own(), fcntl.LOCK_UN, _offset(key))


def _offset(key: str) -> int:
    """A byte of the file far beyond its end that stands for a key; byte 0 stands for appending."""
    return (1 << 40) + int(key[:15], 16)


def _lock(fd: int, how: int, offset: int) -> bool:
    """Lock or unlock one byte; False where another process holds it. A file system without locks lets everybody through."""
    try:
        fcntl.lockf(fd, how, 1, offset)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True
