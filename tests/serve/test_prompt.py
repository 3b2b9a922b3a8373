"""The prompt of the chat, typed to through prompt_toolkit's own input; and the whole chat on a terminal."""

import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import termios
import time

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from camelid.serve.prompt import make_prompt

UP, ALT_ENTER, LEFT = "\x1b[A", "\x1b\r", "\x1b[D"


@pytest.fixture
def typed(tmp_path):
    """typed(text): what the prompt returns for it, with a history that goes on from one call to the next."""

    def ask(text, history=tmp_path / "cache" / "history", commands=()):
        with create_pipe_input() as pipe:
            pipe.send_text(text)
            return make_prompt(history, commands, input=pipe, output=DummyOutput())("> ")

    return ask


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\r", "hello"),
        ("你好，世界\r", "你好，世界"),
        (f"你们{LEFT}\x7f我\r", "我们"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("a \\ b\r", "a \\ b"),
        (f"one\\{LEFT}\r", "one\\"),
        (f"one{ALT_ENTER}two{ALT_ENTER}{ALT_ENTER}four\r", "one\ntwo\n\nfour"),
        ("\x1b[200~def f():\r\n\treturn 1\n\x1b[201~\r", "def f():\n\treturn 1\n"),
        ("wrong\x03right\r", "right"),
        ("/re\t\r", "/regen"),
    ],
)
def test_what_is_typed_is_the_message(text, message, typed):
    assert typed(text, commands=["/regen", "/save"]) == message


def test_ctrl_d_and_ctrl_c_on_an_empty_line_end(typed):
    with pytest.raises(EOFError):
        typed("\x04")
    with pytest.raises(KeyboardInterrupt):
        typed("gone\x03\x03")


def test_earlier_messages_are_recalled_in_a_later_chat(typed, tmp_path):
    typed("first 一\r")
    typed(f"second{ALT_ENTER}line\r")
    assert typed(f"{UP}\r") == "second\nline"
    assert typed(f"{UP}{UP}{UP}\r") == "first 一"
    assert stat.S_IMODE((tmp_path / "cache" / "history").stat().st_mode) == 0o600


def test_a_history_that_cannot_be_kept_does_not_end_the_chat(typed, tmp_path):
    (tmp_path / "file").write_text("")
    assert typed("hello\r", tmp_path / "file" / "history") == "hello"
    assert typed("hello\r", tmp_path) == "hello"


def test_a_message_that_is_not_utf_8_is_not_kept(typed, tmp_path):
    with create_pipe_input() as pipe:
        pipe.send_bytes(b"caf\xe9\r")
        assert make_prompt(tmp_path / "history", input=pipe, output=DummyOutput())("> ") == "caf\udce9"
    assert typed("next\r", tmp_path / "history") == "next"
    assert re.findall("(?m)^[+](.*)$", (tmp_path / "history").read_text()) == ["next"]


CHAT = """
import sys, time
from camelid.launch.commands import models
from camelid.launch.cli import main
from camelid.serve import speakers

class Speaker:
    waiting, tokens = "compiling, once", 9
    def __init__(self, *arguments):
        pass
    def stream(self, messages, **settings):
        time.sleep(0.3)
        said = messages[-1]["content"]
        for piece in (f"**{said}**", "，好。", "\\n\\nSecond ", "[b]\\x1b[8m<i>"):
            yield piece
        while said == "endless":
            time.sleep(0.05)
            yield "."

speakers.ServerSpeaker = Speaker
sys.exit(main(["chat", "http://nowhere"]))
"""


class Terminal:
    """The chat as a process on a terminal of its own."""

    def __init__(self, home):
        self.file, other_end = pty.openpty()
        changed = {"HOME": str(home), "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "80"}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), other_end)
        self.process = subprocess.Popen([sys.executable, "-c", CHAT], env=os.environ | changed, **streams)
        os.close(other_end)
        self.shown, self._seen = "", 0

    def wait_for(self, text, seconds=60.0):
        """Reads what is shown up to `text`, and returns it."""
        until, data = time.monotonic() + seconds, self.shown.encode()
        while (at := self.shown.find(text, self._seen)) < 0:
            assert time.monotonic() < until, self.shown[self._seen :]
            if select.select([self.file], [], [], 1)[0]:
                data += os.read(self.file, 2**16)
                self.shown = data.decode(errors="ignore")
        said, self._seen = self.shown[self._seen : at], at + len(text)
        return said

    def type(self, text):
        os.write(self.file, text.encode(errors="surrogateescape"))


PROMPT = "\x1b[?2004h"  # a terminal is told to mark what is pasted


@pytest.fixture
def terminal(tmp_path):
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.process.kill()


def test_a_chat_on_a_terminal_shows_markdown_and_stops_an_answer_at_ctrl_c(terminal):
    terminal.wait_for(PROMPT)
    terminal.type("你好\r")
    terminal.wait_for("compiling, once, 0 s")
    answer = terminal.wait_for("9 tokens")
    assert "\x1b[1m你好\x1b[0m，好。" in answer and "Second [b]\N{REPLACEMENT CHARACTER}[8m<i>" in answer
    assert "compiling" not in answer[answer.index("好。") :] and "\x1b[8m" not in answer
    terminal.wait_for(PROMPT)
    terminal.type("endless\r")
    terminal.wait_for("...")
    terminal.process.send_signal(signal.SIGINT)  # what a terminal does at Ctrl-C while nobody reads keys
    terminal.wait_for(", stopped")
    terminal.wait_for(PROMPT)
    terminal.type(UP)
    terminal.wait_for("endless")
    terminal.type("\x03\x04")
    assert terminal.process.wait(60) == 0


def test_a_signal_at_the_prompt_ends_the_chat_with_the_terminal_as_it_was(terminal):
    before = termios.tcgetattr(terminal.file)
    terminal.wait_for(PROMPT)
    terminal.type("caf\udce9\r")
    terminal.wait_for("the message is not in UTF-8: type it again")
    terminal.wait_for(PROMPT)
    assert termios.tcgetattr(terminal.file) != before
    terminal.process.send_signal(signal.SIGTERM)
    terminal.wait_for("camelid: ended by SIGTERM")
    assert terminal.process.wait(60) == 143 and termios.tcgetattr(terminal.file) == before


def test_what_is_typed_while_an_answer_is_written_is_shown_at_the_next_prompt_alone(terminal):
    terminal.wait_for(PROMPT)
    terminal.type("one\r")
    terminal.wait_for("compiling, once, 0 s")
    terminal.type("twp\x7fo\r/set seed=5\r")
    assert "tw" not in terminal.wait_for(PROMPT)
    assert "\x1b[1mtwo\x1b[0m，好。" in terminal.wait_for("9 tokens")
    terminal.wait_for("seed=5")
    terminal.wait_for(PROMPT)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_during_an_answer_ends_the_chat_with_the_terminal_as_it_was(number, code, terminal):
    before = termios.tcgetattr(terminal.file)
    terminal.wait_for(PROMPT)
    terminal.type("endless\r")
    terminal.wait_for("...")
    assert not termios.tcgetattr(terminal.file)[3] & termios.ECHO
    terminal.process.send_signal(number)
    assert terminal.process.wait(60) == code and termios.tcgetattr(terminal.file) == before
