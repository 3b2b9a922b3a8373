"""Answers on a terminal: Markdown that comes in pieces, and what stays on the screen of it."""

import io
import re

import pytest
from rich.console import Console

from camelid.serve import answers
from camelid.serve.answers import MarkdownAnswer, markdown, split_blocks

TEXT = """# 标题

A paragraph with **bold** and
a second line 第二行。

- one

- two

```python
def f(x):

    return x
```

| a | b |
| - | - |
| 1 | 二 |

<b>x</b> [bold]y[/bold] [here](http://x)."""


def terminal(height=30):
    return Console(file=io.StringIO(), width=40, height=height, force_terminal=True, color_system=None)


def final(shown):
    """What stays on the screen: the lines that are not drawn over. Understands what rich writes."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\??\d*[A-Za-z]|\n|\r|[^\x1b\n\r]+", shown):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith(("\x1b", "\r")):
            lines[row] += part
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("height", [5, 30])
def test_an_answer_in_pieces_ends_as_the_whole_text_looks(size, height):
    console, whole = terminal(height), terminal()
    with MarkdownAnswer(console, lambda: "waiting") as answer:
        for i in range(0, len(TEXT), size):
            answer.push(TEXT[i : i + size])
            answer._live.refresh()
    whole.print(markdown(TEXT))
    shown, expected = ([line for line in final(c.file.getvalue()) if line] for c in (console, whole))
    assert shown == expected and shown[-1] == "<b>x</b> [bold]y[/bold] here (http://x)."


def test_line_breaks_stay():
    console = terminal()
    console.print(markdown("白日依山尽\n黄河入海流"))
    assert final(console.file.getvalue())[:2] == ["白日依山尽", "黄河入海流"]


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("one\ntwo", ""),
        ("one\n\ntwo", "one\n"),
        ("- a\n\n- b\n\n  c", ""),
        ("- a\n\nb", "- a\n"),
        ("```\na\n\nb", ""),
        ("# a\nb", "# a"),
        ("\n\n", ""),
    ],
)
def test_only_the_last_block_may_change(text, done):
    found, rest = split_blocks(text)
    assert found == done and (f"{found}\n{rest}" if found else rest) == text


def test_an_answer_that_is_longer_than_the_screen_shows_its_end():
    console = terminal(height=6)
    with MarkdownAnswer(console, lambda: "waiting") as answer:
        answer.push("\n".join(f"line {i}" for i in range(20)))
        console.file.truncate(0)
        answer._live.refresh()
        drawn = console.file.getvalue()
        assert "line 19" in drawn and "line 15" not in drawn
    assert "line 0 " in console.file.getvalue()


def test_a_line_says_what_is_waited_for_and_when_nothing_comes(monkeypatch):
    console, now, waiting = terminal(), [100.0], ["compiling, once"]
    monkeypatch.setattr(answers.time, "monotonic", lambda: now[0])
    with MarkdownAnswer(console, lambda: waiting[0]) as answer:
        now[0] += 3

        def drawn():
            console.file.seek(0)
            console.file.truncate()
            console.print(answer)
            return console.file.getvalue()

        assert "compiling, once, 3 s" in drawn()
        answer.push("text")
        assert "compiling" not in drawn() and "the next token" not in drawn()
        now[0] += 2.5
        waiting[:] = ["the next token"]
        assert "text" in drawn() and "the next token, 2 s" in drawn()


def test_control_characters_of_an_answer_do_not_reach_the_terminal():
    console = terminal()
    with MarkdownAnswer(console, lambda: "waiting") as answer:
        answer.push("a\x1b]0;title\x07\x9b31m\r\nb")
    assert not {"\x07", "\x9b"} & set(console.file.getvalue()) and "\x1b]" not in console.file.getvalue()
