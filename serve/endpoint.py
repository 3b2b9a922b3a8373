"""Asks an endpoint of OpenAI's protocol many things: at a bounded rate, again where that helps, and journalled."""

import asyncio
import contextlib
import email.utils
import json
import os
import queue
import random
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import httpx

from ..errors import UserError, shown
from .journal import Journal, Reply, Request, key_of, tokens_of
from .speakers import KEY

LONGEST_BACKOFF = 60.0
"""The most seconds between two attempts, unless the endpoint asks for more."""

LONGEST_RETRY_AFTER = 600.0
"""An endpoint that asks to wait for more seconds is not waited for."""

LARGEST_BODY = 2**25
"""The most bytes of a response, also after it is unpacked."""

TEMPORARY = {408, 409, 425, 429} | set(range(500, 600))
"""Statuses after which a request is sent again."""

UNPAID = {408, 409, 425, 429, 503}
"""Temporary statuses with which an endpoint says that it did not begin to answer."""

SPENT = {"insufficient_quota", "billing_hard_limit_reached"}
"""Codes of errors with status 429 that waiting does not mend."""

EMPTY = {"context_length_exceeded": "length", "content_filter": "content_filter"}
"""Codes of errors that concern one request alone: it has an empty reply, with this finish reason."""


@dataclass(frozen=True)
class Limits:
    """How an endpoint is asked."""

    concurrency: int = 8
    """The most requests that wait for their replies at a time."""

    requests_per_minute: int | None = None
    """The most attempts that begin within any 60 seconds; None: no limit."""

    tokens_per_minute: int | None = None
    """The most tokens of attempts that begin within any 60 seconds, prompts and answers; None: no limit. Until a reply
    says how many tokens it took, they are estimated: a third of the prompt's bytes, and the limit of the answer."""

    retries: int = 8
    """The most attempts after the first one."""

    seconds: float = 600.0
    """How long a reply may take."""

    backoff: float = 1.0
    """Seconds before the second attempt, on average 0.75 times as long; each further wait is twice as long."""


class Endpoint:
    """Answers requests through `POST .../chat/completions`, and prompts through `.../completions`. It is an `Asker`.

        with Journal("replies.journal") as journal:
            replies = Endpoint("https://api.example.com/v1", "large", journal=journal).ask(requests)

    Args:
      address: of the endpoint. One without a version at its end gets /v1; one that ends in /chat/completions is taken
        as it is.
      name: the model to ask; None takes the first that the endpoint lists.
      journal: where requests and replies are kept.
      key: the key that the endpoint asks for, or None.
      limits: how it is asked.
      report: called with the number of replies so far and of requests whenever a reply has come.

    Raises:
      UserError: the address or the key is none, `name` is empty, or it is None and the endpoint lists no model.
    """

    def __init__(
        self,
        address: str,
        name: str | None,
        *,
        journal: Journal,
        key: str | None = None,
        limits: Limits = Limits(),
        report: Callable[[int, int], None] = lambda done, all: None,
    ):
        self.address, self._url = address, url_of(address)
        path = httpx.URL(self._url).path.removesuffix("/chat/completions")
        self._prompts_url = str(httpx.URL(self._url).copy_with(path=f"{path}/completions"))
        self._journal, self._limits, self._report = journal, limits, report
        if key is not None and not re.fullmatch("[!-~]+", key):
            raise UserError(
                "the endpoint's key has other characters than ASCII letters, digits and signs: set it again"
            )
        if name == "":
            raise UserError("the model of an endpoint has an empty name: give its name, or none for the first one")
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip"}
        self._headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self.name = _run(self._first_model) if name is None else name
        self._request_rate, self._token_rate = _Rate(limits.requests_per_minute), _Rate(limits.tokens_per_minute)
        self._paused_until = 0.0

    def key(self, request: Request) -> str:
        """The key of a request in the journal."""
        return key_of(self.name, request)

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies to requests, in their order. Those in the journal are not asked for again.

        Temporary failures are waited out: a full endpoint (429, with its Retry-After), errors of the server (5xx), lost
        connections, time-outs, and replies of a successful status that are none. After a permanent one (such as 400,
        401 or 404) no further request is sent; what has been sent is waited for and kept. A prompt that is too long for
        the model, or is refused for its content, has an empty reply that says so in its finish reason.

        Raises:
          UserError: some requests could not be answered. The replies of the others are in the journal.
        """
        keys = [self.key(request) for request in requests]
        open_ = {k: r for k, r in zip(keys, requests, strict=True) if self._journal.reply(k) is None}
        if open_:
            self._done, self._all = len(set(keys)) - len(open_), len(set(keys))
            _run(lambda: self._ask_all(open_))
        return [self._journal.reply(key) for key in keys]

    async def _ask_all(self, requests: Mapping[str, Request]) -> None:
        """Asks until each request has its reply. Raises UserError if some have none."""
        self._gate, self._stopped, self._problem, self._failed_in_row = asyncio.Lock(), asyncio.Event(), None, 0
        waiting, unanswered = iter(requests.items()), []
        async with _client(self._limits.seconds) as client:

            async def work() -> None:
                for key, request in waiting:
                    if self._stopped.is_set():
                        return
                    if problem := await self._ask_one(client, key, request):
                        unanswered.append(problem)

            await asyncio.gather(*(work() for _ in range(min(self._limits.concurrency, len(requests)))))
        if self._problem or unanswered:
            kept = f"{self._done:,} of {self._all:,} requests have their replies, which are kept"
            problem = self._problem or f"{len(unanswered):,} requests were given up, the last one: {unanswered[-1]}"
            raise UserError(f"{self.address}: {problem}; {kept}: the same command asks for the rest")

    async def _ask_one(self, client: httpx.AsyncClient, key: str, request: Request) -> str | None:
        """Asks until a request has its reply, or all attempts have failed; then the reason of the last failure."""
        body = request.body(self.name)
        content = json.dumps(body).encode()
        if request.prompt is None:
            url, asked = self._url, body["messages"][-1]["content"]
            estimate = len(json.dumps(body["messages"], ensure_ascii=False).encode(errors="replace")) // 3
        else:
            url, asked, estimate = self._prompts_url, body["prompt"], len(body["prompt"])
        estimate += tokens_of(body.get("max_tokens")) or tokens_of(body.get("max_completion_tokens")) or 0
        for attempt in range(self._limits.retries + 1):
            taken = await self._turn(estimate)
            if self._stopped.is_set():
                return None
            self._journal.ask({key: body})
            try:
                reply = reply_of(await self._fetch(client, "POST", url, self._limits.seconds, content))
            except _Failure as failure:
                if failure.empty is not None:
                    self._keep(key, failure.empty)
                    return None
                why = f"{failure} (asked: {shown(asked)})"
                self._journal.fail(key, str(failure), paid=failure.paid)
                if failure.permanent or (failure.retry_after or 0) > LONGEST_RETRY_AFTER:
                    self._stop(why)
                    return None
                await self._wait(failure, attempt)
            else:
                if None not in (reply.prompt_tokens, reply.completion_tokens):
                    taken[1] = reply.prompt_tokens + reply.completion_tokens
                self._keep(key, reply)
                return None
        self._failed_in_row += 1
        if self._failed_in_row >= max(self._limits.concurrency, 2):  # the endpoint is down
            self._stop(why)
        return why

    def _keep(self, key: str, reply: Reply) -> None:
        self._journal.answer({key: reply})
        self._done, self._failed_in_row = self._done + 1, 0
        self._report(self._done, self._all)

    def _stop(self, problem: str) -> None:
        """Ends the sending of requests because of a problem; the first one is told."""
        self._problem = self._problem or problem
        self._stopped.set()

    async def _turn(self, tokens: int) -> list[float]:
        """Waits until the rates allow an attempt. Returns its entry in the rate of tokens: [time, tokens]."""
        async with self._gate:  # first come, first served
            while not self._stopped.is_set():
                now = time.monotonic()
                rates = self._request_rate.wait(now, 1), self._token_rate.wait(now, tokens)
                if (wait := max(self._paused_until - now, *rates)) <= 0:
                    break
                await self._sleep(wait)
            now = time.monotonic()
            self._request_rate.take(now, 1)
            return self._token_rate.take(now, tokens)

    async def _wait(self, failure: "_Failure", attempt: int) -> None:
        """Waits before the next attempt; what the endpoint asks to wait holds for all requests."""
        if failure.retry_after is not None:
            self._paused_until = max(self._paused_until, time.monotonic() + failure.retry_after)
        if attempt < self._limits.retries:
            await self._sleep(min(self._limits.backoff * 2**attempt, LONGEST_BACKOFF) * random.uniform(0.5, 1))

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    async def _fetch(
        self, client: httpx.AsyncClient, method: str, url: str, seconds: float, content: bytes | None = None
    ) -> bytes:
        """The body of the response to one attempt within so many seconds. Raises _Failure."""
        try:
            asked = client.stream(method, url, content=content, headers=self._headers)
            async with asyncio.timeout(seconds), asked as response:
                body = await _body_of(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Failure(f"it cannot be reached ({_reason(error)})", paid=False) from None
        except (TimeoutError, httpx.TimeoutException):
            raise _Failure(f"there was no reply within {seconds:g} seconds") from None
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            raise _Failure(f"the request cannot be sent ({_reason(error)})", permanent=True, paid=False) from None
        except (httpx.HTTPError, AttributeError, RuntimeError) as error:
            # anyio raises the last two for a connection that is reset just after it was made
            raise _Failure(f"the connection was lost ({_reason(error)})") from None
        if not response.is_success:
            raise _refusal(response, body)
        return body

    async def _first_model(self) -> str:
        """The first model that the endpoint lists."""
        url = self._url.removesuffix("/chat/completions") + "/models"
        try:
            async with _client(60.0) as client:
                body = await self._fetch(client, "GET", url, 60.0)
        except _Failure as failure:
            raise UserError(f"{self.address}: {failure}") from None
        try:
            name = json.loads(body)["data"][0]["id"]
        except (ValueError, LookupError, TypeError, RecursionError):
            name = None
        if not isinstance(name, str) or not name or not name.isprintable():
            raise UserError(f"{url} lists no model that can be named: give the model's name")
        return name


def key_for(address: str) -> str | None:
    """The key for an endpoint in the environment: CAMELID_API_KEY, or for OpenAI's own endpoint OPENAI_API_KEY."""
    own = httpx.URL(url_of(address)).host == "api.openai.com"
    return os.environ.get(KEY) or (os.environ.get("OPENAI_API_KEY") if own else None) or None


def url_of(address: str) -> str:
    """The URL to which requests are sent. Raises UserError if the address is none."""
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535:
        raise UserError(f"{address} is no address of an endpoint: give one as in https://api.example.com/v1")
    path = url.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if re.search(r"/v\d+\w*(/openai)?$", path) else "/v1/chat/completions"
    return str(url.copy_with(path=path))


def reply_of(content: bytes) -> Reply:
    """The reply in the body of a response with a successful status. Raises _Failure if there is none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _Failure(f"it sent {_line(content.decode(errors='replace'), 60)!r}, which is no reply")
    if error := found.get("error"):
        raise _error_in(error, 200)
    choices = found.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and isinstance(choice.get("text"), str):
        message = {"content": choice["text"]}  # of a prompt
    if not isinstance(message, dict) or choice.get("finish_reason") == "error":
        raise _Failure("it sent a reply without an answer")
    usage = found["usage"] if isinstance(found.get("usage"), dict) else {}
    return Reply(
        text=_text(message.get("content")) or _text(message.get("refusal")),
        finish_reason=_line(_text(choice.get("finish_reason")), 60),
        prompt_tokens=tokens_of(usage.get("prompt_tokens")),
        completion_tokens=tokens_of(usage.get("completion_tokens")),
        model=_line(_text(found.get("model"))),
    )


def _client(seconds: float) -> httpx.AsyncClient:
    timeout = httpx.Timeout(seconds, connect=min(seconds, 20.0), pool=None)
    return httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(max_connections=None))


async def _body_of(response: httpx.Response) -> bytes:
    """The body of a response, unpacked. Raises _Failure if it is too large or cannot be unpacked."""
    packed = bytearray()
    async for piece in response.aiter_raw():
        packed += piece
        if len(packed) > LARGEST_BODY:
            break
    encoding, body = response.headers.get("Content-Encoding", "identity").strip().lower(), bytes(packed)
    if encoding in ("gzip", "x-gzip", "deflate"):
        try:
            body = zlib.decompressobj(wbits=47).decompress(packed, LARGEST_BODY + 1)  # 47: with either header
        except zlib.error as error:
            raise _Failure(f"it sent a body that cannot be unpacked ({error})") from None
    elif encoding not in ("", "identity"):
        raise _Failure(f"it sent a body packed by {_line(encoding, 60)}, which was not asked for")
    if max(len(packed), len(body)) > LARGEST_BODY:
        raise _Failure(f"it sent a body of more than {LARGEST_BODY:,} bytes")
    return body


def _run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """The result of work, which runs in an event loop in a thread of its own.

    An event loop may run in this thread already, as in a notebook. And a signal, which raises its exception in the main
    thread, cannot break into a task: it cancels the work, and is raised when that has ended.
    """
    cancel: Future[Callable[[], None]] = Future()
    outcome: list[Future[Any]] = []
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    async def main() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(task.cancel)

        cancel.set_result(stop)
        return await work()

    def run() -> None:
        result: Future[Any] = Future()
        try:
            result.set_result(asyncio.run(main()))
        except BaseException as error:
            result.set_exception(error)
        outcome.append(result)
        ended.put(None)

    def wait() -> None:
        while not outcome:  # a signal that the system gave to another thread is seen after 0.2 seconds, too
            with contextlib.suppress(queue.Empty):
                ended.get(timeout=0.2)  # Thread.join and Future.result are not safe from exceptions of signals

    thread = threading.Thread(target=run)
    try:
        thread.start()
        wait()
    except BaseException:
        cancel.add_done_callback(lambda ready: ready.result()())  # at once, or as soon as the work has begun
        if thread.is_alive():
            wait()
        raise
    return outcome[0].result()


class _Failure(Exception):
    """An attempt without a reply.

    Attributes:
      permanent: whether a further attempt would fail too.
      paid: whether the model may have answered.
      empty: the reply of a request that cannot have another one, or None.
      retry_after: the seconds that the endpoint asks to wait, or None.
    """

    def __init__(self, why: str, *, permanent: bool = False, paid: bool = True, empty: Reply | None = None):
        super().__init__(why)
        self.permanent, self.paid, self.empty = permanent, paid, empty
        self.retry_after: float | None = None


class _Rate:
    """Lets at most `most` units begin within any 60 seconds; None: no limit."""

    def __init__(self, most: int | None):
        self._most, self._taken = most, deque()

    def wait(self, now: float, amount: int) -> float:
        """Seconds until so many units may begin. More than `most` wait until none is left of 60 seconds."""
        while self._taken and self._taken[0][0] <= now - 60:
            self._taken.popleft()
        if self._most is None:
            return 0.0
        over = sum(units for _, units in self._taken) + min(amount, self._most) - self._most
        for begun, units in self._taken:
            if over <= 0:
                break
            over -= units
            if over <= 0:
                return begun + 60 - now
        return 0.0

    def take(self, now: float, amount: int) -> list[float]:
        """Lets units begin. The number in the returned entry, [time, units], may be mended later."""
        entry = [now, amount]
        if self._most is not None:
            self._taken.append(entry)
        return entry


def _refusal(response: httpx.Response, body: bytes) -> _Failure:
    """The failure that a response whose status is no success tells."""
    status, retry_after = response.status_code, _seconds(response.headers.get("Retry-After"))
    try:
        found = json.loads(body)
        error = found.get("error", found) if isinstance(found, dict) else found
    except (ValueError, RecursionError):
        error = body.decode(errors="replace") or response.reason_phrase
    if response.is_redirect:
        error = f"it has moved to {_line(response.headers.get('Location', ''))}: give that address"
    failure = _error_in(error, status)
    failure.retry_after = retry_after
    if retry_after is not None and retry_after > LONGEST_RETRY_AFTER:
        failure.args = (f"{failure}; it asks to wait {retry_after:,.0f} seconds",)
    return failure


def _error_in(error: Any, status: int) -> _Failure:
    """The failure that an error object of OpenAI's protocol tells. One with status 200 may have another in its code."""
    fields = error if isinstance(error, dict) else {"message": error}
    paid = status == 200 or (status >= 500 and status not in UNPAID)
    if status == 200 and re.fullmatch("[1-5][0-9]{2}", str(fields.get("code"))):
        status = int(fields["code"])
    why = f"it refused ({status}): {_line(fields.get('message') or error)}"
    if status == 401:
        why += "; check the key in the environment"
    permanent = status not in TEMPORARY | {200} or {str(fields.get("code")), str(fields.get("type"))} & SPENT
    reason = EMPTY.get(str(fields.get("code")))
    empty = None if reason is None else Reply("", reason, 0, 0)
    return _Failure(why, permanent=bool(permanent), paid=paid, empty=empty)


def _seconds(retry_after: str | None) -> float | None:
    """The seconds of a Retry-After, a number or a date; None if it is neither."""
    if retry_after is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(retry_after)
        return seconds if 0 <= seconds < float("inf") else None
    with contextlib.suppress(ValueError, OverflowError):
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    return None


def _text(found: Any) -> str:
    """A text, the texts of a list of parts, or "" for anything else."""
    if isinstance(found, list):
        found = "".join(part["text"] for part in found if isinstance(part, dict) and isinstance(part.get("text"), str))
    return found if isinstance(found, str) else ""


def _reason(error: Exception) -> str:
    return _line(str(error) or type(error).__name__)


def _line(found: Any, most: int = 300) -> str:
    """The beginning of what an endpoint sent, on one line and without control characters."""
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str)
    line = " ".join(text[: 4 * most].split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)[:most]
