"""run.json: what is read of a run while it runs and after it, and what counts as lost."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from ml_collections import ConfigDict

from camelid.errors import UserError
from camelid.train import code_version, config_record, recording, run_record
from camelid.train.goodput import BUCKETS, goodput
from camelid.train.loop import Interrupted, TrainingStopped
from camelid.train.recording import Recording
from camelid.train.run_record import Attempt, closed, read_record, resumed

CONFIG = ConfigDict({"seed": 3, "optim": {"lr": 1e-3}})
MESH = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}


def seconds(**given):
    return dict.fromkeys(BUCKETS, 0.0) | given


def attempt(exit="interrupted", to_step=20, **spent):
    return Attempt(["camelid"], exit=exit, to_step=to_step, seconds=seconds(**spent))


def beat(number, **changes):
    content = dict(time=time.time(), attempt=number, start="2026", command=["camelid"], pid=os.getpid(), every=1.0)
    return content | dict(host=socket.gethostname(), step=25, doing="training", seconds=seconds(training=9.0)) | changes


def test_work_after_the_checkpoint_from_which_a_run_resumes_is_lost():
    killed = attempt("lost", to_step=30, start=5.0, training=20.0, checkpoint=1.0)
    [found] = resumed([killed], 20, {"number": 0, "seconds": seconds(start=5.0, training=12.0)})
    assert found.seconds == seconds(start=5.0, training=12.0, lost=9.0)
    assert [x.seconds for x in resumed([killed], 0, None)] == [seconds(lost=26.0)]  # no checkpoint yet
    assert resumed([killed], 20, None) == [killed]  # a checkpoint of an older version does not say


def test_what_a_run_did_while_its_last_checkpoint_was_written_is_not_lost_if_it_ended_itself():
    ended = attempt("interrupted", to_step=20, training=12.0, checkpoint=3.0)
    saved = {"number": 0, "seconds": seconds(training=12.0)}
    assert resumed([ended], 20, saved) == [ended]
    assert resumed([dataclasses.replace(ended, exit="lost")], 20, saved)[0].seconds["lost"] == 3.0
    assert resumed([ended], 10, {"number": 0, "seconds": seconds(training=6.0)})[0].seconds["lost"] == 9.0


def test_attempts_that_a_resumed_run_does_not_build_on_are_lost_as_a_whole():
    """The second attempt's checkpoint was damaged, so that the third resumes from one of the first."""
    first, second = attempt("lost", 40, start=2.0, training=8.0), attempt("lost", 60, start=2.0, training=7.0)
    found = resumed([first, second], 20, {"number": 0, "seconds": seconds(start=2.0, training=4.0)})
    assert [x.seconds["lost"] for x in found] == [4.0, 9.0]
    assert sum(sum(x.seconds.values()) for x in found) == 19.0
    again = resumed(found, 10, {"number": 0, "seconds": seconds(start=2.0, training=2.0)})
    assert [x.seconds["lost"] for x in again] == [6.0, 9.0]


def test_an_attempt_that_says_no_end_is_closed_by_its_last_heartbeat():
    open_ = Attempt(["camelid"], to_step=10, seconds=seconds(training=2.0))
    [found] = closed([open_], beat(0, time=1e9))
    assert (found.exit, found.to_step, found.seconds) == ("lost", 25, seconds(training=9.0, lost=0.5))
    assert found.stop == "2001-09-09T01:46:40.500+00:00"
    assert found.reason == "killed, or its machine was lost, while training at step 25"
    assert closed([attempt()], beat(0)) == [attempt()]
    assert closed([open_], None)[0].exit == "lost"
    starting = closed([attempt()], beat(1, doing="starting"))  # killed before it trained
    assert [x.exit for x in starting] == ["interrupted", "lost"]
    assert closed([attempt()], beat(1, doing="ended")) == [attempt()]


def write(folder, attempts, heartbeat):
    (folder / "run.json").write_text(run_record.to_json(attempts)) if attempts else None
    (folder / "heartbeat.json").write_text(json.dumps(heartbeat)) if heartbeat else None
    return read_record(folder)


OPEN = Attempt(["camelid"], seconds=seconds())
COLLECTED = time.time()
GONE = 2**31 - 1
"""An id that no system gives: a real one that was freed can be another process's before the test runs."""


@pytest.mark.parametrize(
    ("attempts", "heartbeat", "status"),
    [
        ([OPEN], beat(0), "running"),
        ([], beat(0, doing="starting"), "running"),
        ([attempt("failed")], beat(1), "running"),
        ([OPEN], beat(0, pid=GONE), "lost"),
        ([OPEN], beat(0, time=time.time() - 10**6), "lost"),  # another process has the id since
        ([OPEN], beat(0, host="elsewhere", pid=GONE), "running"),
        ([OPEN], beat(0, host="elsewhere", time=time.time() - 40), "lost"),
        ([OPEN], beat(0, host="elsewhere", time=time.time() - 40, every=30.0), "running"),
        ([attempt("finished")], beat(0, doing="ended"), "finished"),
        ([attempt("stopped early")], beat(0), "stopped early"),
        ([attempt("failed"), attempt("interrupted")], beat(2, pid=GONE), "interrupted"),
        ([OPEN], None, "lost"),
        ([], beat(2), "running"),  # run.json is damaged or gone
        ([], beat(2, pid=GONE), "lost"),
        ([], beat(2, doing="ended"), "unknown"),
    ],
)
def test_the_status_of_a_run_is_known_from_outside(tmp_path, attempts, heartbeat, status):
    if heartbeat is not None:  # ages are those of the beginning, however long the tests before took
        heartbeat = heartbeat | {"time": heartbeat["time"] + time.time() - COLLECTED}
    assert write(tmp_path, attempts, heartbeat).status == status


def test_a_process_of_this_host_that_is_suspended_or_cannot_write_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(run_record, "process_created", lambda pid: run_record.now() - 1000)
    assert write(tmp_path, [OPEN], beat(0, time=time.time() - 900)).status == "running"
    assert write(tmp_path, [OPEN], beat(0, time=time.time() - 1100)).status == "lost"  # it is younger than the beat
    monkeypatch.setattr(run_record, "process_created", lambda pid: None)  # a system without /proc
    assert write(tmp_path, [OPEN], beat(0, time=time.time() - 900)).status == "lost"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not tell")
def test_a_killed_process_is_lost_also_before_its_parent_has_asked(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert write(tmp_path, [OPEN], beat(0, pid=process.pid)).status == "running"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert write(tmp_path, [OPEN], beat(0, pid=process.pid)).status == "lost"
    process.communicate()


def test_a_run_that_is_killed_again_while_it_starts_keeps_the_time_of_both(tmp_path, monkeypatch):
    """The second process overwrites the heartbeat of the first, which knew more than run.json."""
    monkeypatch.setattr(recording, "checkouts", lambda folder: (None, None))
    write(tmp_path, [attempt(None, training=2.0)], beat(0, pid=GONE))
    killed = Recording(tmp_path, recording.now())
    killed._take_up()
    found = write(tmp_path, None, beat(1, doing="starting", seconds=seconds(start=3.0)))
    ends = closed(found.attempts, found.heartbeat)
    assert [each.exit for each in ends] == ["lost", "lost"] and ends[0].reason.endswith("while training at step 25")
    assert [sum(each.seconds.values()) for each in ends] == [9.5, 3.5]
    assert (ends[1].from_step, ends[1].to_step) == (25, 25)
    unclosed = closed([attempt(None, training=2.0)], beat(1, doing="starting"))  # run.json could not be written
    assert [each.exit for each in unclosed] == ["lost", "lost"]


def test_paths_whose_bytes_are_no_utf_8_are_told_as_they_are(record, tmp_path, monkeypatch):
    name = os.fsdecode(b"caf\xe9")
    monkeypatch.setattr(sys, "argv", ["camelid", "train", f"--workdir={name}"])
    assert record(workdir=tmp_path / name).attempts[0].command[-1] == f"--workdir={name}"
    assert json.loads(config_record.to_json(ConfigDict({"path": name}))) == {"path": name}
    assert "é" in config_record.to_json(ConfigDict({"path": "é"}))  # readable where it can be


def test_a_running_attempt_is_as_far_as_its_last_heartbeat(tmp_path):
    record = write(tmp_path, [attempt(training=3.0, lost=1.0), OPEN], beat(1))
    assert (record.step, record.seconds) == (25, seconds(training=12.0, lost=1.0))
    assert record.goodput == goodput(record.seconds) == 12 / 13


def test_a_record_that_is_missing_damaged_or_of_a_later_version_can_be_read(tmp_path, capsys):
    assert read_record(tmp_path) is None
    (tmp_path / "run.json").write_text('{"attempts": [')
    assert read_record(tmp_path) is None and "run.json cannot be read" in capsys.readouterr().err
    for damaged in (
        '{"attempts": null}',
        '{"attempts": ["x"]}',
        '{"attempts": [{"seconds": 3}]}',
        "[]",
        "null",
        "[" * 10**5,
    ):
        (tmp_path / "run.json").write_text(damaged)
        assert read_record(tmp_path) is None and "run.json cannot be read" in capsys.readouterr().err
    (tmp_path / "run.json").unlink()
    for name in ("attempt", "pid", "time", "doing", "seconds"):
        for other in ({name: None}, {}):
            content = {key: value for key, value in beat(0).items() if key != name} | other
            (tmp_path / "heartbeat.json").write_text(json.dumps(content))
            read_record(tmp_path)  # a word for what cannot be used, and no error
    (tmp_path / "heartbeat.json").unlink()
    (tmp_path / "run.json").write_text('{"attempts": [{"exit": "finished", "new": 1}], "also": 2}')
    assert read_record(tmp_path).attempts == [Attempt(exit="finished")]
    for name, kind in {"versions": 1, "command": "camelid", "devices": None}.items():
        (tmp_path / "run.json").write_text(json.dumps({"attempts": [{name: kind}]}))
        assert read_record(tmp_path) is None


def test_an_end_by_its_former_name_is_read_by_the_name_of_today(tmp_path):
    (tmp_path / "run.json").write_text('{"attempts": [{"exit": "preempted", "to_step": 4}]}')
    found = read_record(tmp_path)
    assert (found.status, found.attempts[0].code, found.attempts[0].total_steps) == ("interrupted", None, None)


@pytest.fixture
def record(tmp_path, monkeypatch):
    """record(error, ...): the file of a run after an attempt that an exception ends."""
    monkeypatch.setattr(recording, "checkouts", lambda folder: (None, None))

    def run(error=None, begins=True, step=0, workdir=tmp_path / "run", early=None):
        try:
            with Recording(workdir, recording.now()) as r:
                if begins:
                    r.begin(CONFIG, MESH, step, None, total=40)
                    r.clock.step_done(step + 5)
                if early:
                    r.stopped_early(early)
                if error is not None:
                    raise error
        except BaseException as raised:
            assert raised is error
        return read_record(workdir)

    return run


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (None, ("finished", None, 0)),
        (Interrupted("SIGTERM ended the run", 15), ("interrupted", "SIGTERM ended the run", 143)),
        (KeyboardInterrupt(), ("interrupted", "SIGINT", 130)),
        (UserError("reward odd:\n gave nan"), ("failed", "reward odd: gave nan", 2)),
        (TrainingStopped("step 4: enough"), ("failed", "step 4: enough", 1)),
        (OSError("disk full"), ("failed", "disk full", 1)),
        (ZeroDivisionError("by zero"), ("failed", "ZeroDivisionError: by zero", 1)),
    ],
)
def test_an_attempt_ends_as_its_process_does(record, error, end):
    [last] = record(error).attempts
    assert (last.exit, last.reason, last.exit_code) == end
    assert (last.from_step, last.to_step, last.pid) == (0, 5, os.getpid()) and last.start < last.stop
    assert (last.code, last.total_steps) == ({}, 40)
    assert last.devices == {"platform": "cpu", "kind": "cpu", "count": 8, "processes": 1, "mesh": MESH}
    assert {"python", "camelid", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"} == last.versions.keys()


def test_a_run_that_ends_early_says_so_and_config_json_has_its_settings(record, tmp_path):
    assert record(early="no better").status == "stopped early"
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG.to_dict()
    assert json.loads((tmp_path / "run" / "heartbeat.json").read_text())["doing"] == "ended"


def test_a_command_that_is_refused_before_its_run_begins_leaves_no_trace(record, tmp_path):
    assert record(UserError("no such file"), begins=False) is None and not (tmp_path / "run").exists()
    for error in (OSError("disk full"), Interrupted("SIGTERM", 15), None):
        before = record(error, begins=error is None)
        found = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        assert record(UserError("no such file"), begins=False) == before
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == found
    assert [each.exit for each in before.attempts] == ["failed", "interrupted", "finished"]
    assert [each.seconds["lost"] > 0 for each in before.attempts] == [True, True, False]
    assert record(OSError("disk full"), begins=False) == before  # a finished run stays so


def test_a_run_that_was_complete_gets_no_attempt_but_is_finished_if_it_was_killed_at_its_end(record, tmp_path):
    before = record()
    with Recording(tmp_path / "run", recording.now()) as r:
        r.discard("finished")
    assert read_record(tmp_path / "run").attempts == before.attempts
    write(tmp_path / "run", [dataclasses.replace(before.attempts[0], exit=None, stop=None)], beat(0, pid=GONE))
    assert read_record(tmp_path / "run").status == "lost"
    with Recording(tmp_path / "run", recording.now()) as r:
        r.discard("finished")
    assert read_record(tmp_path / "run").status == "finished"


def test_a_record_that_cannot_be_written_does_not_end_the_run(record, tmp_path, monkeypatch, capsys):
    def full(path, content, **_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(recording, "write_whole", full)
    (tmp_path / "run").mkdir()
    assert record() is None
    said = capsys.readouterr().err
    assert said.count("and the run goes on: [Errno 28] No space left on device") == 2  # heartbeat and record


def test_what_a_killed_process_left_half_written_is_removed(record, tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".run.json.123.tmp", ".heartbeat.json.7.tmp", ".mine.json.7.tmp"):
        (tmp_path / "run" / name).touch()
    record()
    assert [path.name for path in (tmp_path / "run").glob(".*")] == [".mine.json.7.tmp"]


def test_the_config_of_phases_has_the_leaves_of_all_and_what_each_changes():
    phases = {
        "a": ConfigDict({"lr": 1.0, "data": {"x": {"weight": 1.0}, "evals": {}}, "recipe": "pretrain"}),
        "b": ConfigDict({"lr": 1.0, "data": {"x": {"weight": 0.0}, "evals": {"q": {"n": 2}}}, "recipe": "sft"}),
    }
    assert json.loads(config_record.phases_to_json(phases)) == {
        "lr": 1.0,
        "data": {"x": {"weight": 1.0}},
        "recipe": "pretrain",
        "phases": [
            ["a", {"data.x.weight": 1.0, "data.evals": {}, "recipe": "pretrain"}],
            ["b", {"data.x.weight": 0.0, "data.evals.q.n": 2, "recipe": "sft"}],
        ],
    }


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True).stdout


def test_the_code_that_runs_is_told_by_its_commit_and_whether_tracked_files_differ(tmp_path, monkeypatch):
    look = code_version.checkouts.__wrapped__
    package, project = tmp_path / "camelid", tmp_path / "mine"
    monkeypatch.setattr(code_version, "PACKAGE", package)
    for folder in (package, project):
        folder.mkdir()
        (folder / "errors.py").touch()
    assert look(str(project)) == (None, None)  # neither is a checkout
    for folder in (package, project):
        git(folder, "init", "-q")
        git(folder, "add", "errors.py")
        git(folder, "commit", "-q", "-m", folder.name)
    (project / "errors.py").write_text("changed")
    (package / "new.py").touch()  # runs and notes lie about in any checkout
    own, around = look(str(project))
    assert own == (str(package), git(package, "rev-parse", "HEAD").strip(), False)
    assert around == (str(project), git(project, "rev-parse", "HEAD").strip(), True)
    assert look(str(package)) == (own, None)  # the same one
    monkeypatch.setattr(code_version, "PACKAGE", project / "site-packages" / "camelid")
    (project / "site-packages" / "camelid").mkdir(parents=True)
    (project / "site-packages" / "camelid" / "errors.py").touch()
    assert look(str(project)) == (None, around)  # installed into somebody's checkout
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look(str(project)) == (None, None)  # no git


def test_a_trial_of_a_sweep_has_a_command_that_can_be_given_again(monkeypatch):
    for program in (code_version.PACKAGE / "launch" / "sweeps" / "child.py", code_version.PACKAGE / "__main__.py"):
        monkeypatch.setattr(sys, "argv", [str(program), "train", "--config=sft/primer"])
        assert recording._command() == ["camelid", "train", "--config=sft/primer"]
    monkeypatch.setattr(sys, "argv", ["mine/train.py", "--config=x"])
    assert recording._command() == ["mine/train.py", "--config=x"]
