"""A teacher on loopback, over real HTTP: rows of invented words, each reply with the faults that a test asks for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from judge_server import KEY, JudgeServer, _Handler

SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu".split()


def words(n: int, seed: object) -> list[str]:
    """n words of three syllables; different seeds share next to none."""
    draw = random.Random(str(seed))
    return ["".join(draw.choices(SYLLABLES, k=3)) for _ in range(n)]


def row_of(fields: list[str], n: int) -> dict[str, str]:
    """The server's n-th row, fit for its fields."""
    lengths = {"user": 9, "answer": 24, "form": 1, "text": 110, "prompt": 10, "opening": 9}
    return {f: " ".join(words(lengths[f], (f, n))) + ("" if f in ("form", "opening") else ".") for f in fields}


class TeacherServer(JudgeServer):
    """`plan(n, rows)` returns the content of the n-th reply (from 0): a list of rows, or text as it is; or the name of a fault of the wire."""

    def __init__(self, plan: Callable[[int, list[dict]], list | str] = lambda n, rows: rows, size: int | None = None):
        super().__init__()
        self.plan, self.size, self.made = plan, size, 0

    @property
    def asked(self) -> int:
        return len(self.seen)


class _Teacher(_Handler):
    def _answer(self, server: TeacherServer, body: dict) -> None:
        schema = body["response_format"]["json_schema"]
        fields = schema["schema"]["properties"]["rows"]["items"]["required"]
        assert schema["strict"] and set(fields) <= {"user", "answer", "form", "text", "prompt", "opening"}
        size = server.size or int(body["messages"][1]["content"].split("Write ")[1].split()[0])
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with server.lock:
            n = len(server.seen)
            server.seen.append(body)
            rows = [row_of(fields, server.made + i) for i in range(size)]
            server.made += size
        if given != KEY:
            return self._error(401, f"Incorrect API key provided: {given}", "invalid_api_key")
        content = server.plan(n, rows)
        if content in ("time_out", "dropped", "truncated_body"):
            return self._break_off(content)
        if isinstance(content, str) and content.startswith("http_"):
            return self._error(int(content[5:]), f"server error for {given}", "server_error")
        if content == "no_money":
            return self._error(429, f"You exceeded your quota, {given}", "insufficient_quota")
        text = content if isinstance(content, str) else json.dumps({"rows": content})
        message = {"role": "assistant", "content": text, "refusal": None}
        usage = {"prompt_tokens": sum(len(m["content"]) for m in body["messages"]) // 4, "completion_tokens": len(text) // 4}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        self._send(200, {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice], "usage": usage})


TeacherServer.handler = _Teacher
