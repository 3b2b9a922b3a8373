"""Listens for HTTP requests with uvicorn until a signal ends the server, after the answers that have begun."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import UserError
from .protocol import ApiError


class Door(Protocol):
    """What lets requests in.

    Attributes:
      draining: whether new requests are refused.
      busy: whether answers are being written.
    """

    draining: bool

    @property
    def busy(self) -> bool: ...


class Listener(uvicorn.Server):
    """A uvicorn server that after SIGTERM, SIGHUP or Ctrl-C refuses new requests, completes its answers, and ends.

    Args:
      app: the application.
      door: what lets requests in.
      drain_seconds: how long answers may take after the signal; a second signal ends at once.
    """

    def __init__(self, app: ASGIApp, door: Door, drain_seconds: float):
        app = _CutOff(app)
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
        self._door, self._seconds = door, drain_seconds

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal. Of SIGHUP uvicorn knows nothing, and what its handler raises is lost in uvloop."""
        inside = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGHUP)
        hears = inside and before not in (signal.SIG_IGN, None)
        if hears:
            signal.signal(signal.SIGHUP, self.handle_exit)
        try:
            await super().serve(sockets)
        finally:
            if hears:
                signal.signal(signal.SIGHUP, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to drain; a second signal ends the server at once."""
        if self._door.draining:
            return self._cut_off()
        self._door.draining = True
        say("camelid: ending after the answers that have begun (again: at once)")
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        until = time.monotonic() + self._seconds
        while self._door.busy:
            if time.monotonic() >= until:
                return self._cut_off()
            time.sleep(0.05)
        time.sleep(0.2)  # the last events are being sent
        self.should_exit = True

    def _cut_off(self) -> None:
        """Ends the server whatever it is doing."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # else a traceback for each answer
        self.config.timeout_graceful_shutdown = 0
        self.should_exit = self.force_exit = True


class Noted:
    """The `send` of an application, which notes whether its answer has begun.

    Attributes:
      begun: whether it has.
    """

    def __init__(self, send: Send):
        self._send, self.begun = send, False

    async def __call__(self, message: Message) -> None:
        self.begun = True
        await self._send(message)


class _CutOff:
    """The application, of which requests get status 503 if they are cut off before their answer has begun."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        noted = Noted(send)
        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if noted.begun or scope["type"] != "http":
                raise
            error = ApiError(503, "the server has ended before the answer was complete", code="draining")
            await JSONResponse(error.body(), error.status, {"Retry-After": "1"})(scope, receive, send)


async def until_left(request: Request) -> None:
    """Waits until the client of a request leaves. The request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def bind(host: str, port: int) -> socket.socket:
    """A socket that has an address, on which nobody can connect until `listen`; port 0 is any that is free.

    Raises UserError if the address cannot be had.
    """
    inside_6 = ":" in host
    bound = socket.socket(socket.AF_INET6 if inside_6 else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else none for a minute after a server has ended
        if inside_6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except (OSError, UnicodeError) as error:
        bound.close()
        raise _refused(host, port, error) from None
    return bound


def listen(bound: socket.socket) -> None:
    """Lets clients connect. Raises UserError if another server with the same address did so since `bind`."""
    try:
        bound.listen(2048)
    except OSError as error:
        raise _refused(*bound.getsockname()[:2], error) from None


def _refused(host: str, port: int, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"--host={host} --port={port} cannot be listened on: {reason}")


def say_ready(bound: socket.socket) -> None:
    """Prints the address of a server that takes requests."""
    host, port = bound.getsockname()[:2]
    say(f"ready: http://{f'[{host}]' if ':' in host else host}:{port}")


def say(line: str) -> None:
    """Prints a line on standard error; without a reader it is lost, and the server goes on."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def log_requests(log: logging.Logger) -> None:
    """Prints the log of a server on standard error: a line for each request, without its text."""
    told = logging.StreamHandler()
    told.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(told)
    log.setLevel(logging.INFO)
    log.propagate = False
