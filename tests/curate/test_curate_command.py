import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from camelid.configs.curate.base import base
from camelid.curate.settings import read_config
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.tests.curate.plain_steps import STEPS, texts

CONFIG = """
from camelid.configs.curate.base import base

def get_config(arg=None):
    c = base(arg or "", shout={"use": "STEPS:Shout"}, least={"use": "STEPS:LeastWords", "words": 3})
    c.steps = ["parse", "shout", "least", "exact_duplicates", "heldout"]
    c.step.heldout.share = 0.2
    c.partitions = 4
    return c
""".replace("STEPS", STEPS)


@pytest.fixture
def files(tmp_path):
    """(path of a config, path of its source, folder for outputs)."""
    (tmp_path / "config.py").write_text(CONFIG)
    source = tmp_path / "some texts.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in texts(120)))
    return tmp_path / "config.py", source, tmp_path / "out"


def lines_of(output, kind):
    return [json.loads(line) for path in sorted((output / kind).glob("*")) for line in path.open(encoding="utf-8")]


def test_a_config_is_run_over_sources_and_told_in_a_table(files, capsys):
    config, source, output = files
    arguments = ["curate", "run", f"--config={config}", f"--source={source}", f"--output={output}", "--workers=1"]
    assert main([*arguments, "--licence=mit", "--config.step.least.words=2"]) == 0
    said = capsys.readouterr()
    assert "What was dropped" in said.out and "too_short" in said.out
    assert "stage 1 of" in said.err
    rows = lines_of(output, "train")
    assert min(row["meta"]["words"] for row in rows) == 2
    assert {row["meta"]["source"] for row in rows} == {"some_texts"}
    card = json.loads((output / "card.json").read_text())
    assert card["sources"]["some_texts"]["licence"] == "mit"
    assert main([*arguments, "--licence=mit", "--config.step.least.words=2"]) == 0
    assert f"was complete before; its tables are in {output}/report.md" in capsys.readouterr().out
    (output / "report.md").unlink()
    assert main([*arguments, "--licence=mit", "--config.step.least.words=2"]) == 0
    assert "report.md is missing, card.json has its counts" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, why", [("", "the sources hold no record"), ('{"text": "red"}\n', "the table says what was dropped")]
)
def test_a_dataset_without_rows_is_no_source(files, capsys, content, why):
    config, source, output = files
    source.write_text(content)
    assert main(["curate", "run", f"--config={config}:{source}", f"--output={output}", "--workers=1"]) == 0
    said = capsys.readouterr()
    assert f"{output} holds no rows: {why}" in said.err and "reads the folder as a source" not in said.out


def test_show_prints_examples_and_writes_nothing(files, capsys):
    config, source, output = files
    assert main(["curate", "run", f"--config={config}:{source}", "--show=2"]) == 0
    said = capsys.readouterr().out
    dropped = [line for line in said.splitlines() if ": too_short (" in line]
    assert len(dropped) == 2
    assert "shout: 105 rows, " in said
    assert "\n    -" in said and "\n    +" in said
    assert not output.exists() and not (source.parent / ".work").exists()


def test_shards_say_what_is_missing_until_the_last_one_writes(files, capsys):
    config, source, output = files
    arguments = ["curate", "run", f"--config={config}:{source}", f"--output={output}", "--workers=1"]
    assert main([*arguments, "--shard=1/2"]) == 0
    assert "shard 1/2 has done what it can: 1 of 1 parts of the stage read are missing" in capsys.readouterr().err
    for shard in (0, 1, 0, 1, 0):
        assert main([*arguments, f"--shard={shard}/2"]) == 0
    assert lines_of(output, "train")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--output=x", "--shard=2/2"], "--shard=2/2: give I/N with I from 0 to N - 1"),
        (["--output=x", "--wait"], "--wait does nothing without --shard"),
        ([], "give --output"),
        (["--output=x", "--show=1"], "--output=x does nothing without a run without --show"),
        (["--output=x", "--sample=7"], "--sample=7 does nothing without --show"),
        (["--output=x", "--licence=mit"], "--licence=mit does nothing without --source"),
        (
            ["--output=x", "--config.step.gopher.words=7"],
            "--config.step.gopher.words=7 does nothing: gopher is not in config.steps",
        ),
        (
            ["--output=x", "--config.step.length.least_turns=2"],
            "least_turns=2 does nothing: length is not in config.steps",
        ),
        (["--output=x", "--config.step.length.least_turns=1"], "length is not in config.steps; add it there"),
        (
            ["--output=x", "--config.steps=['parse','shuot','least','heldout']"],
            "there is no step 'shuot', only parse",
        ),
        (["--output=x", "--config.partitions=3"], "config.partitions = 3: give one of 1, 2, 4"),
    ],
)
def test_what_does_not_fit_together_is_one_line(files, capsys, monkeypatch, arguments, said):
    config, source, _ = files
    monkeypatch.chdir(config.parent)
    assert main(["curate", "run", f"--config={config}:{source}", *arguments]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


def test_steps_that_parse_no_records_are_refused():
    config = base("chats.json")
    config.steps = ["heldout"]
    with pytest.raises(UserError, match="no step that parses records"):
        read_config(config)


def test_conversations_are_cleaned_by_the_config_of_that_name(tmp_path, capsys):
    page = '<div class="markdown prose"><p>Use <code>x</code>.</p></div>'
    turns = [{"from": "human", "value": "How do I print a value in Python?"}, {"from": "gpt", "value": page}]
    again = [{"from": "gpt", "value": "Hello!"}, *turns, {"from": "human", "value": "Thanks, bye"}]
    (tmp_path / "chats.json").write_text(json.dumps([{"id": "a", "conversations": turns}, {"conversations": again}]))
    output = tmp_path / "out"
    arguments = ["curate", "conversations", f"--source={tmp_path}/chats.json"]
    assert main([*arguments, f"--output={output}", "--workers=1"]) == 0
    rows = lines_of(output, "train") + (lines_of(output, "heldout") if (output / "heldout").exists() else [])
    rejected = lines_of(output, "rejected")
    assert len(rows) == 1 and [each["reason"] for each in rejected] == ["exact_duplicate"]
    assert rows[0]["messages"][1] == {"role": "assistant", "content": "Use `x`."}
    assert main([*arguments, "--show=1"]) == 0
    assert "markdown: 2 rows, 2 changed" in capsys.readouterr().out


def test_options_of_conversations_are_arguments_of_its_config(tmp_path, capsys):
    chat = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am ChatGPT by OpenAI."}]
    question = {
        "instruction": "How many legs has a spider of the garden, and how many eyes does it have?",
        "output": "8",
    }
    (tmp_path / "chats.json").write_text(json.dumps([{"messages": chat}, question]))
    (tmp_path / "eval, one.json").write_text(json.dumps([question]))
    words = ["curate", "conversations", f"--source={tmp_path}/chats.json", "--workers=1"]
    assert main([*words, f"--output={tmp_path}/all"]) == 0
    options = ["--identity=drop", f"--against={tmp_path}/eval, one.json", "--budget=100"]
    assert main([*words, f"--output={tmp_path}/out", *options]) == 0
    assert len(lines_of(tmp_path / "all", "train") + lines_of(tmp_path / "all", "heldout")) == 2
    assert {each["step"] for each in lines_of(tmp_path / "out", "rejected")} == {"identity", "decontaminate"}
    settings = json.loads((tmp_path / "out" / "card.json").read_text())["steps"]
    assert settings["split_long"]["settings"]["budget"] == 100
    capsys.readouterr()
    assert main([*words, "--show=1", "--config.step.identity.action=drop"]) == 2
    assert "action=drop does nothing: identity is not in config.steps; give --identity too" in capsys.readouterr().err
    assert main([*words, "--show=1", "--identity=drop", "--config.step.identity.action=drop_pair"]) == 0
    assert main([*words, "--show=1", "--budget=0"]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_and_its_workers_at_once(files, number):
    config, source, output = files
    config.write_text(CONFIG.replace(":LeastWords", ":Sleeper").replace(', "words": 3', ""))
    arguments = ["curate", "run", f"--config={config}:{source}", f"--output={output}", "--workers=2"]
    code = "import sys; from camelid.launch.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not any(output.glob(".work/*-steps-*/.*.tmp")):
        assert process.poll() is None
        time.sleep(0.02)
    begin = time.monotonic()
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - begin < 5
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    while running_in_group(process.pid):
        assert time.monotonic() - begin < 10
        time.sleep(0.02)


def running_in_group(group: int) -> list[str]:
    """The processes of a group, without those that have ended and wait for their parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append((path.parent / "cmdline").read_text())
    return found
