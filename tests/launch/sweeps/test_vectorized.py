"""Trials that share a program and its process."""

import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from camelid.checkpoints import language_model
from camelid.errors import UserError
from camelid.launch.cli import main
from camelid.launch.sweeps import vectorized
from camelid.launch.sweeps.results import read_results
from camelid.launch.sweeps.vectorized import Programs, read_plans
from camelid.tests.conftest import CONFIG
from camelid.train.run_record import read_record


@pytest.fixture
def begin(corpus, monkeypatch, tmp_path):
    """begin(programs, worker, number, **point): a trial that a worker begins. Programs are no processes, and end when
    they get exit codes; `begin.programs` has them."""
    began = []

    class Fake:
        def __init__(self, sweep, plan, members, environment):
            self.plan, self.trained, self.codes = list(plan), [member.number for member in members], None
            began.append(self)
            for member in members:
                member.program = self

        def exit_code(self, number=None):
            return None if self.codes is None else self.codes.get(number, 0)

    monkeypatch.setattr(vectorized, "Program", Fake)
    sweep = SimpleNamespace(
        folder=tmp_path,
        config_path=f"{CONFIG}:root={corpus}",
        overrides=(),
        trial_folder=lambda number: tmp_path / "trials" / f"{number:04d}",
    )

    def make(programs, worker, number, **point):
        named = {name.replace("__", "."): value for name, value in point.items()}
        trial = SimpleNamespace(number=number, point=named, stored=SimpleNamespace(intermediate_values={}))
        claimed = SimpleNamespace(trial=trial, lock=SimpleNamespace(touch=lambda: None))
        return programs(sweep, claimed, worker)

    make.programs, make.sweep = began, sweep
    return make


def test_trials_of_equal_programs_are_put_together_and_a_worker_has_one_program_at_a_time(begin):
    programs, one, two = Programs(3), {}, {}
    first = [begin(programs, one, k, seed=k, model__n_layers=1 + k % 2) for k in range(5)]
    second = [begin(programs, two, k, optim__lr=1e-3 * k, model__n_layers=1) for k in (5, 6)]
    assert [member.exit_code() for member in first + second] == [None] * 7
    assert [program.plan for program in begin.programs] == [[0, 2, 4], [5, 6]]
    begin.programs[0].codes = {2: 1}
    assert [member.exit_code() for member in first] == [0, None, 1, None, 0]
    assert [program.plan for program in begin.programs] == [[0, 2, 4], [5, 6], [1, 3]]
    assert list(read_plans(begin.sweep)) == [0, 2, 4, 1, 3, 5, 6]


def test_a_trial_that_goes_on_has_its_place_in_the_same_program(begin):
    worker = {}
    programs = Programs(4)
    members = [begin(programs, worker, k, seed=k) for k in (1, 2, 3)]
    assert members[0].exit_code() is None
    later = Programs(2)  # of another command, after the first was killed
    members = [begin(later, worker, k, seed=k) for k in (3, 2, 5, 4)]
    assert members[0].exit_code() is None
    begin.programs[1].codes = {}
    assert [member.exit_code() for member in members] == [0, 0, None, None]
    assert [program.plan for program in begin.programs] == [[1, 2, 3], [1, 2, 3], [4, 5]]
    assert [program.trained for program in begin.programs] == [[1, 2, 3], [3, 2], [4, 5]]
    plan = begin.sweep.folder / "programs" / "0001.json"
    for damaged in ("", "[1]", '{"1": 2}', '{"a": {}}', "\0"):
        plan.write_text(damaged)
        with pytest.raises(UserError, match=r"0001\.json is damaged .* delete it"):
            read_plans(begin.sweep)


def test_a_trial_whose_settings_no_program_has_fails_by_itself_and_one_that_has_not_begun_ends_at_once(begin):
    programs, worker = Programs(2), {}
    members = [begin(programs, worker, 0, optim__offload=True), begin(programs, worker, 1, seed=1)]
    waits = begin(programs, worker, 2, model__n_layers=1)
    assert [member.exit_code() for member in members] == [2, None]
    assert "--vmap: config.optim.offload = True" in members[0].last_line()
    waits.end("stopped")
    assert waits.exit_code() == 143 and [program.plan for program in begin.programs] == [[1]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vmap=1"], "--vmap 1: give 2 or more"),
        (["--vmap", "--prune=hyperband"], "leave out --prune, or --vmap"),
        (["--vmap", "--config.optim.offload=True"], "--vmap: config.optim.offload = True"),
    ],
)
def test_what_programs_cannot_do_is_refused_before_anything_is_made(corpus, tmp_path, capsys, arguments, words):
    space = ["--space=optim.lr={0.1,0.2} seed={1,2}", "--objective=eval/heldout/text/loss:min"]
    command = ["sweep", f"--config={CONFIG}:root={corpus}", *space, f"--workdir={tmp_path / 'sweep'}", *arguments]
    assert main(command) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "sweep").exists()


def test_a_sweep_of_programs_gives_ordinary_runs_and_outlives_a_kill(corpus, metrics, monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    folder = tmp_path / "sweep"

    def kill():
        run = folder / "trials" / "0001"
        while not (run / "metrics.jsonl").exists() or max(metrics(run), default=0) < 3:
            time.sleep(0.05)
        os.kill(json.loads((run / "heartbeat.json").read_text())["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    space = ["--space=seed={1,2}", "--objective=eval/heldout/text/loss:min", "--vmap"]
    lengths = ["--config.total_steps=8", "--config.checkpoint.every_steps=2"]
    assert main(["sweep", f"--config={CONFIG}:root={corpus}", *lengths, *space, f"--workdir={folder}"]) == 0
    killer.join()
    results = read_results(folder)
    assert [(trial.state, trial.kills) for trial in results.trials] == [("finished", 1)] * 2
    assert results.trials[0].value != results.trials[1].value
    assert list(read_plans(results.sweep)) == [0, 1]
    for trial in results.trials:
        record = read_record(trial.folder)
        assert [attempt.exit for attempt in record.attempts] == ["lost", "finished"]
        assert record.attempts[-1].command[1] == "train" and f"--workdir={trial.folder}" in record.attempts[-1].command
        assert sorted(metrics(trial.folder)) == list(range(9))
        assert "step 8/8" in (trial.folder / "log.txt").read_text()
        assert language_model.load(trial.folder).step == 8
