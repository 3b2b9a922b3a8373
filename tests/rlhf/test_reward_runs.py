"""Runs with reward functions of the user's own: tried before anything is drawn, and left at a signal."""

import asyncio
import os
import signal

import pytest

from camelid.checkpoints import reading
from camelid.launch.cli import main
from camelid.rlhf import reward_functions

pytestmark = pytest.mark.usefixtures("one_device")

CALLS = {"tried": 0, "hangs": 0}


async def judge(record, answer):
    """Hangs from the call CALLS["hangs"] on, at which a signal comes, unless that is 0."""
    CALLS["tried"] += 1
    if CALLS["hangs"] and CALLS["tried"] >= CALLS["hangs"]:
        if CALLS["tried"] == CALLS["hangs"]:
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(600)
    return float("blue" in answer)


def wrong(record, answer):
    return record["no_such_key"]


def line(rl_arguments, tuned, workdir, name, *more):
    function = f"--config.reward.sources.blue.function={__name__}:{name}"
    given = rl_arguments("grpo", workdir, init_from=tuned, evaluate=False)
    return [*given, "--config.total_steps=3", "--config.checkpoint.every_steps=1", function, *more]


def test_a_function_that_fails_is_told_before_anything_is_drawn(rl_arguments, tuned, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("camelid.rlhf.experience.roll_out", None)  # to be called when a program draws
    assert main(line(rl_arguments, tuned, tmp_path, "wrong")) == 2
    said = [text for text in capsys.readouterr().err.splitlines() if "no_such_key" in text]
    assert len(said) == 1 and said[0].startswith("camelid: reward blue: KeyError: 'no_such_key' (")
    assert "every reward is tried on the first prompt before answers are drawn" in said[0]


def test_a_signal_while_a_judge_hangs_saves_and_ends_the_run_which_then_goes_on(
    rl_arguments, tuned, tmp_path, monkeypatch, capsys, metrics
):
    monkeypatch.setattr(reward_functions, "GRACE_SECONDS", 0.2)
    config = line(rl_arguments, tuned, tmp_path, "judge")
    answers = 16 * 4
    CALLS.update(tried=0, hangs=1 + answers + 5)  # one call on the first prompt; then in the second step
    assert main(config) == 143
    assert (
        "SIGTERM ended the run at step 1 of 3; it is saved, and the same command resumes it" in capsys.readouterr().err
    )
    assert reading.read_manifest(tmp_path)["step"] == 1
    CALLS.update(tried=0, hangs=0)
    config += ["--config.reward.sources.blue.limit=8", "--config.reward.sources.blue.timeout_seconds=60"]
    assert main(config) == 0
    assert CALLS["tried"] == 1 + 2 * answers and max(metrics(tmp_path)) == 3
    assert main(config) == 0  # it is complete: nothing is drawn, and no function called
    assert CALLS["tried"] == 1 + 2 * answers
