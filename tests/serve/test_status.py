"""The status line, on a stream that says it is a terminal."""

import io
import os
import sys
import time

import pytest

from camelid.serve import status
from camelid.serve.status import StatusLine


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return 1


@pytest.fixture
def terminal(monkeypatch):
    """terminal(): standard error from here on; pytest sets its own at the beginning of a test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(status.os, "get_terminal_size", lambda _: os.terminal_size((20, 10)))

    def start():
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return start


def until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_line_comes_when_nothing_is_printed_and_goes_at_the_end(terminal):
    stream = terminal()
    with StatusLine("loading", after=0.05):
        until(lambda: "\rloading, 0 s\x1b[K" in stream.getvalue())
        print("camelid: a warning", file=sys.stderr)
        assert stream.getvalue().endswith("\r\x1b[Kcamelid: a warning\n")
        until(lambda: stream.getvalue().endswith("s\x1b[K"))
    assert stream.getvalue().endswith("s\x1b[K\r\x1b[K") and sys.stderr is stream


def test_work_that_is_done_sooner_and_work_that_prints_show_nothing(terminal):
    stream = terminal()
    with StatusLine("loading", after=0.3):
        for _ in range(10):
            time.sleep(0.05)
            print(".", end="", file=sys.stderr)
    assert stream.getvalue() == "." * 10


def test_a_long_line_is_cut_to_the_width(terminal):
    stream = terminal()
    with StatusLine("正在加载一个很大的模型", after=0):
        until(stream.getvalue)
    assert stream.getvalue().startswith("\r正在加载一个很大的 \x1b[K")


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_elsewhere_nothing_is_shown(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    with StatusLine("loading", after=0):
        time.sleep(0.1)
        assert sys.stderr is stream
    assert stream is None or stream.getvalue() == ""


def test_a_terminal_that_cannot_move_its_cursor_shows_nothing(terminal, monkeypatch):
    stream = terminal()
    monkeypatch.setenv("TERM", "dumb")
    with StatusLine("loading", after=0):
        time.sleep(0.1)
    assert stream.getvalue() == ""
