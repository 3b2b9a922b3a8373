"""The commands of the chat, typed to a speaker that says how it was asked."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from camelid.data.sources import Source, read
from camelid.errors import UserError
from camelid.model.sampling import Sampling
from camelid.serve.chat_commands import COMMANDS, SETTINGS
from camelid.serve.conversation_files import load, save
from camelid.serve.terminal import chat


class Echo:
    """Answers with the seed and the last message."""

    waiting, tokens = "thinking", 2

    def __init__(self):
        self.asked = []

    def stream(self, messages, *, seed, **settings):
        self.asked.append(([(m["role"], m["content"]) for m in messages], settings))
        if "refused" in messages[-1]["content"]:
            raise UserError("no room")
        yield f"{seed}:"
        yield messages[-1]["content"]


def talk(*lines, **arguments):
    """The speaker, and what the chat printed."""
    console, speaker, typed = Console(file=io.StringIO(), width=80), Echo(), iter(lines)

    def ask(_):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    chat(speaker, ask=ask, console=console, **arguments)
    return speaker, console.file.getvalue()


def test_a_command_that_there_is_not_is_told_with_the_nearest_one_and_not_sent():
    speaker, shown = talk("/regne", "/etc/passwd\nis a file", " /etc is a folder")
    assert "there is no command /regne; did you mean /regen? (a message" in shown
    assert "there is no command /etc/passwd; /help lists them" in shown
    assert [messages for messages, _ in speaker.asked] == [[("user", "/etc is a folder")]]


def test_help_lists_every_command_in_a_line():
    _, shown = talk("/help", keys="Enter sends")
    assert all(f"\n{name} " in shown for name in COMMANDS)
    assert shown.endswith("\nEnter sends\n")


def test_a_word_after_a_command_that_takes_none_is_a_mistake():
    speaker, shown = talk("hello", "/undo all", "again")
    assert "/undo stands alone: leave 'all' out" in shown
    assert len(speaker.asked[1][0]) == 3


def test_the_system_message_changes_within_a_conversation_and_goes():
    speaker, _ = talk("a", "/system  Be\nbrief. ", "b", "/system", "c", system="Be kind.")
    assert [messages[0] for messages, _ in speaker.asked] == [
        ("system", "Be kind."),
        ("system", "Be\nbrief."),
        ("user", "a"),
    ]
    assert [len(messages) for messages, _ in speaker.asked] == [2, 4, 5]


def test_set_changes_the_next_answers_and_shows_the_settings():
    speaker, shown = talk("a", "/set temperature=0.5 top_k=40 seed=7", "b", "c", "/set", temperature=1.0, stop=["x"])
    assert [settings for _, settings in speaker.asked] == [
        {"temperature": 1.0, "stop": ["x"]},
        *[{"temperature": 0.5, "top_k": 40, "stop": ["x"]}] * 2,
    ]
    assert "7:b\n" in shown and "8:c\n" in shown and shown.endswith("\ntemperature=0.5 top_k=40 seed=9 stop='x'\n")


def test_a_stop_string_is_set_and_cleared():
    speaker, shown = talk("/set stop='the end'", "a", "/set stop=", "b", stop=["x"])
    assert [settings["stop"] for _, settings in speaker.asked] == [("the end",), ()]
    assert "seed=0 stop='the end'\n" in shown and "seed=1\n" in shown


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("temperature=-1", "temperature -1: give 0 (greedy) or more"),
        ("temperature=nan", "temperature nan: give a number"),
        ("max_tokens=1.5", "max_tokens 1.5: give a whole number"),
        ("top_p=high", "top_p=high: give a number"),
        ("top_p", "top_p has no value: write top_p=VALUE, without spaces"),
        ("temprature=1", "there is no setting 'temprature': set one of max_tokens, temperature, top_p"),
        ("temprature=1", "stop, seed; did you mean temperature?"),
        ("n=2", "there is no setting 'n'"),
        ("seed=-1", "seed -1: give a whole number from 0 to 4294967295"),
        ("seed=0.5", "seed 0.5: give a whole number from 0"),
        ("temperature='1", "temperature='1: no closing quotation"),
        ("top_k=3 min_p=2", "min_p 2: give 0 (off) to 1"),
    ],
)
def test_a_setting_out_of_range_is_told_and_changes_nothing(typed, says):
    speaker, shown = talk(f"/set {typed}", "a", top_k=1)
    assert says in shown
    assert speaker.asked[0][1] == {"top_k": 1} and "0:a" in shown


def test_all_settings_of_sampling_can_be_set_but_those_of_the_tokenizer_and_of_batches():
    fields = {field.name for field in dataclasses.fields(Sampling)}
    assert fields - set(SETTINGS) == {"stop_ids", "stops", "pad_id", "unused", "n"}


def test_regen_answers_anew_with_the_next_seed_and_replaces_the_answer():
    speaker, shown = talk("a", "/regen", "b")
    assert "0:a\n" in shown and "1:a\n" in shown
    assert speaker.asked[1][0] == [("user", "a")]
    assert speaker.asked[2][0] == [("user", "a"), ("assistant", "1:a"), ("user", "b")]


def test_undo_takes_back_the_last_message_and_its_answer():
    speaker, shown = talk("a", "b\nand more", "/undo", "c", "/undo", "/undo", "/undo", "d")
    assert speaker.asked[2][0] == [("user", "a"), ("assistant", "0:a"), ("user", "c")]
    assert "taken back: b and more\n" in shown and "the conversation is empty: type a message\n" in shown
    assert speaker.asked[3][0] == [("user", "d")]


def test_regen_of_nothing_is_told_and_an_answer_that_fails_leaves_the_old_one():
    speaker, shown = talk("/regen", "a", "refused", "b")
    assert "the conversation is empty" in shown and "\nno room\n" in shown
    assert speaker.asked[2][0] == [("user", "a"), ("assistant", "0:a"), ("user", "b")]


TURNS = [
    {"role": role, "content": text}
    for role, text in [("user", "问一"), ("assistant", "答\n一"), ("user", "q2"), ("assistant", "a2")]
]


@pytest.mark.parametrize("name", ["talk.json", "talk.alpaca.json", "talk.jsonl", "talk.alpaca.jsonl"])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_saved_conversation_is_read_by_data_and_goes_on_where_it_was(name, system, tmp_path):
    path = tmp_path / name
    speaker, shown = talk("你好", "b", f"/save '{path}'", "c", system=system)
    assert f"saved as {'alpaca' if 'alpaca' in name else 'sharegpt'} in {path}\n" in shown
    (record,) = read(Source(str(path)))
    said = [(m["role"], m["content"]) for m in record["messages"]]
    assert record["kind"] == "chat" and said == speaker.asked[2][0][:-1]
    other, _ = talk(f"/load '{path}'", "c")
    assert other.asked[0][0] == speaker.asked[2][0]


def test_a_word_names_the_form():
    _, shown = talk("a", "/save talk.json alpca", "/save talk.txt", "/save", "/save a.json alpaca b")
    assert "there is no form 'alpca': give sharegpt or alpaca; did you mean alpaca?" in shown
    assert "talk.txt: give a name that ends with .json" in shown
    assert shown.count("give one file, and sharegpt or alpaca if you like") == 2


def test_the_form_of_a_word_is_written(tmp_path):
    talk("a", f"/save {tmp_path}/x.json alpaca")
    assert json.loads((tmp_path / "x.json").read_text()) == [{"instruction": "a", "input": "", "output": "0:a"}]


def test_a_file_of_somebody_is_kept_and_ones_own_is_written_again(tmp_path):
    (tmp_path / "theirs.json").write_text("mine")
    own, theirs = tmp_path / "own.json", tmp_path / "theirs.json"
    _, shown = talk("a", f"/save {own}", f"/save {theirs}", "b", f"/save {own}")
    assert f"{theirs} is there already: give another name" in shown and theirs.read_text() == "mine"
    assert len(load(own)[1]) == 4 and sorted(tmp_path.iterdir()) == [own, theirs]


def test_jsonl_gets_a_line_for_each_conversation_also_after_a_line_without_an_end(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text('{"instruction": "x", "input": "", "output": "y"}')
    for form in ("sharegpt", "alpaca"):
        save(path, form, None, TURNS)
    assert [len(load(path, number)[1]) for number in (1, 2, 3)] == [2, 4, 4]
    _, shown = talk(f"/load {path} 3", f"/load {path} 4", f"/load {path} x")
    assert "4 messages; system message: none\nuser: q2\nassistant: a2\n" in shown
    assert f"{path} has no record 4\n" in shown and "and the number of a record if it is not the first" in shown


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ([], "nothing to save"),
        (TURNS[:3], "does not end with an answer"),
        ([TURNS[0], {"role": "assistant", "content": ""}], "cannot hold this conversation: "),
    ],
)
@pytest.mark.parametrize("form", ["sharegpt", "alpaca"])
def test_a_conversation_that_no_record_holds_is_not_saved(turns, says, form, tmp_path):
    with pytest.raises(UserError, match=says):
        save(tmp_path / "x.json", form, None, turns)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    _, shown = talk("a", f"/save {tmp_path}/no/x.json", f"/save {tmp_path}/no/x.jsonl", f"/load {tmp_path}/no.json")
    assert shown.count("No such file or directory") == 2 and shown.count(f"{tmp_path}/no.json") == 1


def test_a_record_without_an_answer_is_answered_by_regen(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}]}))
    speaker, shown = talk(f"/load {path}", "more", "/regen", "more")
    assert "the last message has no answer yet: /regen answers it" in shown
    assert [messages for messages, _ in speaker.asked] == [
        [("user", "q")],
        [("user", "q"), ("assistant", "0:q"), ("user", "more")],
    ]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"text": "words"}, "is no plain conversation"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": "r"}]},
            "has reasoning_content, which a chat cannot continue",
        ),
    ],
)
def test_a_record_that_is_no_plain_conversation_is_told_and_changes_nothing(record, says, tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(record))
    speaker, shown = talk("a", f"/load {tmp_path}/x.jsonl", "b")
    assert f"x.jsonl:1 {says}" in shown and len(speaker.asked[1][0]) == 3


def test_alpacas_input_follows_its_instruction(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"instruction": "Sum up.", "input": "Text.", "output": "T."}]))
    assert load(tmp_path / "x.json")[1][0]["content"] == "Sum up.\n\nText."
