"""Reward functions of every form: how they are called, what they may give, and how their failures are told."""

import asyncio
import contextlib
import decimal
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.errors import UserError
from camelid.rlhf import reward_functions
from camelid.rlhf.reward_functions import RewardFunction, check_functions, find_reward_function, of_callable, score_all
from camelid.rlhf.rewards import RewardSource
from camelid.settings.sections import read


def scores(function, answers, records=None, **settings):
    """The scores of answers by one function, as a list."""
    form = of_callable(function, "f")
    form = RewardFunction(form.call, form.batched, form.awaited, **settings)
    return score_all({"f": form}, records or [{}] * len(answers), answers)["f"].tolist()


async def of_length(record, answer):
    await asyncio.sleep(0.001 * (5 - len(answer)))  # the first answers are scored last
    return len(answer)


async def of_lengths(records, answers):
    return [len(answer) for answer in answers]


class Scorer:
    def __call__(self, record, answer):
        return len(answer)

    async def later(self, record, answer):
        return len(answer)


FORMS = {
    "one": lambda record, answer: len(answer),
    "all": lambda records, answers: np.array([len(answer) for answer in answers]),
    "on the device": lambda records, answers: jnp.array([len(answer) for answer in answers]),
    "a generator": lambda records, answers: (len(answer) for answer in answers),
    "async": of_length,
    "async, all": of_lengths,
    "an object": Scorer(),
    "an async method": Scorer().later,
    "with a default": lambda record, answer, unit=1, *more, **others: len(answer) * unit,
    "partial": functools.partial(lambda record, answer, unit: len(answer) * unit, unit=1),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_scores_all_answers_in_their_order(form):
    assert scores(FORMS[form], ["a", "bbb", "", "cc"]) == [1.0, 3.0, 0.0, 2.0]
    assert scores(FORMS[form], []) == []


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (3, "is not a callable object"),
        (lambda prompt, text: 1, r"it takes \(prompt, text\); name its parameters \(record, answer\)"),
        (lambda answer, record: 1, "it takes"),
        (lambda record, answers: 1, "it takes"),
        (lambda record: 1, "too many positional arguments"),
        (lambda record, answer, key: 1, "missing a required argument: 'key'"),
        (lambda *arguments: 1, "it takes"),
        (max, "no signature|signature"),
    ],
)
def test_a_callable_of_another_form_is_refused_with_the_two_forms(function, why):
    with pytest.raises(
        UserError, match=rf"^config\.x cannot be called as reward\(record, .* or reward\(records, .*{why}"
    ):
        of_callable(function, "config.x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None, "0.7", 1e39, [], {}, np.ones(1), 1j])
def test_a_function_that_gives_no_finite_number_stops_with_the_answer(bad):
    says = f"reward f: gave {re.escape(repr(bad))} for answer 'no'; it must be a finite number"
    with pytest.raises(UserError, match=says):
        scores(lambda record, answer: bad if answer == "no" else 1, ["yes", "no"])
    with pytest.raises(UserError, match=says):
        scores(lambda records, answers: [bad if answer == "no" else 1 for answer in answers], ["yes", "no"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([1.0], "gave 1 scores for 2 answers; give one for each"),
        (np.ones((2, 1)), "gave array.* for answer 'a'; it must be a finite number"),
        (np.float32(1), "gave .* for 2 answers, the first 'a'; it must be a sequence"),
        ({"a": 1, "b": 2}, "must be a sequence"),
        ({1, 2}, "must be a sequence"),
        ("12", "must be a sequence"),
        (None, "gave None for 2 answers"),
    ],
)
def test_a_function_of_all_answers_gives_a_number_for_each(given, says):
    with pytest.raises(UserError, match=f"reward f: .*{says}"):
        scores(lambda records, answers: given, ["a", "b"])


def test_a_function_sees_the_record_and_the_text_in_that_order():
    seen, records = [], [{"reference": "a"}, {"reference": "b"}]
    scores(lambda record, answer: seen.append((record, answer)) or 0.0, ["x", "y"], records)
    scores(lambda records, answers: seen.append((records, answers)) or [0, 0], ["x", "y"], records)
    assert seen == [({"reference": "a"}, "x"), ({"reference": "b"}, "y"), (records, ["x", "y"])]


def test_what_a_function_writes_into_a_record_is_gone_for_the_next_answer():
    def one(record, answer):
        record["messages"].append(answer)
        return len(record["messages"])

    record = {"messages": ["question"]}
    assert scores(one, ["a", "b", "c"], [record] * 3) == [2.0, 2.0, 2.0]
    assert scores(lambda records, answers: map_list(one, records, answers), ["a", "b"], [record] * 2) == [2.0, 2.0]
    assert record == {"messages": ["question"]}


@pytest.mark.parametrize("bad", [10**39, 10**400, decimal.Decimal("sNaN")])
def test_a_number_that_is_no_float_is_refused(bad):
    with pytest.raises(UserError, match=r"reward f: gave .* for answer 'no'; it must be a finite number"):
        scores(lambda record, answer: bad, ["no"])


def map_list(function, *arguments):
    return list(map(function, *arguments))


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_function_that_exits_is_a_mistake_and_no_end(code):
    async def leave(record, answer):
        sys.exit(code)

    for function in (leave, lambda record, answer: sys.exit(code)):
        with pytest.raises(UserError, match=f"reward f: SystemExit: {code} .*for answer 'no'"):
            scores(function, ["no"])


def test_what_a_users_function_or_module_raises_is_told_with_its_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_broken.py").write_text("x = 1\nraise RuntimeError('half\\nwritten')\n")
    (tmp_path / "mine_spelt.py").write_text("def reward(record, answer)\n    return 1\n")
    with pytest.raises(UserError, match=r"no function .* \(RuntimeError: half written \(.*mine_broken\.py, line 2\)\)"):
        find_reward_function("mine_broken:reward", "config.here")
    with pytest.raises(UserError, match=r"no function .* \(SyntaxError: .*mine_spelt\.py, line 1"):
        find_reward_function("mine_spelt:reward", "config.here")
    (tmp_path / "mine_fragile.py").write_text(
        "\ndef one(record, answer):\n    return record['gold'] == answer\n"
        "\nasync def later(record, answer):\n    return one(record, answer)\n"
        "\ndef all_of_them(records, answers):\n    for record in records:\n        yield record['gold']\n"
    )
    one, later, many = (find_reward_function(f"mine_fragile:{n}", "x") for n in ("one", "later", "all_of_them"))
    assert score_all({"mine": one}, [{"gold": "a"}], ["a"])["mine"].tolist() == [1.0]
    for function, line, which in (
        (one, 3, "answer 'b'"),
        (later, 6, "answer 'b'"),
        (many, 10, "1 answers, the first 'b'"),
    ):
        with pytest.raises(
            UserError, match=rf"reward mine: KeyError: 'gold' \(.*mine_fragile\.py, line {line}\) for {which}"
        ):
            score_all({"mine": function}, [{}], ["b"])
    with pytest.raises(UserError, match="gave a coroutine; define the function with `async def`"):
        scores(lambda record, answer: later.call(record, answer), ["b"])


def test_at_most_so_many_calls_of_an_async_function_run_at_the_same_time_in_one_loop():
    running, most, loops = 0, 0, set()

    async def judge(record, answer):
        nonlocal running, most
        loops.add(asyncio.get_running_loop())
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0.005)
        running -= 1
        return float(answer)

    answers = [str(i) for i in range(30)]
    assert scores(judge, answers, limit=7) == [float(i) for i in range(30)] and most == 7
    most = 0
    assert scores(judge, answers, limit=64) == [float(i) for i in range(30)] and most == 30
    assert len(loops) == 1


def test_functions_wait_for_each_other_together():
    begin = time.monotonic()
    functions = {str(i): of_callable(slow, str(i)) for i, slow in enumerate([sleeps] * 9 + [blocks])}
    found = score_all(functions, [{}] * 4, ["x"] * 4)
    assert all(values.tolist() == [1.0] * 4 for values in found.values())
    assert time.monotonic() - begin < 2  # one after the other: 0.3 s x 10


async def sleeps(record, answer):
    await asyncio.sleep(0.3)
    return 1


def blocks(records, answers):
    time.sleep(0.3)
    return [1] * len(answers)


def test_a_function_of_all_answers_is_called_once_or_with_so_many_answers():
    sizes = []
    function = lambda records, answers: sizes.append(len(answers)) or [1] * len(answers)  # noqa: E731
    scores(function, ["x"] * 10)
    scores(function, ["x"] * 10, batch_size=4)
    assert sizes == [10, 4, 4, 2]


def test_the_first_failure_ends_the_other_calls():
    ended = []

    async def judge(record, answer):
        if answer == "bad":
            raise ConnectionError("gone")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(answer)

    begin = time.monotonic()
    with pytest.raises(UserError, match=r"reward f: ConnectionError: gone \(.*\) for answer 'bad'"):
        scores(judge, ["a", "bad", "b"])
    assert time.monotonic() - begin < 5 and sorted(ended) == ["a", "b"]


def test_a_call_that_takes_too_long_or_is_cancelled_is_told():
    async def hangs(record, answer):
        await asyncio.sleep(60)

    async def cancels(record, answer):
        raise asyncio.CancelledError

    async def own(record, answer):
        raise TimeoutError("the server")

    with pytest.raises(UserError, match=r"reward f: no score after 0\.05 s \(timeout_seconds\) for answer 'a'"):
        scores(hangs, ["a"], timeout_seconds=0.05)
    with pytest.raises(UserError, match="reward f: the call cancelled itself for answer 'a'"):
        scores(cancels, ["a"])
    with pytest.raises(UserError, match="reward f: TimeoutError: the server"):
        scores(own, ["a"], timeout_seconds=9)


class _Odd(BaseException):
    def __str__(self):
        raise ValueError


def test_a_function_that_is_odd_is_told_and_ends_nothing_but_its_run(monkeypatch):
    """Whatever it does to its task or to the event loop, no score is invented, nothing waits, and the loop lives on."""
    monkeypatch.setattr(reward_functions, "CANCEL_SECONDS", 0.1)

    async def interrupts(record, answer):
        raise KeyboardInterrupt

    async def odd(record, answer):
        raise _Odd

    async def cancels_itself(record, answer):
        asyncio.current_task().cancel()
        await asyncio.sleep(60)

    async def cancels_all(record, answer):
        for task in asyncio.all_tasks():
            task.cancel()
        await asyncio.sleep(60)

    async def refuses_to_end(record, answer):
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    async def stops_the_loop(record, answer):
        asyncio.get_running_loop().stop()
        return 2

    def raises_odd(record, answer):
        raise _Odd

    for function, says in (
        (interrupts, "KeyboardInterrupt"),
        (odd, "_Odd: its message cannot be shown"),
        (raises_odd, "_Odd: its message cannot be shown"),
        (cancels_itself, "the call cancelled itself for answer 'a'"),
        (cancels_all, "0 of 2 answers are scored; a function has cancelled tasks that are not its own"),
        (refuses_to_end, r"no score after 0\.05 s"),
    ):
        limit = {"timeout_seconds": 0.05} if function is refuses_to_end else {}
        with pytest.raises(UserError, match=f"^reward f: {says}"):
            scores(function, ["a", "b"], **limit)
    assert scores(stops_the_loop, ["a", "b"]) == [2.0, 2.0] and scores(sleeps, ["a"]) == [1.0]


def test_a_user_is_told_what_is_waited_for(monkeypatch, capsys):
    monkeypatch.setattr(reward_functions, "SLOW_SECONDS", 0.1)
    scores(sleeps, ["a", "b"])
    assert re.search(r"reward f: 0 of 2 answers are scored after 0 s", capsys.readouterr().err)


def test_a_function_may_compute_with_jax_inside_of_a_training_step():
    with jax.transfer_guard("disallow"):
        assert scores(lambda record, answer: jnp.sum(np.arange(len(answer))), ["abc"]) == [3.0]


def hangs_and_catches(record, answer):
    try:
        threading.Event().wait(60)
    except Exception:
        return 0.0


def hangs_and_catches_all(record, answer):
    try:
        threading.Event().wait(60)
    except BaseException:
        return 0.0


async def hangs_for_good(record, answer):
    await asyncio.sleep(60)


@pytest.mark.parametrize("function", [hangs_and_catches, hangs_and_catches_all, hangs_for_good])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_functions_soon_but_not_at_once(function, number, monkeypatch):
    monkeypatch.setattr(reward_functions, "GRACE_SECONDS", 0.8)
    received = []
    before = signal.signal(number, lambda *_: received.append(number))
    handler = signal.getsignal(number)
    try:
        threading.Timer(0.1, os.kill, [os.getpid(), number]).start()
        begin = time.monotonic()
        with pytest.raises(InterruptedError):
            scores(function, ["a", "b"])
        assert 0.8 < time.monotonic() - begin < 8 and received == [number]
        assert signal.getsignal(number) is handler
        threading.Timer(0.1, os.kill, [os.getpid(), number]).start()
        assert scores(sleeps, ["a"]) == [1.0] and received == [number] * 2  # it ends in time
        time.sleep(0.9)  # the timer is off
        assert received == [number] * 2
    finally:
        signal.signal(number, before)


def test_functions_are_tried_on_the_first_prompts_with_the_answer_in_the_data():
    seen = []
    functions = {
        "one": of_callable(lambda record, answer: seen.append(answer) or 1, ""),
        "all": of_callable(lambda records, answers: seen.append(answers) or [1, 1], ""),
        "no_reference": of_callable(of_length, ""),
    }
    check_functions(functions, [{"reference": "a"}, {"reference": None}, {"reference": "c"}])
    assert seen == ["a", ["a", ""]]
    functions["wrong"] = of_callable(lambda record, answer: record["meta"]["level"], "")
    with pytest.raises(
        UserError, match=r"reward wrong: KeyError: 'meta' .*; every reward is tried on the first prompt before"
    ):
        check_functions(functions, [{"reference": "a"}])


@pytest.mark.parametrize(
    ("function", "setting", "says"),
    [
        ("says_blue", {"limit": 4}, r"config\.r\.limit is for an `async` function with several calls"),
        ("says_blue", {"timeout_seconds": 4.0}, r"config\.r\.timeout_seconds is for an `async` function"),
        ("says_blue", {"batch_size": 4}, r"config\.r\.batch_size is for a function reward\(records, answers\)"),
        (None, {"limit": 4}, r"config\.r\.limit"),
    ],
)
def test_settings_of_a_call_are_refused_where_they_do_nothing(function, setting, says):
    source = {"task": "walks"} if function is None else {"function": f"camelid.tests.tiny_rl:{function}"}
    with pytest.raises(UserError, match=says):
        read(source | setting, RewardSource, "config.r")


def test_settings_of_a_call_reach_the_function():
    given = {"function": f"{__name__}:of_length", "limit": 4, "timeout_seconds": 2.0}
    found = read(given, RewardSource, "config.r").find("config.r")
    assert (found.awaited, found.batched, found.limit, found.timeout_seconds) == (True, False, 4, 2.0)
    given = {"function": f"{__name__}:of_lengths", "limit": 4, "batch_size": 8}
    found = read(given, RewardSource, "config.r").find("config.r")
    assert (found.awaited, found.batched, found.limit, found.batch_size) == (True, True, 4, 8)


TOGETHER = """
import random, sys
from camelid.launch.distributed import joined
with joined(sys.argv[1], 2, int(sys.argv[2])):
    from camelid.errors import UserError
    from camelid.rlhf.reward_functions import RewardFunction, score_all
    called = []
    def judge(record, answer):
        called.append(answer)
        if answer == "bad":
            raise ValueError("no")
        return random.random()
    function = {"judge": RewardFunction(judge)}
    print(score_all(function, [{}] * 3, ["a", "b", "c"])["judge"].tolist(), len(called))
    try:
        score_all(function, [{}], ["bad"])
    except UserError as error:
        print(error)
"""


def test_processes_that_train_together_get_the_scores_and_errors_of_process_0():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command, environment = [sys.executable, "-c", TOGETHER, address], os.environ | {"XLA_FLAGS": ""}
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    processes = [subprocess.Popen([*command, str(i)], **pipe) for i in range(2)]
    said = [process.communicate(timeout=120) for process in processes]
    lines = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in said]
    assert all(len(each) == 2 for each in lines), said
    assert lines[0][0].split("]")[0] == lines[1][0].split("]")[0]  # random scores
    assert [each[0].split("]")[1] for each in lines] == [" 3", " 0"]
    assert lines[0][1] == lines[1][1] and lines[0][1].startswith("reward judge: ValueError: no")
