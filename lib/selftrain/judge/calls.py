"""Paid calls: many at once, each retried where that helps, each reply kept before it is read, none asked for twice."""

from __future__ import annotations

import asyncio
import queue
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from selftrain.errors import InputError
from selftrain.judge.cache import Replies
from selftrain.judge.prices import cost, price
from selftrain.judge.replies import completion, one_line, usage, verdict
from selftrain.judge.settings import Settings, api_key, redacted

RETRIED = {408, 409, 425, 429}  # and every 5xx
NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
NO_MODEL = {"model_not_found", "invalid_model"}
IN_A_ROW = 40  # failed calls without a reply between them, after which the endpoint is taken to be down
OUTPUT_TOKENS = 16


@dataclass(frozen=True)
class Call:
    """One question about one text: what the reply is kept under, and how the body of the request is made."""

    question: str
    trait: str | None
    request: Callable[[], dict[str, Any]]
    output_tokens: int = OUTPUT_TOKENS  # what a reply may take, for the spending cap


class Failed(Exception):
    """A call that brought no reply; its text is the reason."""


def rough_tokens(request: dict[str, Any]) -> int:
    """Input tokens of a request: four characters each, and the schema and message frame."""
    return sum(len(m["content"]) for m in request["messages"]) // 4 + 80


class Calls:
    """Asks for replies, each until `enough` of what is kept for it is not None.

    `run` may be called from anywhere, also where an event loop runs already: the work has a thread of its own.
    """

    def __init__(self, settings: Settings, store: Replies, enough: Callable[[Sequence[str]], Any] = verdict):
        self.settings, self.store, self.enough = settings, store, enough
        self._role, self._env = settings.role, settings.role.upper()
        self._price = price(settings.model, settings.role)
        if settings.max_usd is not None and self._price is None:
            raise InputError(
                f"a spending cap needs a price for {settings.model}: set {self._env}_PRICE=input,output in dollars per million tokens"
            )
        self._failed: dict[str, str] = {}
        self._in_a_row = self._answered = 0
        self._reserved = 0.0
        self._fatal: str | None = None
        self._halt: asyncio.Event | None = None

    def run(self, calls: dict[str, Call], settled: Callable[[str], None]) -> dict[str, str]:
        """Make the calls; reasons of those that failed, by key. `settled(key)` is called in the caller's thread.

        InputError where going on is of no use: a bad key, an unknown model, no money left, the spending cap. Replies under way are kept.
        """
        api_key(self._role)  # a missing key is said here, in one line
        outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        thread = threading.Thread(target=self._in_thread, args=(calls, outbox), name=self._role, daemon=True)
        thread.start()
        try:
            while not isinstance(item := outbox.get(), (BaseException, type(None))):
                settled(item)
        except BaseException:  # interrupted: what is under way is paid for, so it is waited for
            if self._halt is not None:
                self._loop.call_soon_threadsafe(self._halt.set)
                thread.join(self.settings.timeout)
            raise
        thread.join()
        if item is not None:
            raise item
        if self._fatal:
            raise InputError(self._fatal)
        return self._failed

    def _in_thread(self, calls: dict[str, Call], outbox: queue.SimpleQueue) -> None:
        try:
            asyncio.run(self._all(calls, outbox))
            outbox.put(None)
        except BaseException as error:
            outbox.put(error.with_traceback(None))

    async def _all(self, calls: dict[str, Call], outbox: queue.SimpleQueue) -> None:
        import openai

        self._loop, self._halt, self._not_before = asyncio.get_running_loop(), asyncio.Event(), 0.0
        todo = deque(calls.items())
        async with openai.AsyncOpenAI(
            api_key=api_key(self._role), base_url=self.settings.base_url, timeout=self.settings.timeout, max_retries=0
        ) as client:
            await asyncio.gather(*(self._worker(client, todo, outbox) for _ in range(min(self.settings.concurrency, len(todo)))))

    async def _worker(self, client: Any, todo: deque, outbox: queue.SimpleQueue) -> None:
        while todo and not self._halt.is_set():
            key, call = todo.popleft()
            if not self.store.claim(key):  # another process is asking just this
                todo.append((key, call))
                await asyncio.sleep(0.02)
                continue
            try:
                while self.enough(self.store.get(key)) is None:
                    await self._reply(client, key, call)
            except Failed as failure:
                self._failed[key] = str(failure)
            except InputError as error:
                self._fatal = str(error)
                self._halt.set()
            finally:
                self.store.release(key)
            outbox.put(key)

    async def _reply(self, client: Any, key: str, call: Call) -> None:
        """One reply into the store, after as many attempts as it takes. Failed where none came."""
        if self._in_a_row >= IN_A_ROW:
            raise Failed(f"not asked: {IN_A_ROW} calls failed in a row")
        request = call.request()
        rough = rough_tokens(request), call.output_tokens
        held = cost(rough, self._price) if self._price else 0.0
        self._check_cap(held)
        self._reserved += held
        try:
            body = await self._attempts(client, request)
            self._in_a_row, self._answered = 0, self._answered + 1
            self.store.put(
                key, question=call.question, trait=call.trait, model=self.settings.model, tokens=usage(body) or rough, body=redacted(body)
            )
        except Failed:
            self._in_a_row += 1
            raise
        finally:
            self._reserved -= held

    def _check_cap(self, held: float) -> None:
        cap = self.settings.max_usd
        if cap is None:
            return
        spent = cost(self.store.tokens(self.settings.model), self._price)
        if spent + self._reserved + held > cap:
            raise InputError(
                f"the spending cap of ${cap:g} is reached: {self.settings.model} has taken ${spent:.4f} of this "
                f"{'study' if self._role == 'judge' else 'file'}; replies are kept, raise the cap ({self._env}_MAX_USD) to go on"
            )

    async def _attempts(self, client: Any, request: dict[str, Any]) -> str:
        reason = ""
        for attempt in range(self.settings.attempts):
            await self._rest(self._not_before - self._loop.time())
            body, reason, wait = await self._once(client, request)
            if body is not None:
                return body
            if wait is not None:
                if wait > self.settings.longest_wait:
                    raise Failed(f"{reason}; asked to wait {wait:.0f} s")
                self._not_before = max(self._not_before, self._loop.time() + wait)  # a limit is the account's, so all wait
            if attempt + 1 < self.settings.attempts:
                await self._rest(min(self.settings.longest_wait, self.settings.delay * 2**attempt) * random.uniform(0.5, 1.5))
        raise Failed(f"{reason} ({self.settings.attempts} attempts)")

    async def _rest(self, seconds: float) -> None:
        """Wait, unless everything stops."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._halt.wait(), seconds)
            except TimeoutError:
                pass
        if self._halt.is_set():
            raise Failed("stopped")

    async def _once(self, client: Any, request: dict[str, Any]) -> tuple[str | None, str, float | None]:
        """(body, reason, seconds to wait): a body, or a fault that another attempt may mend. Failed or InputError for the others."""
        import openai

        try:
            async with asyncio.timeout(self.settings.timeout):
                raw = await client.chat.completions.with_raw_response.create(**request)
            body = raw.http_response.text
            return (body, "", None) if completion(body) else (None, "the reply's body is not a chat completion", None)
        except openai.APIStatusError as error:
            self._stop_if_hopeless(error.status_code, {str(error.code), str(error.type)})
            reason = f"HTTP {error.status_code}"
            if error.status_code < 500 and error.status_code not in RETRIED:
                raise Failed(f"{reason}: {one_line(redacted(error.message))}") from None
            return None, reason, retry_after(error.response.headers)
        except (openai.APITimeoutError, TimeoutError):
            return None, "timed out", None
        except openai.APIConnectionError:
            return None, "connection lost", None

    def _stop_if_hopeless(self, status: int, codes: set[str]) -> None:
        """InputError for what no retry mends. The endpoint's own words stay out: they can quote the key."""
        model, role, env = self.settings.model, self._role, self._env
        if status == 401:
            raise InputError(f"the {role}'s endpoint refused the API key (HTTP 401): check {env}_API_KEY or OPENAI_API_KEY")
        if status == 402 or codes & NO_MONEY:
            raise InputError(f"the {role}'s account has no money or quota left (HTTP {status}): top it up and run again; replies are kept")
        if status == 404 or codes & NO_MODEL:
            raise InputError(f"the {role}'s endpoint knows no model {model!r} (HTTP {status}): check {env}_MODEL and {env}_BASE_URL")
        if status == 403 and not self._answered:
            raise InputError(
                f"the {role}'s endpoint gives this key no access to {model!r} (HTTP 403): check the key's rights and {env}_BASE_URL"
            )


def retry_after(headers: Any) -> float | None:
    """Seconds that a reply asks to wait: retry-after-ms, or Retry-After in seconds or as a date; None without either."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        given = headers.get("retry-after")
        if given is None:
            return None
        try:
            return max(0.0, float(given))
        except ValueError:
            from datetime import UTC, datetime

            return max(0.0, (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
