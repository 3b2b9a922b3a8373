"""`camelid show`: what a run is and did, on one screen and as JSON, whatever its files are like."""

import json
import os
import socket
import time

import pytest

from camelid.errors import UserError
from camelid.launch.commands.arguments import Parser
from camelid.launch.commands.showing import add_show
from camelid.launch.run_summary import summaries, summary_of
from camelid.launch.run_summary_text import text_of
from camelid.train.goodput import BUCKETS

LOSS = "eval/heldout/text/loss"
CODE = {"mine/loss.py:make": "abcdef1" + "0" * 57}
LOST = {
    "command": ["camelid", "train", "--workdir=runs/a b"], "folder": "/home/me", "host": "one", "pid": 1,
    "commit": "1" * 40, "dirty": False, "start": "2026-11-29T10:00:00.000+00:00", "exit": "lost",
    "reason": "killed, or its machine was lost", "from_step": 0, "to_step": 12,
    "seconds": {"training": 30.0, "lost": 9.0},
}  # fmt: skip
LAST = LOST | {
    "start": "2026-11-29T11:00:00.000+00:00", "stop": "2026-11-29T12:01:00.000+00:00", "dirty": True, "code": CODE,
    "exit": "interrupted", "reason": "SIGTERM ended the run at step 25 of 40", "from_step": 10, "to_step": 25,
    "total_steps": 40, "seconds": {"start": 21.0, "training": 3600.0}, "versions": {"python": "3.11", "jax": "0.10"},
    "devices": {"platform": "gpu", "kind": "H200", "count": 8, "processes": 2, "mesh": {"data": 2, "fsdp": 4}},
    "project": {"folder": "/home/me", "commit": "2" * 40, "dirty": False},
}  # fmt: skip


def make_checkpoint(run, step, loss, *, complete=True):
    folder = run / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    manifest = {"checksums": "crc32", "metrics": {LOSS: loss}, "total_steps": 30, "code": {"old.py:f": "1" * 64}}
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps({"custom_metadata": manifest}))
    (folder / "checksums.json").write_text("{}") if complete else None


def make_run(folder, *attempts, recipe="sft"):
    folder.mkdir(parents=True)
    config = {"recipe": recipe, "seed": 0, "checkpoint": {"best": [LOSS, "min"]}, "loss": "mine/loss.py:make"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "run.json").write_text(json.dumps({"attempts": attempts}))
    lines = [{"step": 0, LOSS: 1.0}, {"step": 10, LOSS: 2.0, "train/loss": 2.5}, {"step": 20, LOSS: "nan"}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def run(tmp_path):
    """A run that was killed, resumed and interrupted, with two checkpoints and one that is not complete."""
    folder = make_run(tmp_path / "run", LOST, LAST)
    make_checkpoint(folder, 10, 2.0)
    make_checkpoint(folder, 20, 2.5)
    make_checkpoint(folder, 25, 0.0, complete=False)
    return folder


def show(*words):
    """Runs the command."""
    parser = Parser()
    add_show(parser.add_subparsers(parser_class=Parser))
    args = parser.parse_args(["show", *map(str, words)])
    args.run(args)


def test_a_block_has_what_a_run_is_and_did(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    lines = text_of(summary_of(run)).splitlines()
    entries, label = {}, ""
    for line in lines[1:]:
        label = line[2:15].strip() or label
        entries.setdefault(label, []).append(line[15:])
    assert lines[0] == "run" and max(map(len, lines)) < 130
    assert entries == {
        "status": ["interrupted: SIGTERM ended the run at step 25 of 40"],
        "recipe": ["sft"],
        "step": ["25 of 40"],
        "began": ["2026-11-29 10:00:00 UTC"],
        "ended": ["2026-11-29 12:01:00 UTC"],
        "command": ["camelid train '--workdir=runs/a b'"],
        "folder": ["/home/me on one"],
        "camelid": ["1111111 with changed files"],
        "project": ["/home/me at 2222222"],
        "versions": ["python 3.11, jax 0.10"],
        "devices": ["8 gpu (H200), 2 processes, data 2 x fsdp 4"],
        "own code": ["mine/loss.py:make (abcdef1)"],
        "attempts": [
            "2: 1 lost, 1 interrupted",
            "1  steps 0 to 12 in 39.0 s, lost: killed, or its machine was lost",
            "2  steps 10 to 25 in 1 h 0 min, interrupted: SIGTERM ended the run at step 25 of 40",
        ],
        "time": [
            "1 h 1 min, of which 99.2% in training steps that were kept (goodput)",
            f"training    1 h 0 min  99.2%  {30 * '█'}",
            "start          21.0 s   0.6%",
            "lost            9.0 s   0.2%",
        ],
        "checkpoints": [f"10  best, {LOSS} 2", f"20  last, {LOSS} 2.5", "25  not complete"],
        "metrics": [
            f"{LOSS}  nan at 20; best (min) 2 at 10",
            "train/loss              2.5 at 10; best (min) 2.5 at 10",
        ],
    }


def test_json_has_all_of_it(run, capsys):
    show("--json", run)
    (found,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["status"], found["step"], found["total_steps"], found["code"]) == ("interrupted", 25, 40, CODE)
    assert found["attempts"][0] | LOST == found["attempts"][0] and found["attempts"][1]["versions"] == LAST["versions"]
    assert found["seconds"].keys() == set(BUCKETS) and found["seconds"]["training"] == 3630.0
    assert [each["best"] for each in found["checkpoints"]] == [True, False, False]
    assert found["metrics"][0] == {
        "name": LOSS, "mode": "min", "last": "nan", "step": 20, "best": 2.0, "best_step": 10,
    }  # fmt: skip


def test_a_run_that_trains_says_what_it_does(run):
    beat = {
        "time": time.time(), "attempt": 2, "start": "2026-11-29T13:00:00+00:00", "command": ["camelid"], "every": 1.0,
        "pid": os.getpid(), "host": socket.gethostname(), "step": 27, "doing": "training", "since": time.time() - 3,
        "seconds": {"start": 1.0},
    }  # fmt: skip
    (run / "heartbeat.json").write_text(json.dumps(beat))
    found = summary_of(run)
    assert (found.status, found.stop, len(found.attempts)) == ("running", None, 3)
    assert found.reason == f"training on {socket.gethostname()}, last progress 3 s ago"
    (run / "run.json").unlink()
    (run / "config.json").unlink()
    text = text_of(summary_of(run))
    assert "running" in text and "20 of 30" in text and "old.py:f (1111111)" in text  # as its checkpoints say


def test_a_run_that_was_killed_says_so_before_it_is_resumed(run):
    open_ = LAST | {"exit": None, "reason": None, "stop": None}
    (run / "run.json").write_text(json.dumps({"attempts": [open_]}))
    found = summary_of(run)
    assert (found.status, found.reason, found.attempts[-1].exit) == ("lost", "killed, or its machine was lost", "lost")


def test_a_run_to_which_a_link_leads_is_shown_once(run):
    (run.parent / "latest").symlink_to(run)
    assert [each.path for each in summaries([run.parent, run.parent / "latest"])] == [str(run)]
    assert [each.path for each in summaries([run.parent / "latest"])] == [str(run.parent / "latest")]


def test_phases_have_a_block_each_in_their_order(tmp_path, capsys):
    make_run(tmp_path / "all" / "tune", LAST, recipe="dpo")
    make_run(tmp_path / "all" / "base", LOST, recipe="pretrain")
    (tmp_path / "all" / "config.json").write_text(json.dumps({"phases": [["base", {}], ["tune", {}], ["ppo", {}]]}))
    show(tmp_path / "all")
    blocks = capsys.readouterr().out.split("\n\n")
    assert [block.splitlines()[0].rpartition("/")[2] for block in blocks] == ["base", "tune", "ppo"]
    assert "recipe       dpo" in blocks[1] and blocks[2].split()[1:] == ["status", "not", "begun"]
    assert [each.recipe for each in summaries([tmp_path / "al*", tmp_path / "all" / "base"])] == ["pretrain", "dpo"]


def test_damaged_and_missing_files_are_told_and_the_rest_is_shown(run, capsys):
    for name in ("config.json", "run.json", "heartbeat.json", "metrics.jsonl"):
        (run / name).write_bytes(b'{"attempts": [7\xff')
    (run / "checkpoints" / "20" / "_CHECKPOINT_METADATA").write_text("[")
    (run / "checkpoints" / "10" / "_CHECKPOINT_METADATA").write_text('{"custom_metadata": {"metrics": 7, "code": 1}}')
    show(run)
    said = capsys.readouterr()
    assert "unknown" in said.out and "config.json is damaged" in said.out and "20  last" in said.out
    assert [line.split(" cannot")[0].rpartition("/")[2] for line in said.err.splitlines()] == [
        "run.json",
        "heartbeat.json",
    ]
    (run / "config.json").unlink()
    (run / "config.json").mkdir()
    show(run)
    assert "problems     [Errno 21] Is a directory" in capsys.readouterr().out
    (run / "config.json").rmdir()
    for name in ("run.json", "heartbeat.json", "metrics.jsonl"):
        (run / name).unlink()
    (run / "metrics.jsonl").mkdir()
    show(run)
    assert "neither a config.json nor a complete checkpoint tells the config" in (said := capsys.readouterr()).out
    assert "metrics.jsonl cannot be read, and is left out" in said.err
    with pytest.raises(UserError, match="no such run directory"):
        show(run / "nothing")
