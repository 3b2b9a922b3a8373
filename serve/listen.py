"""Listens for HTTP requests with uvicorn until a signal ends the server, after the answers that have begun.

Standard error gets a line for each request, without its text.
"""

import logging
import socket
import sys
import threading
import time
from types import FrameType

import uvicorn

from ..errors import UserError
from .api import Server, log, make_app


def listen(server: Server, host: str, port: int, drain_seconds: float) -> None:
    """Serves until SIGTERM or Ctrl-C, then until the answers that have begun are complete.

    Args:
      server: the server.
      host: the address to listen on.
      port: the port; 0 for any that is free.
      drain_seconds: how long answers may take after the signal; a second signal ends at once.

    Raises UserError if the address cannot be listened on.
    """
    bound = bind(host, port)
    told = logging.StreamHandler()
    told.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(told)
    log.setLevel(logging.INFO)
    log.propagate = False
    config = uvicorn.Config(make_app(server), log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    _Drained(config, server, drain_seconds).run(sockets=[bound])


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens, of which a line tells. Raises UserError if the address cannot be listened on."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"--host={host} --port={port} cannot be listened on: {error.strerror or error}") from None
    print(f"ready: http://{host}:{bound.getsockname()[1]}", file=sys.stderr, flush=True)
    return bound


class _Drained(uvicorn.Server):
    """A uvicorn server that refuses new requests after a signal, and ends once all answers are complete."""

    def __init__(self, config: uvicorn.Config, server: Server, seconds: float):
        super().__init__(config)
        self._server, self._seconds = server, seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to drain; a second signal ends the server at once."""
        if self._server.draining:
            self.should_exit = self.force_exit = True
            return
        self._server.draining = True
        print("camelid: ending after the answers that have begun (again: at once)", file=sys.stderr, flush=True)
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        until, engines = time.monotonic() + self._seconds, [served.engine for served in self._server.served.values()]
        while time.monotonic() < until and any(engine.running or engine.waiting for engine in engines):
            time.sleep(0.05)
        time.sleep(0.2)  # the last events are being sent
        self.should_exit = True
