"""Listening: addresses that cannot be listened on, and the end of a server after a signal."""

import asyncio
import re
import signal
import socket
import threading
import time

import httpx
import pytest
from fastapi import FastAPI

from camelid.errors import UserError
from camelid.serve.listen import Listener, bind, listen, say_ready


class Door:
    draining, busy = False, False


@pytest.fixture
def running():
    """running(drain_seconds): a listener whose answers take 0.5 s, or 60 at /long; its door, thread and address."""
    app, door = FastAPI(), Door()

    @app.get("/{name}")
    async def wait(name):
        door.busy = True
        await asyncio.sleep(60 if name == "long" else 0.5)
        door.busy = False
        return name

    def run(drain_seconds):
        bound = bind("127.0.0.1", 0)
        listen(bound)
        listener = Listener(app, door, drain_seconds)
        thread = threading.Thread(target=listener.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        return listener, door, thread, f"http://127.0.0.1:{bound.getsockname()[1]}"

    return run


def ask(url, found):
    try:
        found.append(httpx.get(url, timeout=90).status_code)
    except httpx.HTTPError as error:
        found.append(error)


def begin(url, door):
    """The list that gets the status of a request that is being answered, and its thread."""
    found = []
    asking = threading.Thread(target=ask, args=(url, found))
    asking.start()
    until = time.monotonic() + 10
    while not door.busy:
        assert time.monotonic() < until
        time.sleep(0.01)
    return found, asking


def test_answers_are_completed_after_a_signal(running):
    listener, door, thread, url = running(30)
    found, asking = begin(f"{url}/short", door)
    listener.handle_exit(signal.SIGTERM, None)
    assert door.draining and not listener.should_exit
    asking.join(10)
    thread.join(10)
    assert found == [200] and not thread.is_alive()


@pytest.mark.parametrize(("seconds", "signals"), [(0.3, 1), (60, 2)])
def test_answers_that_take_too_long_are_cut_off_and_all_are_by_a_second_signal(running, seconds, signals):
    listener, door, thread, url = running(seconds)
    found, asking = begin(f"{url}/long", door)
    start = time.monotonic()
    for _ in range(signals):
        listener.handle_exit(signal.SIGTERM, None)
    asking.join(10)
    thread.join(10)
    assert found == [503] and time.monotonic() - start < 4


def test_an_address_that_is_taken_is_told_in_one_line(capsys):
    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        listen(bound)
        say_ready(bound)
        assert capsys.readouterr().err == f"ready: http://127.0.0.1:{port}\n"
        with pytest.raises(UserError, match=f"--host=127.0.0.1 --port={port} cannot be listened on: Address already"):
            bind("127.0.0.1", port)
    for host in ("no.such.host", "a" * 70, "10.255.255.1"):
        with pytest.raises(UserError, match=f"--host={re.escape(host)} --port=1 cannot be listened on"):
            bind(host, 1)


def test_clients_are_refused_until_a_server_listens_and_of_two_that_wait_for_an_address_the_second_is_told():
    with bind("127.0.0.1", 0) as bound:
        address = bound.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        with bind(*address) as second:  # while none listens
            listen(bound)
            socket.create_connection(address, timeout=5).close()
            with pytest.raises(UserError, match=f"--port={address[1]} cannot be listened on: Address already in use"):
                listen(second)
