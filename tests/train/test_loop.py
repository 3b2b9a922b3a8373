"""The loop with an update of a few lines: what is reported when, evaluated when, saved when, and how it ends."""

import errno
import functools
import json
import os
import re
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from camelid.checkpoints.saving import NotSaved
from camelid.data.packed_rows import DTYPES
from camelid.errors import UserError
from camelid.model.sharding import BATCH, make_mesh
from camelid.train import loop as loop_module
from camelid.train.goodput import Clock
from camelid.train.lengths import Lengths
from camelid.train.loop import Evaluation, Interrupted, Loop, Profile, TrainingStopped, check_streak, profiler
from camelid.train.means import Means
from camelid.train.stopping import EarlyStopping, StoppingSettings

TOKENS = [8, 1, 4, 8, 2, 8, 8, 3, 8, 5, 8, 8]  # trained on, by step


class Steps:
    """Batches that hold their step, and as many trained tokens as TOKENS says."""

    batch_size, length = 2, 4
    shapes = {name: ((2, 4), dtype) for name, dtype in DTYPES.items()}

    def rows(self, step, rows):
        batch = {name: np.full((2, 4), step, dtype) for name, dtype in DTYPES.items()}
        batch["loss_mask"] = (np.arange(8) < TOKENS[step]).astype(np.float32).reshape(2, 4)
        return {name: x[rows] for name, x in batch.items()}

    def epochs(self, step):
        return {"text": step / 4}


@jax.jit
def update(state, batch):
    """The loss of step n is n; from `state["bad"]` on, steps are skipped."""
    step = state["step"]
    skip = step >= state["bad"]
    streak = jnp.where(skip, state["streak"] + 1, 0)
    metrics = {
        "loss": jnp.where(skip, jnp.nan, batch["tokens"][0, 0].astype(jnp.float32)),
        "grad_norm": jnp.float32(1),
        "tokens": jnp.sum(batch["loss_mask"]),
        "lr": 0.5**step,
        "skipped": streak,
        "streak": streak,
    }
    return {**state, "step": step + 1, "streak": streak, "params": state["params"] + 1}, metrics


class Log:
    """Stands for the reporter and the checkpoints, and writes down what happens in which order."""

    seconds_blocked = 0.25

    def __init__(self):
        self.events = []
        self.reports = {}
        self.saved, self.measured, self.kept, self.temporary, self.again = {}, {}, {}, {}, {}
        self.due_at = ()
        self.stop_at, self.signal = None, signal.SIGTERM

    def write(self, step, metrics):
        self.events.append(("report", step))
        self.reports.setdefault(step, {}).update(metrics)

    def text(self, step, name, rows):
        self.events.append(("text", step, name, rows))

    def due(self, step):
        return step in self.due_at

    def save(self, step, state, manifest, *, force, metrics=None, keep_others=False, temporary=False, again=False):
        self.events.append(("save", step))
        self.temporary[step], self.again[step] = temporary, again
        self.saved[step] = (int(state["step"]), manifest, force)
        self.measured[step], self.kept[step] = metrics, keep_others

    def wait(self):
        self.events.append(("wait",))

    def update(self, state, batch):
        step = int(state["step"])
        self.events.append(("update", step))
        if step == self.stop_at:
            os.kill(os.getpid(), self.signal)
        return update(state, batch)


def run(
    tmp_path, *, start=0, total=10, log=1, bad=100, evaluations=(), step=None, profile=(None, 1), check=None,
    observer=None, finish=None, loop=None, **changes,
):  # fmt: skip
    mesh = make_mesh({"fsdp": 2}, jax.devices()[:2])
    observer = observer or Log()
    observer.stop_at = changes.pop("stop_at", None)
    state = {"params": jnp.float32(start), "step": jnp.int32(start), "bad": jnp.int32(bad), "streak": jnp.int32(0)}
    update = step or observer.update
    with Loop(
        jax.device_put(state | changes, NamedSharding(mesh, PartitionSpec())),
        Steps(),
        NamedSharding(mesh, PartitionSpec(BATCH, "context")),
        Lengths(total, log, evaluate=total),
        check=check or check_streak(3),
        finish=finish,
        evaluations=evaluations,
        reporter=observer,
        checkpoints=observer,
        manifest={"run": 1},
        flops_per_token=1.0,
        profiler=profiler(tmp_path / "profile", Profile(*profile)),
        **(loop or {}),
    ) as steps:
        for batch in steps:
            steps.state, steps.metrics = update(steps.state, batch)
    return steps.state, observer


def losses(observer):
    return {step: values["train/loss"] for step, values in observer.reports.items() if "train/loss" in values}


def test_each_step_is_reported_once_in_order_and_one_step_late(tmp_path):
    state, log = run(tmp_path, total=4)
    assert losses(log) == {1: 0.0, 2: 1.0, 3: 2.0, 4: 3.0}  # the loss of step n stands under n + 1 updates
    assert [event for event in log.events if event[0] != "save"] == [
        *[("update", 0), ("update", 1), ("report", 1), ("update", 2), ("report", 2), ("update", 3), ("report", 3)],
        *[("report", 4), ("wait",)],
    ]
    assert (int(state["step"]), float(state["params"])) == (4, 4.0)


def test_means_are_over_all_tokens_of_the_report_and_counters_are_the_last(tmp_path):
    _, log = run(tmp_path, total=8, log=3)
    groups = {3: [0, 1, 2], 6: [3, 4, 5], 8: [6, 7]}
    expected = {end: np.average(steps, weights=[TOKENS[s] for s in steps]) for end, steps in groups.items()}
    assert losses(log) == pytest.approx(expected)
    assert [log.reports[end]["train/lr"] for end in groups] == [0.5**2, 0.5**5, 0.5**7]
    assert [log.reports[end]["train/tokens"] for end in groups] == [4, 8, 3]
    assert [log.reports[end]["epochs/text"] for end in groups] == [0.75, 1.5, 2.0]


def test_a_resumed_run_reports_and_saves_from_its_step_on(tmp_path):
    state, log = run(tmp_path, start=7, total=10, log=2)
    assert losses(log) == pytest.approx({8: 7, 10: np.average([8, 9], weights=[8, 5])})
    assert list(log.saved) == [8, 9, 10]
    assert int(state["step"]) == 10


def test_a_run_that_is_done_does_nothing(tmp_path):
    state, log = run(tmp_path, start=5, total=5)
    assert int(state["step"]) == 5
    assert log.events == [("wait",)]


def test_skipped_steps_are_left_out_of_the_means(tmp_path):
    _, log = run(tmp_path, total=6, log=3, bad=4)
    assert losses(log)[6] == 3.0  # of steps 3, 4, 5
    assert (log.reports[6]["train/skipped"], log.reports[6]["train/streak"]) == (2, 2)


def test_too_many_skips_in_a_row_stop_the_run_with_the_step_and_how_to_see_its_batch(tmp_path):
    with pytest.raises(TrainingStopped, match=r"step 6: 3 steps in a row were skipped \(loss nan") as error:
        run(tmp_path, bad=4)
    assert "camelid data show --step=6" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_step_is_offered_to_the_checkpoints_and_the_last_is_forced(tmp_path):
    _, log = run(tmp_path, total=3)
    assert log.saved == {1: (1, {"run": 1}, False), 2: (2, {"run": 1}, False), 3: (3, {"run": 1}, True)}


def test_evaluations_run_before_the_first_step_on_their_cadence_and_after_the_last(tmp_path):
    seen = []

    def measure(params):
        seen.append(float(params))
        return {"score": float(params) / 10}, [{"question": "1 + 1", "answer": "2"}] if params == 4 else []

    _, log = run(tmp_path, total=10, log=5, evaluations=[Evaluation("quiz", 4, measure)])
    assert seen == [0, 4, 8, 10]
    found = {step: r["eval/quiz/score"] for step, r in log.reports.items() if "eval/quiz/score" in r}
    assert found == {0: 0.0, 4: 0.4, 8: 0.8, 10: 1.0}
    assert [event for event in log.events if event[0] == "text"] == [
        ("text", 4, "quiz", [{"question": "1 + 1", "answer": "2"}])
    ]
    assert losses(log) == pytest.approx(
        {end: np.average(range(end - 5, end), weights=TOKENS[end - 5 : end]) for end in (5, 10)}
    )


def test_evaluations_take_the_moving_average_where_there_is_one(tmp_path):
    seen = []
    evaluation = Evaluation("quiz", 10, lambda params: (seen.append(float(params)), ({}, []))[1])
    run(tmp_path, total=2, evaluations=[evaluation], ema=jnp.float32(77))
    assert seen == [77, 77]


@pytest.mark.parametrize("log_steps", [1, 3])
def test_sigterm_saves_and_stops_at_the_end_of_the_step(tmp_path, log_steps):
    before = signal.getsignal(signal.SIGTERM)
    evaluation = Evaluation("quiz", 4, lambda params: pytest.fail("no time for evaluations") if params else ({}, []))
    log = Log()
    with pytest.raises(Interrupted, match="SIGTERM ended the run at step 4 of 10; it is saved") as left:
        run(tmp_path, total=10, log=log_steps, stop_at=3, evaluations=[evaluation], observer=log)
    assert left.value.number == signal.SIGTERM
    assert log.saved[4] == (4, {"run": 1, "missed": ["quiz"]}, True) and log.temporary[4]
    assert losses(log) == (
        {1: 0.0, 2: 1.0, 3: 2.0, 4: 3.0} if log_steps == 1 else {3: np.average([0, 1, 2], weights=[8, 1, 4])}
    )
    assert log.events[-1] == ("wait",)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_terminal_that_is_closed_saves_and_is_no_failure_of_the_output_that_went_with_it(tmp_path):
    """Nor is Ctrl-C in `camelid train | tee log`, which ends tee first."""

    class Gone(Log):
        def write(self, step, metrics):
            super().write(step, metrics)
            if step >= 3:
                raise OSError(errno.EIO, "Input/output error")

    log = Gone()
    log.signal = signal.SIGHUP
    with pytest.raises(Interrupted, match="SIGHUP ended the run at step 3 of 10; it is saved") as left:
        run(tmp_path, stop_at=2, observer=log)
    assert left.value.number == signal.SIGHUP and log.saved[3] == (3, {"run": 1}, True)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        log = Log()
        log.signal = signal.SIGHUP
        run(tmp_path, total=4, stop_at=2, observer=log)
        assert log.saved[4][0] == 4
    finally:
        signal.signal(signal.SIGHUP, ignored)


def test_ctrl_c_saves_and_says_so_and_a_second_one_ends_the_run_at_once(tmp_path, capfd):
    log = Log()
    log.signal = signal.SIGINT
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="Ctrl-C ended the run at step 3 of 10; it is saved") as left:
        run(tmp_path, stop_at=2, observer=log)
    assert left.value.number == signal.SIGINT and log.saved[3] == (3, {"run": 1}, True)
    assert "ending after this step, saved" in capfd.readouterr().err

    def pressed_twice(state, batch):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return update(state, batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, step=pressed_twice)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_run_that_a_check_stops_has_saved_and_reported_all_its_steps_and_deleted_nothing(tmp_path):
    def check(step, metrics):
        if step == 4:
            raise TrainingStopped("step 4: enough")

    log = Log()
    with pytest.raises(TrainingStopped, match=r"step 4: enough \(the state of step 6 is saved\)"):
        run(tmp_path, log=3, check=check, observer=log)  # metrics come a step late: step 5 has been taken
    assert log.saved[6] == (6, {"run": 1}, True) and log.kept == dict.fromkeys(range(1, 6), False) | {6: True}
    assert losses(log) == pytest.approx(
        {3: np.average([0, 1, 2], weights=TOKENS[:3]), 6: np.average([3, 4, 5], weights=TOKENS[3:6])}
    )
    assert log.events[-1] == ("wait",)


def test_a_state_that_is_not_finite_is_never_saved_for_a_run_that_stops(tmp_path):
    def spoil(state, batch):
        state, metrics = update(state, batch)
        return state | {"params": jnp.where(state["step"] > 5, jnp.inf, state["params"])}, metrics

    def check(step, metrics):
        if step == 5:
            raise TrainingStopped("step 5: enough")

    log = Log()
    said = r"step 5: enough \(the parameters of step 7 are not finite and not saved; the last checkpoint stays\)"
    with pytest.raises(TrainingStopped, match=said):
        run(tmp_path, step=jax.jit(spoil), check=check, observer=log)
    assert 7 not in log.saved


def test_a_run_whose_reports_cannot_be_written_saves_before_it_ends(tmp_path):
    class Full(Log):
        def write(self, step, metrics):
            if step == 3:
                raise OSError(28, "No space left on device")
            super().write(step, metrics)

    log = Full()
    with pytest.raises(OSError, match=r"No space left on device \(the state of step 4 is saved\)"):
        run(tmp_path, observer=log)
    assert log.saved[4] == (4, {"run": 1}, True)


def test_a_run_whose_reward_function_fails_saves_before_it_ends(tmp_path):
    def fails(state, batch):
        if int(state["step"]) == 5:
            raise UserError("reward odd: gave nan")
        return update(state, batch)

    log = Log()
    with pytest.raises(UserError, match=r"reward odd: gave nan \(the state of step 5 is saved\)"):
        run(tmp_path, step=fails, observer=log)
    assert log.saved[5] == (5, {"run": 1}, True) and losses(log)[5] == 4.0


@pytest.mark.parametrize(("failures", "says"), [(1, "is saved"), (2, "could not be saved either")])
def test_a_run_whose_checkpoint_could_not_be_written_tries_once_more_before_it_ends(tmp_path, failures, says):
    class Full(Log):
        failed = 0

        def save(self, step, *args, **kwargs):
            if step >= 3 and self.failed < failures:
                self.failed += 1
                raise NotSaved("the checkpoint of step 2 was not written")
            super().save(step, *args, **kwargs)

    log = Full()
    with pytest.raises(OSError, match=rf"step 2 was not written \(the state of step 3 {says}\)"):
        run(tmp_path, observer=log)
    assert (3 in log.saved) == (failures == 1)


def test_what_an_evaluation_found_goes_with_the_checkpoint_of_its_step(tmp_path):
    evaluation = Evaluation("quiz", 2, lambda params: ({"score": float(params)}, []))
    _, log = run(tmp_path, total=4, evaluations=[evaluation])
    assert log.measured == {1: {}, 2: {"eval/quiz/score": 2.0}, 3: {}, 4: {"eval/quiz/score": 4.0}}


def test_the_metrics_of_a_step_are_read_before_it_is_saved_and_the_sums_of_the_next_report_with_it(tmp_path):
    def killed(at):
        """The loop's sums in the checkpoint of a step, where the run is to be resumed."""
        means, log = Means(), Log()
        log.due_at = (at,)

        def save(step, state, manifest, **_):
            if step == at:
                log.events.append("saved")
                log.counters = json.loads(json.dumps(means.counters))

        log.save = save
        run(tmp_path, total=7, log=3, bad=5, observer=log, loop={"means": means})
        return log.counters

    _, straight = run(tmp_path, total=7, log=3, bad=5)
    for at in range(1, 7):
        means, log = Means(), Log()
        means.restore(killed(at))
        run(tmp_path, start=at, total=7, log=3, bad=5, observer=log, loop={"means": means}, streak=max(0, at - 5))
        np.testing.assert_equal(losses(log), {step: loss for step, loss in losses(straight).items() if step > at})
        for step, values in log.reports.items():
            same = {name: x for name, x in values.items() if "second" not in name and "memory" not in name}
            np.testing.assert_equal(same, {name: straight.reports[step][name] for name in same})


def test_a_run_ends_early_as_at_its_last_step(tmp_path):
    scores = [1.0, 3.0, 2.0, 2.5, 4.0]
    quiz = Evaluation("quiz", 2, lambda params: ({"score": scores[int(params) // 2]}, []))
    others = []
    rare = Evaluation("rare", 100, lambda params: (others.append(float(params)), ({"x": 1.0}, []))[1])
    stopping = EarlyStopping(StoppingSettings("eval/quiz/score", mode="max", patience=2))
    finish = lambda state: state | {"bad": jnp.int32(77)}  # noqa: E731
    state, log = run(tmp_path, total=10, log=4, evaluations=[quiz, rare], finish=finish, loop={"stopping": stopping})
    assert (int(state["step"]), int(state["bad"]), stopping.ended) == (6, 77, True)
    assert others == [0.0, 6.0] and losses(log)[6] == pytest.approx(np.average([4, 5], weights=TOKENS[4:6]))
    assert log.saved[6][2] and not log.temporary[6]
    assert log.measured[6] == {"eval/quiz/score": 2.5, "eval/rare/x": 1.0} and log.events[-1] == ("wait",)


def test_evaluations_that_a_signal_left_out_are_made_when_the_run_resumes(tmp_path):
    seen = []
    quiz = Evaluation("quiz", 2, lambda params: (seen.append(float(params)), ({"score": float(params)}, []))[1])
    other = Evaluation("other", 5, lambda params: ({}, []))
    with pytest.raises(Interrupted):
        run(tmp_path, total=8, stop_at=3, evaluations=[quiz, other], observer=(first := Log()))
    assert first.saved[4][1] == {"run": 1, "missed": ["quiz"]} and seen == [0, 2]
    _, log = run(tmp_path, start=4, total=8, evaluations=[quiz, other], loop={"missed": ["quiz"]})
    assert seen == [0, 2, 4, 6, 8]
    assert log.again[4] and log.saved[4] == (4, {"run": 1}, False) and log.measured[4] == {"eval/quiz/score": 4.0}
    assert list(log.saved) == [4, 5, 6, 7, 8] and log.events.index(("save", 4)) < log.events.index(("update", 4))


def test_what_the_manifest_has_to_hold_is_asked_at_each_save(tmp_path):
    numbers = iter(range(100))
    _, log = run(tmp_path, total=3, loop={"notes": lambda: {"number": next(numbers)}})
    assert [manifest for _, manifest, _ in log.saved.values()] == [{"run": 1, "number": n} for n in range(3)]


def test_compiling_is_told_once_and_when_a_later_step_compiles_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop_module, "HINT_AFTER", 0.05)
    monkeypatch.setattr(loop_module, "COMPILED_AGAIN", 0.0)

    @functools.partial(jax.jit, static_argnums=2)
    def update_anew(state, batch, late):
        time.sleep(0.1)  # while it is traced
        return update(state, batch)

    clock = Clock()
    with clock.watching_compiler():
        run(
            tmp_path,
            total=12,
            step=lambda state, batch: update_anew(state, batch, int(state["step"]) >= 5),
            loop={"clock": clock},
        )
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("camelid: compiling the step, once; this may take minutes")
    assert [re.sub(r"\d+\.\d", "N", line) for line in said[1:]] == [
        "camelid: compiling, once: N s",
        "camelid: compiling, for step 5: N s",
    ]
    seconds = clock.seconds()
    assert seconds["compile"] > 0.2 and clock.step == 12
    assert seconds["training"] + seconds["stall"] < 10 and {"data", "checkpoint"} < {k for k, v in seconds.items() if v}


def test_the_last_state_is_finished_before_it_is_saved(tmp_path):
    state, log = run(tmp_path, total=3, finish=lambda state: state | {"step": state["step"] * 100})
    assert [saved for saved, _, _ in log.saved.values()] == [1, 2, 300] and int(state["step"]) == 300


def test_sigterm_in_the_last_step_lets_the_run_end_as_usual(tmp_path):
    seen = []
    evaluation = Evaluation("quiz", 4, lambda params: (seen.append(float(params)), ({}, []))[1])
    state, log = run(tmp_path, total=3, stop_at=2, evaluations=[evaluation])
    assert int(state["step"]) == 3
    assert seen == [0, 3]
    assert log.saved[3][2]


def test_an_update_that_copies_from_the_host_is_refused(tmp_path):
    def careless(state, batch):
        return update(state, batch | {"loss_mask": np.ones((2, 4), np.float32)})

    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        run(tmp_path, step=careless)


def test_an_error_in_reading_data_reaches_the_caller(tmp_path):
    with pytest.raises(IndexError):
        run(tmp_path, total=len(TOKENS) + 2)


def test_the_steps_asked_for_are_traced_by_the_profiler(tmp_path):
    run(tmp_path, total=4, profile=(1, 2))
    assert [path.suffixes for path in (tmp_path / "profile").rglob("*.xplane.pb")] == [[".xplane", ".pb"]]


def test_a_report_tells_speed_memory_and_waiting(tmp_path):
    _, log = run(tmp_path, total=2)
    values = {name.removeprefix("train/"): value for name, value in log.reports[2].items()}
    assert values["tokens_per_second"] == pytest.approx(TOKENS[1] / values["seconds_per_step"], rel=1e-6)
    assert values["tokens_per_second_per_device"] == pytest.approx(values["tokens_per_second"] / 8)
    assert values["host_memory_peak_bytes"] > 50e6
    assert values["seconds_waiting_for_checkpoints"] == 0.25
    assert values["seconds_waiting_for_data"] >= 0


def test_compilation_and_evaluation_do_not_count_as_training_time(tmp_path):
    def slow_at_first(state, batch):
        if int(state["step"]) == 0:
            time.sleep(0.5)
        return update(state, batch)

    evaluation = Evaluation("quiz", 1, lambda params: (time.sleep(0.2), ({}, []))[1])
    _, log = run(tmp_path, total=4, log=2, step=slow_at_first, evaluations=[evaluation])
    assert log.reports[2]["train/seconds_per_step"] < 0.2
    assert log.reports[4]["train/seconds_per_step"] < 0.2
