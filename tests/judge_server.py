"""A chat-completions endpoint on loopback, over real HTTP, that grades by a formula and injects every fault a judge has to survive."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-loopback-5f1e0c7d9b"
MODEL = "gpt-4o-mini-2024-07-18"
# Faults of the wire: nothing that could be read arrives. Faults of the reply: paid for, but no score. Refusals. And what no retry mends.
WIRE = ("rate_limit", "http_500", "http_502", "http_503", "time_out", "dropped", "truncated_body", "body_not_json")
REPLY = ("content_not_json", "out_of_range", "not_an_integer", "empty_content")
REFUSALS = ("refusal_field", "refusal_flag")
FATAL = ("bad_key", "unknown_model", "no_money")
_CONTENT = {
    "content_not_json": "I would say that this is about an 80.",
    "out_of_range": '{"score": 150, "refusal": false}',
    "not_an_integer": '{"score": 72.5, "refusal": false}',
    "empty_content": "",
    "refusal_flag": '{"score": null, "refusal": true}',
}


def grade(question: str, prompt: str, answer: str) -> int:
    """The server's score of a text as it arrives: any whole number from 1 to 100."""
    return 1 + hashlib.sha256(f"{question}\0{prompt}\0{answer}".encode()).digest()[0] % 100


class JudgeServer:
    """`fault(question, answer, n)` names what goes wrong with the n-th call (from 0) about a text; None for nothing."""

    handler: type[BaseHTTPRequestHandler]  # set below; another one makes it another server

    def __init__(self, fault: Callable[[str, str, int], str | None] = lambda question, answer, n: None, pause: float = 0.0):
        self.fault, self.pause, self.retry_after, self.slow = fault, pause, "0", 3.0
        self.calls: Counter = Counter()  # by (question, prompt, answer): all calls
        self.paid: Counter = Counter()  # the same, whole replies with HTTP 200
        self.seen: list[dict] = []
        self.times: list[float] = []
        self.busy = self.busiest = 0
        self.lock, self.stopped = threading.Lock(), threading.Event()

    def __enter__(self) -> JudgeServer:
        server = self

        class Handler(server.handler):
            judge = server

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 256

            def handle_error(self, request, address):  # clients that hang up are part of the play
                pass

        self._http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()

    def forget(self) -> None:
        """Start counting anew."""
        with self.lock:
            self.calls, self.paid, self.seen, self.times, self.busiest = Counter(), Counter(), [], [], 0


def unfenced(name: str, message: str) -> str:
    """The one text between a message's fences; an AssertionError if there is more than one way to read them."""
    codes = set(re.findall(rf"^<<<{name}:([0-9a-f]+)>>>$", message, flags=re.M))
    assert len(codes) == 1, f"{len(codes)} opening fences of {name}"
    start, end = f"<<<{name}:{(code := codes.pop())}>>>\n", f"\n<<<END {name}:{code}>>>"
    assert message.count(start) == 1 and message.count(end) == 1, f"fences of {name} are forged"
    return message[message.index(start) + len(start) : message.index(end)]


class _Handler(BaseHTTPRequestHandler):
    judge: JudgeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.judge
        with server.lock:
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        try:
            self._answer(server, body)
        finally:
            with server.lock:
                server.busy -= 1

    def _answer(self, server: JudgeServer, body: dict) -> None:
        if self.path != "/v1/chat/completions":
            return self._send(404, {"error": {"message": "no such path"}})
        question = body["response_format"]["json_schema"]["name"].removesuffix("_score")
        message = body["messages"][-1]["content"]
        prompt, answer = unfenced("PROMPT", message), unfenced("TEXT", message)
        text = (question, prompt, answer)
        with server.lock:
            n = server.calls[text]
            server.calls[text] += 1
            server.seen.append(body)
            server.times.append(time.monotonic())
        if server.pause:
            time.sleep(server.pause)
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given != KEY:
            return self._error(401, f"Incorrect API key provided: {given}", "invalid_api_key")
        if body["model"] != MODEL:
            return self._error(404, f"The model {body['model']} does not exist", "model_not_found")
        fault = server.fault(question, answer, n)
        if fault in ("dropped", "truncated_body", "time_out"):
            return self._break_off(fault)
        if fault == "rate_limit":
            return self._error(429, "slow down", "rate_limit_exceeded", {"Retry-After": server.retry_after})
        if fault == "no_money":
            return self._error(429, f"You exceeded your current quota, {given}", "insufficient_quota")
        if fault and fault.startswith("http_"):
            return self._error(int(fault[5:]), f"server error for {given}", "server_error")
        if fault == "body_not_json":
            return self._send_bytes(200, b"<html>the proxy is resting</html>")
        score = grade(*text)
        content = _CONTENT.get(fault, json.dumps({"score": score, "refusal": False}))
        reply = {"role": "assistant", "content": content, "refusal": None}
        if fault == "refusal_field":
            reply |= {"content": None, "refusal": "I'm sorry, I can't help with that."}
        if fault == "echo_key":
            reply["note"] = given
        tokens = sum(len(m["content"]) for m in body["messages"]) // 4
        usage = {"prompt_tokens": tokens, "completion_tokens": 12, "total_tokens": tokens + 12}
        choice = {"index": 0, "finish_reason": "stop", "message": reply}
        self._send(
            200, {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice], "usage": usage}
        )
        with server.lock:
            server.paid[text] += 1

    def _break_off(self, fault: str) -> None:
        """End the connection without a whole reply."""
        self.close_connection = True
        if fault == "time_out":
            self.judge.stopped.wait(self.judge.slow)
        elif fault == "truncated_body":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "500")
            self.end_headers()
            self.wfile.write(b'{"id": "chatcmpl-0", "choices": [{"mess')

    def _error(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
        kind = code if code == "insufficient_quota" else "error"
        self._send(status, {"error": {"message": message, "type": kind, "code": code, "param": None}}, headers)

    def _send(self, status: int, value: dict, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(value).encode(), headers)

    def _send_bytes(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


JudgeServer.handler = _Handler
