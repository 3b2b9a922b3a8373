"""The study of a sweep: numbers, points and seeds of trials, storages, and what kills leave behind."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import optuna
import pytest

from camelid.errors import UserError
from camelid.launch.sweeps import claims
from camelid.launch.sweeps.claims import StudyLock, claim, holder
from camelid.launch.sweeps.identity import Objective
from camelid.launch.sweeps.results import Results, read_results
from camelid.launch.sweeps.study import JOURNAL
from camelid.tests.launch.sweeps.worker_processes import sweep_of

LINES = ["lr=log(1e-4,1e-2)", "n=int(1,8)", "kind={a,b}", "seed={3,5,7}"]


def asked(folder, method="random", trials=24, lines=LINES, **more):
    return {"folder": folder, "lines": lines, "method": method, "trials": trials} | more


def points(study) -> list[dict]:
    return [dict(trial.point) for trial in study.trials()]


def finish_all(study, value=lambda trial: trial.point["lr"]) -> None:
    while claimed := study.claim_next(limit=4):
        for each in claimed:
            study.finish(each, "finished", value(each.trial))


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_each_point_is_run_with_every_seed(tmp_path, method):
    _, study = sweep_of(asked(tmp_path, method, trials=48))
    finish_all(study)
    found = points(study)
    assert [point.pop("seed") for point in found] == [3, 5, 7] * 16
    assert all(found[at] == found[at - at % 3] for at in range(48))
    assert len({json.dumps(point) for point in found}) == 16
    assert all(1e-4 <= point["lr"] <= 1e-2 and 1 <= point["n"] <= 8 and point["kind"] in "ab" for point in found)


def test_random_points_follow_from_their_number_whoever_draws_them(tmp_path):
    _, one = sweep_of(asked(tmp_path / "one"))
    finish_all(one)
    (_, first), (_, second) = (sweep_of(asked(tmp_path / "two")) for _ in range(2))
    for at in range(12):
        for study in (first, second) if at % 3 else (second, first):
            [claimed] = study.claim_next()
            study.finish(claimed, "failed", reason="a test")
    assert points(first) == points(second) == points(one)
    _, other = sweep_of(asked(tmp_path / "three"))
    other._identity = dataclasses.replace(other._identity, seed=1)
    finish_all(other)
    assert points(other)[0] != points(one)[0]


def test_tpe_comes_near_the_best_points(tmp_path):
    _, study = sweep_of(asked(tmp_path, "tpe", trials=40, lines=["lr=log(1e-4,1e-2)", "kind={a,b}"]))
    finish_all(study, lambda trial: abs(trial.point["lr"] - 1e-3) + (trial.point["kind"] == "a"))
    late = points(study)[20:]
    assert sum(point["kind"] == "b" for point in late) > 15
    assert sum(4e-4 < point["lr"] < 2.5e-3 for point in late) > 12  # a random point is there with a probability of 0.4


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_a_trial_whose_maker_was_killed_gets_its_point(tmp_path, storage):
    _, study = sweep_of(asked(tmp_path, "tpe", trials=6, storage=storage))
    study.study.ask()  # a worker died before it drew a point, and another one in the middle
    _, other = sweep_of(asked(tmp_path, "tpe", trials=6, storage=storage))
    assert [trial.point for trial in other.trials()] == [{"seed": 3}]
    finish_all(other)
    assert [point["seed"] for point in points(other)] == [3, 5, 7] * 2
    assert all(len(point) == 4 for point in points(other)) and points(other)[1]["lr"] == points(other)[0]["lr"]


def test_a_line_of_the_journal_that_was_cut_off_is_dropped(tmp_path):
    _, study = sweep_of(asked(tmp_path, "grid", 2, ["lr={1,2}"]))
    [claimed] = study.claim_next()
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"worker')  # a full disk
    assert len(study.trials()) == 1
    study.finish(claimed, "finished", 1.0)
    finish_all(study)
    assert read_results(tmp_path).counts == {"finished": 2}
    (tmp_path / JOURNAL).write_text("{}{\n" + (tmp_path / JOURNAL).read_text())
    with pytest.raises(UserError, match=r"study\.journal is damaged"):
        read_results(tmp_path)


def test_optuna_says_nothing(tmp_path, capfd):
    _, study = sweep_of(asked(tmp_path, "tpe", trials=3, storage="sqlite"))
    finish_all(study)
    assert capfd.readouterr() == ("", "")


def test_a_database_that_cannot_be_reached_is_told_in_a_line(tmp_path):
    for url, said in {
        "postgresql+nothing://u:secret@h/d": "--storage=postgresql",
        "nothing://": "--storage=nothing",
        "not a url": "--storage=not a url",
        f"sqlite:///{tmp_path}/no/such/folder.db": "unable to open database file",
    }.items():
        with pytest.raises(UserError) as error:
            sweep_of(asked(tmp_path / "x", storage=url))
        assert said in str(error.value) and "secret" not in str(error.value) and "\n" not in str(error.value)
        shutil.rmtree(tmp_path / "x")


def test_the_best_of_a_run_is_its_last_or_its_best_evaluation():
    curve = {0: 0.1, 10: 3.0, 20: 1.0, 30: float("nan"), 40: 2.0}
    assert Objective("x", "min").of(curve) == 2.0 and Objective("x", "min", "best").of(curve) == 1.0
    assert Objective("x", "max", "best").of(curve) == 3.0
    assert Objective("x", "min").of({0: 1.0}) is None


def test_points_are_ranked_by_their_mean_over_seeds(tmp_path):
    sweep, study = sweep_of(asked(tmp_path, "grid", 6, ["lr={1,2,3}", "seed={0,1}"]))
    values = iter([1.0, 9.0, 4.0, 4.5])
    for claimed in study.claim_next(limit=4):
        study.finish(claimed, "finished", next(values))
    [claimed] = study.claim_next()
    study.finish(claimed, "failed", reason="a test")
    results = Results(sweep, study)
    assert [point.point for point in results.points] == [{"lr": 2}, {"lr": 1}, {"lr": 3}]
    assert results.points[0].estimate.value == 4.25 and results.points[0].estimate.n == 2
    assert results.best.number == 0 and results.over == 5


def test_a_claim_ends_with_the_last_process_that_has_it(tmp_path):
    path = tmp_path / "0000" / ".worker"
    held = claim(path)
    assert claim(path) is None and holder(path) == f"process {os.getpid()} on {claims.machine().partition('/')[0]}"
    with subprocess.Popen([sys.executable, "-Sc", "input()"], stdin=subprocess.PIPE, pass_fds=(held.file,)) as child:
        os.close(held.file)  # as if this process were killed
        claims._HELD.clear()
        assert claim(path) is None
        child.communicate(b"\n")
    again = claim(path)
    assert again.lost
    again.release()
    assert holder(path) is None and not claim(path).lost


def test_between_machines_the_time_of_the_last_touch_decides(tmp_path, monkeypatch):
    path = tmp_path / "0000" / ".worker"
    monkeypatch.setattr(claims.fcntl, "flock", lambda *_: None)  # locks that each machine has for itself
    here, there = claims.machine(), "there/0"
    held = claim(path)
    monkeypatch.setattr(claims, "machine", lambda: there)
    monkeypatch.setattr(claims, "_HELD", set())
    assert claim(path) is None and holder(path).endswith(here.partition("/")[0])
    os.utime(path, (time.time() - 2 * claims.STALE,) * 2)
    assert holder(path) is None
    held.touch()
    assert claim(path) is None
    os.utime(path, (time.time() - 2 * claims.STALE,) * 2)
    assert claim(path).lost


def test_the_study_is_held_by_one_machine_at_a_time(tmp_path, monkeypatch):
    lock = StudyLock(tmp_path)
    with lock, lock:
        assert (tmp_path / ".study.owner").read_text() == claims.machine()
    assert not (tmp_path / ".study.owner").exists()
    (tmp_path / ".study.owner").write_text(claims.machine())  # a process here was killed: its lock is gone
    with lock:
        pass
    (tmp_path / ".study.owner").write_text("there/0")
    monkeypatch.setattr(claims, "STUDY_STALE", 0.5)
    begin = time.monotonic()
    with lock:
        assert time.monotonic() - begin > 0.4
    assert list(tmp_path.glob(".study.owner*")) == [] and list(tmp_path.glob(".now*")) == []


def test_results_are_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    _, study = sweep_of(asked(tmp_path, trials=4))
    [claimed] = study.claim_next()
    monkeypatch.setattr(claims, "machine", lambda: "there/0")  # the trial is held by another machine
    shown = read_results(tmp_path).counts
    there = os.open

    def full(path, *how):
        if ".study" in os.fspath(path):
            raise OSError(30, "Read-only file system")
        return there(path, *how)

    monkeypatch.setattr(claims.os, "open", full)
    monkeypatch.setattr(claims, "_own_file", lambda path: tmp_path / "no" / "folder" / ("a" * 300))
    assert read_results(tmp_path).counts == shown == {"running": 1}
    with pytest.raises(OSError, match="Read-only"):
        study.finish(claimed, "finished", 1.0)


def test_a_full_disk_leaves_no_owner_of_the_study(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(claims.os, "write", full)
        with pytest.raises(OSError, match="No space"), StudyLock(tmp_path):
            pass
    assert not (tmp_path / ".study.owner").exists()
    with StudyLock(tmp_path):
        pass


def test_without_locks_a_process_does_not_begin_its_own_trials_twice(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    _, study = sweep_of(asked(tmp_path, trials=4))
    first = study.claim_next(limit=2)
    assert [each.trial.number for each in first + study.claim_next(limit=4)] == [0, 1, 2, 3]
    assert study.claim_next() == []
    assert {trial.stored.state for trial in study.trials()} == {optuna.trial.TrialState.RUNNING}
