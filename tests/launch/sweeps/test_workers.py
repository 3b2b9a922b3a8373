"""Trials as processes: their ends, kills of trials and workers, signals, and many workers at once.

Trials are processes of fake_trial.py, which resumes as a training does. The last test sweeps real trainings.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.launch.sweeps.results import as_json, read_results
from camelid.launch.sweeps.trials import misses_objective
from camelid.tests.launch.sweeps.worker_processes import sweep_of, work


def outcome(folder: Path) -> dict[int, tuple]:
    """What two sweeps have in common: state, point, value and metrics of each trial."""
    return {
        trial.number: (trial.state, trial.point, trial.value, (trial.folder / "metrics.jsonl").read_text())
        for trial in read_results(folder).trials
    }


def words(folder: Path, word: str) -> int:
    """How often the processes of trials noted a word."""
    return sum(path.read_text().count(word) for path in folder.glob("trials/*/processes"))


def wait_for(condition, seconds: float = 60.0):
    """The first true value of condition()."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)
    return found


def just_begun(folder: Path) -> list[tuple[int, int, int]]:
    """The trials that have done a step or two: number, process id of the worker, process id of the trial."""
    found = []
    for busy in folder.glob("trials/*/busy"):
        metrics = busy.with_name("metrics.jsonl")
        steps = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        if steps in (1, 2):
            worker = json.loads(busy.with_name(".worker").read_text())["pid"]
            found.append((int(busy.parent.name), worker, int(busy.read_text())))
    return sorted(found)


@pytest.fixture(scope="module")
def start_workers():
    """start_workers(asked): processes that work on a sweep. It returns their ids, and a function that waits for their
    ends and returns the exit code of each."""
    command = [sys.executable, "-m", "camelid.tests.launch.sweeps.worker_processes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def begin(asked: dict) -> tuple[list[int], Callable[[], dict[int, int]]]:
            server.stdin.write(json.dumps(asked) + "\n")
            server.stdin.flush()
            pids = json.loads(server.stdout.readline())
            return pids, lambda: {int(pid): code for pid, code in json.loads(server.stdout.readline()).items()}

        yield begin
        server.stdin.close()


def test_finished_failed_and_killed_trials_are_told_apart(tmp_path):
    fates = ["fate={finish,fail,nan,die}", "seed={1,2}"]
    results = work({"folder": tmp_path, "lines": fates, "method": "grid", "trials": 8, "options": {"workers": 8}})
    found = [(trial.point["fate"], trial.state, trial.kills) for trial in results.trials]
    assert found == [
        *[("finish", "finished", 0)] * 2,
        *[("fail", "failed", 0)] * 2,
        *[("nan", "failed", 0)] * 2,
        *[("die", "finished", 1)] * 2,
    ]
    assert results.trials[2].reason == "step 4: 5 steps in a row were skipped"
    assert results.trials[4].reason == "eval/a/loss is nan"
    assert results.trials[6].value == results.trials[0].value  # it went on where it was killed
    assert results.counts == {"finished": 4, "failed": 4}
    assert [len(point.trials) for point in results.points] == [2, 2, 2, 2]
    assert results.points[0].estimate.n == 2 and results.points[-1].estimate is None
    json.dumps(as_json(results), allow_nan=False)


def test_failed_trials_are_run_again_where_that_is_asked_for(tmp_path):
    asked = {"folder": tmp_path, "lines": ["fate={finish,fail,mistake}"], "method": "grid", "trials": 3}
    assert work(asked).counts == {"finished": 1, "failed": 2}
    assert words(tmp_path, "begin") == 3
    (tmp_path / "trials" / "0001" / "state.json").write_text("[0.0, 5]")  # what made it fail is over
    results = work(asked | {"options": {"retry_failed": True}})
    assert [(trial.number, trial.state) for trial in results.trials] == [
        (0, "finished"),
        (1, "finished"),
        (2, "failed"),
    ]
    assert words(tmp_path, "begin") == 5


def test_a_mistake_of_all_trials_ends_the_sweep_and_counts_none(tmp_path):
    asked = {"folder": tmp_path, "lines": ["fate={mistake,finish}"], "method": "grid", "trials": 2}
    with pytest.raises(
        UserError, match=r"trial 0 cannot run: data/text.jsonl: no such file \(no trial counts as failed"
    ):
        work(asked)
    assert read_results(tmp_path).counts == {"waiting": 1}
    results = work(asked | {"options": {"keep_going": True}})
    assert [trial.state for trial in results.trials] == ["failed", "finished"]


def test_an_objective_that_no_run_reports_is_refused_and_may_be_mended(tmp_path):
    asked = {"folder": tmp_path, "lines": ["lr={0.1,0.2}"], "method": "grid", "trials": 2}
    with pytest.raises(UserError, match=r"reports no eval/b/loss .*did you mean eval/a/loss\?; it reports eval/a/loss"):
        work(asked | {"metric": "eval/b/loss", "flags": ["--config.steps=40"]})
    assert work(asked).counts == {"finished": 2}
    with pytest.raises(UserError, match="--objective was eval/a/loss:min and is eval/b/loss:min"):
        work(asked | {"metric": "eval/b/loss"})


def test_an_objective_that_is_evaluated_more_seldom_than_others_is_awaited(tmp_path):
    sweep, _ = sweep_of({"folder": tmp_path, "lines": ["lr={0.1,0.2}"], "method": "grid", "trials": 2})
    sweep.run_folder(0).mkdir(parents=True)
    for first, misses in {"eval/a/loss": False, "eval/c/loss": True}.items():
        steps = [{"step": 0, first: 2.0}, *({"step": step, "eval/b/loss": 1.0} for step in (0, 2, 4, 6))]
        (sweep.run_folder(0) / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in steps))
        assert misses_objective(sweep, 0) == misses


def test_a_trial_without_the_objective_fails_where_others_have_it(tmp_path):
    asked = {"folder": tmp_path, "lines": ["fate={finish,nameless}"], "method": "grid", "trials": 2}
    results = work(asked | {"flags": ["--config.steps=5"]})
    assert [trial.state for trial in results.trials] == ["finished", "failed"]
    assert results.trials[1].reason.startswith("the run reports no eval/a/loss after its first step; ")


def test_hyperband_ends_trials_that_do_worse_and_they_are_saved(tmp_path):
    prune = {"min_evaluations": 4, "reduction": 2}  # one rung, at which the better half goes on
    asked = {"folder": tmp_path, "lines": ["lr={0.01,0.5,0.6,0.005}"], "method": "grid", "trials": 4, "prune": prune}
    results = work(asked | {"flags": ["--config.pause=0.1", "--config.steps=7"]})
    assert [trial.state for trial in results.trials] == ["finished", "pruned", "pruned", "finished"]
    steps = [len((trial.folder / "metrics.jsonl").read_text().splitlines()) for trial in results.trials]
    assert steps[0] == steps[3] == 7 and max(steps[1:3]) < 7
    assert results.best.number == 3 and results.trials[1].reason.startswith("after ")
    assert (results.trials[1].folder / "state.json").exists() and words(tmp_path, "end") == 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[int, tuple]:
    """The outcome of the sweep that the tests below disturb."""
    folder = tmp_path_factory.mktemp("undisturbed")
    work(SWEEP | {"folder": folder, "trials": 16, "options": {"workers": 8}})
    return outcome(folder)


SWEEP = {"lines": ["lr=log(0.1,1)", "seed={0,1,2}"], "method": "random", "flags": ["--config.pause=0.05"]}


def test_killed_workers_and_trials_change_nothing(undisturbed, start_workers, tmp_path):
    asked = SWEEP | {"folder": os.fspath(tmp_path), "trials": 12, "processes": 4, "flags": ["--config.pause=0.4"]}
    pids, wait = start_workers(asked)
    running = wait_for(lambda: len(found := just_begun(tmp_path)) >= 3 and found)
    (first, worker, trial), (second, other, _), (third, _, last) = running[:3]
    os.kill(worker, signal.SIGKILL)  # a worker and its trial
    os.kill(trial, signal.SIGKILL)
    os.kill(other, signal.SIGKILL)  # a worker whose trial trains on: nobody may begin it meanwhile
    os.kill(last, signal.SIGKILL)  # a trial whose worker is there
    assert wait() == {pid: -signal.SIGKILL if pid in (worker, other) else 0 for pid in pids}
    assert words(tmp_path, "twice") == 0
    assert outcome(tmp_path) == {number: undisturbed[number] for number in range(12)}
    work(asked | {"folder": tmp_path, "trials": 16, "options": {"workers": 4}})
    assert outcome(tmp_path) == undisturbed
    assert words(tmp_path, "begin") in (18, 19)  # two were killed, and the third was asked again whether it is complete
    assert {trial.number: trial.kills for trial in read_results(tmp_path).trials if trial.kills}.keys() == {
        first,
        second,
        third,
    }


def test_signals_and_stop_save_trials_and_the_terminal_may_close(undisturbed, start_workers, tmp_path):
    asked = SWEEP | {"folder": os.fspath(tmp_path), "trials": 16, "options": {"workers": 2}}
    for how in (signal.SIGTERM, "stop"):
        [pid], wait = start_workers(asked)
        wait_for(lambda: len(list(tmp_path.glob("trials/*/busy"))) == 2)
        begun = words(tmp_path, "begin")
        os.kill(pid, signal.SIGHUP)
        wait_for(lambda begun=begun: words(tmp_path, "begin") > begun)  # it goes on
        assert {trial.state for trial in read_results(tmp_path).trials} <= {"finished", "running"}
        if how == "stop":
            assert main(["sweep", "--stop", f"--workdir={tmp_path}"]) == 0
        else:
            os.kill(pid, how)
        assert wait() == {pid: 143}
        said = (tmp_path / "said").read_text()
        name = "--stop" if how == "stop" else "SIGTERM"
        assert re.search(
            rf"camelid: {name} ended the sweep: \d+ of 16 trials are over, those that ran are saved; the", said
        )
        assert read_results(tmp_path).counts.keys() <= {"finished", "waiting"}
        assert "waiting" in (tmp_path / "report.html").read_text()
        assert words(tmp_path, "begin") == words(tmp_path, "end")
    work(asked | {"folder": tmp_path, "options": {"workers": 8}})
    assert outcome(tmp_path) == undisturbed
    assert all(trial.kills == 0 for trial in read_results(tmp_path).trials)
