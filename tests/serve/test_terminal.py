"""The terminal chat, with a model whose answers are known and a user who types from a list."""

import io

import pytest
from rich.console import Console

from camelid.errors import TooLong, UserError
from camelid.serve.speakers import Unreachable, WrongSetting
from camelid.serve.terminal import chat


class Echo:
    """Stands for a Llama: answers with the number of messages it was given and the last one, in two pieces."""

    waiting, tokens = "thinking", 2

    def __init__(self):
        self.asked = []

    def stream(self, messages, **sampling):
        self.asked.append(([dict(m) for m in messages], sampling))
        yield f"{len(messages)}:"
        yield messages[-1]["content"]


def talk(*lines, **arguments):
    console, model, typed = Console(file=io.StringIO(), width=80), Echo(), iter(lines)

    def ask(_):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    chat(model, ask=ask, console=console, **arguments)
    return model, console.file.getvalue()


def test_each_turn_is_asked_with_the_conversation_so_far():
    model, shown = talk("hello", "  ", "你好")
    assert "1:hello\n" in shown
    assert "3:你好\n" in shown
    roles = [m["role"] for m in model.asked[1][0]]
    assert roles == ["user", "assistant", "user"]
    assert model.asked[1][0][1]["content"] == "1:hello"


def test_new_forgets_all_but_the_system_message():
    model, _ = talk("hello", "/new", "again", system="Be brief.")
    assert [m["content"] for m in model.asked[1][0]] == ["Be brief.", "again"]


def test_quit_leaves_before_the_rest():
    model, _ = talk("/quit", "hello")
    assert model.asked == []


def test_sampling_reaches_the_model_and_seeds_differ_between_turns():
    model, _ = talk("a", "b", temperature=0.5)
    assert [sampling for _, sampling in model.asked] == [
        {"temperature": 0.5, "seed": 0},
        {"temperature": 0.5, "seed": 1},
    ]


def test_markup_in_an_answer_is_shown_as_it_is():
    _, shown = talk("[bold]x[/bold]")
    assert "1:[bold]x[/bold]" in shown


def test_an_interrupted_answer_keeps_what_was_said():
    class Interrupted(Echo):
        def stream(self, messages, **sampling):
            self.asked.append(([dict(m) for m in messages], sampling))
            yield "half"
            if len(messages) == 1:
                raise KeyboardInterrupt

    model, typed = Interrupted(), iter(["a", "b", "/quit"])
    chat(model, ask=lambda _: next(typed), console=Console(file=io.StringIO()))
    assert [m["content"] for m in model.asked[1][0]] == ["a", "half", "b"]


def test_an_answer_whose_server_is_lost_keeps_what_was_said():
    class Lost(Echo):
        def stream(self, messages, **sampling):
            self.asked.append(([dict(m) for m in messages], sampling))
            if len(messages) == 1:
                yield "half"
            raise Unreachable("the server is gone")

    model, typed, console = Lost(), iter(["a", "b", "/quit"]), Console(file=io.StringIO(), width=100)
    chat(model, ask=lambda _: next(typed), console=console)
    assert [m["content"] for m in model.asked[1][0]] == ["a", "half", "b"]
    said = "the server is gone; this is the beginning of the answer, /regen asks again\n"
    assert said in console.file.getvalue() and console.file.getvalue().endswith("the server is gone\n")


def test_an_answer_interrupted_before_its_first_word_takes_the_message_back():
    class Slow(Echo):
        def stream(self, messages, **sampling):
            if messages[-1]["content"] == "slow":
                raise KeyboardInterrupt
            yield from super().stream(messages, **sampling)

    model, typed = Slow(), iter(["a", "slow", "b", "/quit"])
    chat(model, ask=lambda _: next(typed), console=Console(file=io.StringIO()))
    assert [m["content"] for m in model.asked[1][0]] == ["a", "1:a", "b"]


def test_ctrl_c_at_the_prompt_ends_the_chat_as_an_interrupt_on_a_line_of_its_own():
    def ask(_):
        raise KeyboardInterrupt

    console = Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        chat(Echo(), ask=ask, console=console)
    assert console.file.getvalue().endswith("\n\n")


@pytest.mark.parametrize("end", [EOFError(), OSError(5, "Input/output error")], ids=repr)
def test_the_end_of_the_input_and_a_terminal_that_is_gone_end_the_chat(end):
    def ask(_):
        raise end

    chat(Echo(), ask=ask, console=Console(file=io.StringIO()))


def test_a_message_that_is_not_utf_8_is_told_and_the_next_one_is_answered():
    typed = iter(["caf\udce9", UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "bad"), "b", "/quit"])

    def ask(_):
        text = next(typed)
        if isinstance(text, Exception):
            raise text
        return text

    model, console = Echo(), Console(file=io.StringIO(), width=100)
    chat(model, ask=ask, console=console)
    assert console.file.getvalue().count("the message is not in UTF-8: type it again\n") == 2
    assert [m["content"] for m in model.asked[0][0]] == ["b"]


def test_the_seed_is_that_of_the_first_answer():
    model, _ = talk("a", "b", seed=7)
    assert [sampling["seed"] for _, sampling in model.asked] == [7, 8]


@pytest.mark.parametrize(
    ("error", "first", "later"),
    [
        (TooLong("no room"), "", " (/new starts a new conversation)"),
        (UserError("no system messages"), "", ""),
        (WrongSetting("hot", "temperature", False), *[" (/set temperature=VALUE changes it)"] * 2),
        (
            WrongSetting("9 of 5", "max_tokens", True),
            " (/set max_tokens=VALUE changes it)",
            " (/set max_tokens=VALUE changes it, /new starts a new conversation)",
        ),
    ],
)
def test_a_refusal_names_the_command_that_mends_it(error, first, later):
    class Refusing(Echo):
        def stream(self, messages, **sampling):
            if messages[-1]["content"] == "x":
                raise error
            yield "yes"

    typed, console = iter(["x", "a", "x", "/quit"]), Console(file=io.StringIO(), width=200)
    chat(Refusing(), ask=lambda _: next(typed), console=console)
    told = [line for line in console.file.getvalue().splitlines() if line.startswith(str(error))]
    assert told == [f"{error}{first}", f"{error}{later}"]


def test_a_message_that_the_model_refuses_is_told_and_forgotten():
    class Full(Echo):
        def stream(self, messages, **sampling):
            if "long" in messages[-1]["content"]:
                raise TooLong("a prompt of 600 tokens fills the context of 512; shorten it")
            yield from super().stream(messages, **sampling)

    model, typed, console = Full(), iter(["a", "long", "b", "/quit"]), Console(file=io.StringIO(), width=100)
    chat(model, ask=lambda _: next(typed), console=console)
    assert "fills the context of 512; shorten it (/new starts a new conversation)\n" in console.file.getvalue()
    assert [m["content"] for m in model.asked[1][0]] == ["a", "1:a", "b"]
