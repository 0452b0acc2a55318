"""More rows from a teacher model: asked for, checked like the audit, appended with provenance; what is there already is not asked for again."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice
from pathlib import Path

from selftrain import jsonl, paths
from selftrain.errors import InputError
from selftrain.judge.cache import Replies, replies
from selftrain.judge.calls import Call, Calls, rough_tokens
from selftrain.judge.prices import cost, price
from selftrain.judge.settings import Settings, read
from selftrain.seeds import load
from selftrain.seeds.known import Known, texts_of
from selftrain.seeds.teacher import Teacher

PLAIN = ("prompts", "openings")  # targets that are no trait
YIELD = 0.8  # share of a request's rows that is expected to be of use, until this run knows better
MOST = 3  # times the expected calls are made at most
_GAP = 64  # requests without a kept reply in a row, after which no more are looked for


@dataclass(frozen=True)
class Estimate:
    """What is still to be sent. Tokens and dollars are those of the expected calls; dollars are None without a price."""

    missing: int
    calls: int
    most_calls: int
    input_tokens: int
    output_tokens: int
    usd: float | None

    @property
    def most_usd(self) -> float | None:
        return None if self.usd is None or not self.calls else self.usd * self.most_calls / self.calls


@dataclass
class Outcome:
    """What came of it: rows added, rows dropped by reason, replies that could not be read, reasons of calls that failed."""

    added: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    malformed: int = 0
    failed: list[str] = field(default_factory=list)


class Generation:
    """Bringing one file to n rows of a target (a trait, `prompts` or `openings`). InputError for what cannot work, before anything is sent."""

    def __init__(self, target: str, n: int, kind: str | None = None, out: Path | None = None, max_usd: float | None = None):
        if target not in (*load.TRAITS, *PLAIN):
            raise InputError(f"unknown trait {target!r}; use one of {', '.join(load.TRAITS)}, or prompts, or openings")
        if target in PLAIN and kind:
            raise InputError(f"--kind is for traits; {target} have none")
        if kind not in (None, "chat", "documents"):
            raise InputError(f"unknown kind {kind!r}; use chat or documents")
        if not 1 <= n <= 100_000:
            raise InputError(f"--n {n}: between 1 and 100000 rows can be asked for")
        if max_usd is not None and not 0 <= max_usd < math.inf:
            raise InputError(f"--max-usd {max_usd:g} is not an amount of dollars")
        self.target, self.kind, self.n = target, kind or "chat", n
        self.out = Path(out) if out else load.generated_file(target, self.kind)
        self._check_out()
        found = read(role="teacher", timeout=180)
        caps = [cap for cap in (max_usd, found.max_usd) if cap is not None]
        self.settings: Settings = replace(found, max_usd=min(caps, default=None))
        self.teacher = Teacher(self.settings.model, target, self.kind)
        self.outcome = Outcome()
        self._known = Known(target, self.kind)
        self._rows = self._present()

    def _check_out(self) -> None:
        inside = self.out.resolve().is_relative_to(paths.SEEDS.resolve())
        if self.out.suffix != ".jsonl":
            raise InputError(f"--out {paths.shown(self.out)}: give it a name that ends in .jsonl")
        if inside and not self.out.name.startswith("generated"):
            raise InputError(
                f"--out {paths.shown(self.out)}: hand-written files keep their counts; under seeds/ use a name that starts with 'generated'"
            )
        if self.out.is_dir() or not self.out.resolve().parent.is_dir():
            raise InputError(f"--out {paths.shown(self.out)}: no such folder")

    def _present(self) -> list[dict]:
        """Rows of the file, checked; they and those of the target's usual file are known from here on."""
        usual = load.generated_file(self.target, self.kind)
        for path in {usual, self.out} - ({usual} if self.target in PLAIN else set()):  # load.prompts has read it
            if path.exists():
                for row in jsonl.read(path):
                    self._check_row(row, path)
                    self._known.take(texts_of(row))
        return jsonl.read(self.out) if self.out.exists() else []

    def _check_row(self, row: dict, path: Path) -> None:
        wanted = {"chat": "messages", "documents": "text", "prompts": "prompt", "openings": "opening"}[self.teacher.name]
        if wanted not in row or not isinstance(row.get("id"), str):
            raise InputError(f"{paths.shown(path)}: holds rows that are not of {self.target} {self.teacher.name}; give another --out")

    # ---- before anything is sent

    @property
    def folder(self) -> Path:
        """Where the replies for this file are kept."""
        return paths.ROOT / ".cache" / "teacher" / f"{self.target}-{self.kind}-{jsonl.digest(str(self.out.resolve()), 6)}"

    @property
    def replies(self) -> Replies:
        """The kept replies."""
        return replies(self.folder, self.settings.model)

    @property
    def missing(self) -> int:
        """Rows still to come."""
        return max(0, self.n - len(self._rows))

    def estimate(self) -> Estimate:
        """Calls, tokens and dollars of what is missing; retries come on top."""
        calls = math.ceil(self.missing / (self.teacher.form.rows * YIELD))
        tokens = calls * rough_tokens(self.teacher.request(0)), calls * self.teacher.output_tokens
        of = price(self.settings.model, "teacher")
        return Estimate(self.missing, calls, MOST * calls, *tokens, cost(tokens, of) if of else None)

    def check_cap(self) -> None:
        """InputError where the estimate is over the spending cap, or a cap has no price to go by."""
        Calls(self.settings, self.replies, _one)
        needed, cap = self.estimate(), self.settings.max_usd
        if cap is not None and needed.usd is not None and needed.usd > cap:
            raise InputError(
                f"about ${needed.usd:.4f} is needed for {needed.missing} rows, over the cap of ${cap:g}; lower --n or raise --max-usd"
            )

    def recover(self) -> int:
        """Rows added from replies that an interrupted run had paid for. Nothing is sent."""
        if not self.missing:
            return 0
        store, found, without = self.replies, [], 0
        store.refresh()
        used = self._used()
        for number in count():
            bodies = store.get(self.teacher.key(number, self.settings.endpoint))
            without = 0 if bodies or number in used else without + 1
            if without > _GAP:
                break
            found += [(row, number) for row in (self.teacher.rows(bodies[-1], number) or ())] if bodies else []
        present = {jsonl.dumps(texts_of(row)) for row in self._rows}
        with self._alone():
            return self._append([(row, number) for row, number in found if jsonl.dumps(texts_of(row)) not in present])

    # ---- sending

    def run(self, progress: Callable[[int, int], None] = lambda done, of: None) -> Outcome:
        """Ask until the file has n rows, the teacher brings nothing new, or MOST times the expected calls are made. `progress(rows, n)`.

        InputError where going on is of no use (key, model, money); rows that came are in the file by then.
        """
        most, asked = self.estimate().most_calls, 0
        with self._alone():
            while self.missing and asked < most:
                share = max(0.1, self.outcome.added / (asked * self.teacher.form.rows)) if asked else YIELD
                numbers = self._fresh(min(most - asked, math.ceil(self.missing / (self.teacher.form.rows * share))))
                before = len(self._rows)
                failed = self._round(numbers, progress)
                asked += len(numbers)
                self.outcome.failed += failed
                if len(self._rows) == before and (failed or asked > 2):
                    break
        return self.outcome

    def _round(self, numbers: list[int], progress: Callable[[int, int], None]) -> list[str]:
        store = self.replies
        by_key = {self.teacher.key(number, self.settings.endpoint): number for number in numbers}
        calls = {k: Call("rows", None, partial(self.teacher.request, i), self.teacher.output_tokens) for k, i in by_key.items()}

        def settled(key: str) -> None:
            if bodies := store.get(key):
                rows = self.teacher.rows(bodies[-1], by_key[key])
                self.outcome.malformed += rows is None
                self._append([(row, by_key[key]) for row in rows or ()])
                progress(len(self._rows), self.n)

        return list(Calls(self.settings, store, _one).run(calls, settled).values())

    def _used(self) -> set[int]:
        return {row["provenance"].get("request") for row in self._rows if isinstance(row.get("provenance"), dict)}

    def _fresh(self, n: int) -> list[int]:
        """Numbers of the next requests that neither the file nor the kept replies know."""
        used = self._used()
        free = (i for i in count() if i not in used and not self.replies.get(self.teacher.key(i, self.settings.endpoint)))
        return list(islice(free, n))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """InputError while another process appends to the same file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{paths.shown(self.out)}: another process is generating rows for it") from None
            yield

    def _append(self, found: list[tuple[dict, int]]) -> int:
        """Append what passes every check, up to n rows in the file; how many. One write, on the disk when this returns."""
        taken, today, first = [], datetime.now(UTC).date().isoformat(), self._last_id() + 1
        for place in range(0, len(found), 200):
            some = found[place : place + 200]
            for (row, number), reason in zip(some, self._known.sift([texts_of(row) for row, _ in some]), strict=True):
                if reason:
                    self.outcome.dropped[reason] += 1
                elif len(taken) < self.missing:
                    provenance = {"teacher": self.settings.model, "date": today, "request": number}
                    taken.append({"id": self._id(first + len(taken)), **row, "provenance": provenance})
        if taken:
            whole = not self.out.exists() or self.out.read_bytes()[-1:] in (b"", b"\n")
            text = ("" if whole else "\n") + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in taken)
            with open(self.out, "ab") as target:
                target.write(text.encode())
                target.flush()
                os.fsync(target.fileno())
        self._rows += taken
        self.outcome.added += len(taken)
        return len(taken)

    def _last_id(self) -> int:
        return max((int(n[0]) for row in self._rows if (n := re.findall(r"(\d+)$", row["id"]))), default=0)

    def _id(self, number: int) -> str:
        name = {"chat": "gen", "documents": "gen-doc"}.get(self.teacher.name, "gen")
        return f"{self.target.removesuffix('s') if self.target in PLAIN else self.target}-{name}-{number:05d}"


def _one(bodies: list[str]) -> list[str] | None:
    """A teacher's reply counts as it comes: one is enough."""
    return bodies or None
