"""A terminal whose typing is hidden: its settings in the block, and on every way out of it."""

import contextlib
import os
import pty
import select
import signal
import termios

import pytest

from camelid.serve.keyboard import hidden_typing


@pytest.fixture
def ends():
    """The end of a terminal at which somebody types, and the stream of its other end."""
    typed, other = pty.openpty()
    with open(other, "w") as stream:
        yield typed, stream
    os.close(typed)


def echoes(stream):
    return bool(termios.tcgetattr(stream)[3] & termios.ECHO)


def test_keys_are_not_shown_and_are_kept_for_the_next_reader(ends):
    typed, stream = ends
    before = termios.tcgetattr(stream)
    with hidden_typing(stream):
        assert termios.tcgetattr(stream)[3] & termios.ISIG
        os.write(typed, "你好\x7f\r\x1b\r".encode())
        assert os.read(stream.fileno(), 99).decode() == "你好\x7f\r\x1b\r"
        os.write(typed, b"kept")
        assert select.select([stream], [], [], 20)[0]  # the terminal has taken it
    assert termios.tcgetattr(stream) == before and not select.select([typed], [], [], 0.1)[0]
    assert os.read(stream.fileno(), 99) == b"kept"


class Ended(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, Ended, SystemExit])
def test_the_terminal_is_as_before_after_an_exception(error, ends):
    before = termios.tcgetattr(ends[1])
    with pytest.raises(error), hidden_typing(ends[1]):
        raise error
    assert termios.tcgetattr(ends[1]) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_handler_that_may_end_the_process_finds_the_terminal_as_before(number, ends):
    found = []

    def handler(*_):
        found.append(termios.tcgetattr(ends[1]))
        raise Ended

    before, old = termios.tcgetattr(ends[1]), signal.signal(number, handler)
    try:
        with hidden_typing(ends[1]):
            with contextlib.suppress(Ended):
                os.kill(os.getpid(), number)
            assert found == [before] and not echoes(ends[1])  # an answer may be stopped, and the chat goes on
        assert signal.getsignal(number) is handler and termios.tcgetattr(ends[1]) == before
    finally:
        signal.signal(number, old)


def test_typing_is_hidden_again_after_the_process_was_stopped(ends):
    with hidden_typing(ends[1]):
        settings = termios.tcgetattr(ends[1])
        settings[3] |= termios.ECHO
        termios.tcsetattr(ends[1], termios.TCSANOW, settings)
        os.kill(os.getpid(), signal.SIGCONT)
        assert not echoes(ends[1])
    assert signal.getsignal(signal.SIGCONT) is signal.SIG_DFL and echoes(ends[1])


def test_a_terminal_that_is_gone_ends_the_block_as_usual():
    typed, other = pty.openpty()
    with open(other, "w") as stream, hidden_typing(stream):
        os.close(typed)
