"""What a run tells of conversations that it parsed: only what differs from a plain parse is a change."""

import json

import pytest

from camelid.curate.applying import is_change
from camelid.curate.conversations.repair import with_turns
from camelid.curate.parsing import Parse
from camelid.curate.rows import Row, Step
from camelid.curate.run_table import RunTable
from camelid.data.cards import read_card
from camelid.launch.cli import main


def chat(number, *turns):
    turns = [{"from": role, "value": f"{text} {number}"} for role, text in turns]
    return {"id": f"c{number}", "conversations": turns}


QUESTION, ANSWER = ("human", "Where do camels live in winter"), ("gpt", "They live in dry places")
SOUND = [chat(number, QUESTION, ANSWER) for number in range(5)]
MERGED = [chat(number, QUESTION, ("human", "and in summer"), ANSWER) for number in (5, 6)]
CUT = chat(7, ("gpt", "Hello"), QUESTION, ANSWER, ("human", "Thanks"), ("human", "Bye"))


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([*SOUND, *MERGED, CUT]))
    return path


def config(folder, steps, **settings):
    lines = [
        "from camelid.configs.curate.base import base",
        "def get_config(sources):",
        "    c = base(sources)",
        f"    c.steps = {steps}",
        *(f"    c.step.{name} = {value!r}" for name, value in settings.items()),
        "    return c",
    ]
    path = folder / "c.py"
    path.write_text("\n".join(lines))
    return path


def test_only_repaired_conversations_count_as_changed_and_the_report_sums_their_repairs(chats, tmp_path):
    where = config(tmp_path, ["conversation", "split_long"], split_long={"budget": 100})
    assert main(["curate", "run", f"--config={where}:{chats}", f"--output={tmp_path / 'out'}"]) == 0
    assert read_card(tmp_path / "out").steps["conversation"].changed == 3
    report = (tmp_path / "out" / "report.md").read_text()
    (table,) = (part for part in report.split("## ") if part.startswith("Repairs"))
    found = {
        cells[1].strip(): [cells[2].strip(), cells[3].strip()]
        for cells in (x.split("|") for x in table.split("\n")[4:])
        if cells[1:]
    }
    assert found == {
        "turns joined to the one before, of the same role": ["3", "3"],
        "answers before the first question, left out": ["1", "1"],
        "turns behind the last answer, left out": ["1", "1"],
    }


def test_a_plain_parse_changes_nothing_and_a_step_of_raw_records_does(chats, tmp_path):
    where = config(tmp_path, ["parse"])
    assert main(["curate", "run", f"--config={where}:{chats}", f"--output={tmp_path / 'out'}"]) == 0
    assert read_card(tmp_path / "out").steps["parse"].changed == 0
    raw = Row("0123456789abcdef0123", {"Ask": "Who?", "Tell": "Ann."}, "s", "p")
    named = raw.with_({"instruction": "Who?", "output": "Ann."})
    assert is_change(Step, raw, named) and is_change(
        Step, named, named.with_({"instruction": "Who?", "output": "Eve."})
    )
    assert not is_change(Parse(), named, Parse()(named))


def test_examples_of_repairs_show_the_turns_before_and_after(chats, tmp_path, capsys):
    where = config(tmp_path, ["conversation"])
    assert main(["curate", "run", f"--config={where}:{chats}", "--show=5"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "conversation: 8 rows, 3 changed" in shown
    assert "turns_leading=1 turns_trailing=1 -[assistant] -Hello 7" in shown and "-[user] -Thanks 7" in shown
    assert '"conversations"' not in shown


def test_repairs_of_a_later_step_are_added_and_parts_of_a_row_count_once():
    messages = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    row = Row("0123456789abcdef0123", {"kind": "prompt", "messages": messages}, "s", "p", {"turns_merged": 2})
    emptied = [messages[0], {"role": "assistant", "content": ""}, messages[2]]
    after = with_turns(row, emptied)
    assert after.columns == {"turns_merged": 3, "turns_empty": 1}
    table = RunTable()
    for part in after.split([after.record, after.record]):
        table.keep(part)
    assert (table.repairs, table.repaired) == (
        {"turns_merged": 3, "turns_empty": 1},
        {"turns_merged": 1, "turns_empty": 1},
    )
