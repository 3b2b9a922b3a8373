"""A run of PPO that nothing disturbs, and the same one killed three times, in processes beside the tests."""

import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from camelid.train import checkpoints

STEPS = 9
KILLS = sorted(random.Random("ppo").sample(range(4, STEPS), 3))  # after a checkpoint, that of step 2 at least


class Runs(NamedTuple):
    """straight: the directory of the one. killed: that of the other, and the steps that it went on from."""

    straight: Future
    killed: Future


@pytest.fixture(scope="session")
def ppo_command(rl_arguments, tuned, reward_run):
    """ppo_command(workdir): the command line of a PPO run with all that a run may carry from step to step."""

    def line(workdir):
        often = "--config.checkpoint.every_steps=2"
        return [*rl_arguments("ppo", workdir, init_from=tuned, reward=reward_run), often]

    return line


@pytest.fixture(scope="session")
def ppo_runs(ppo_command, start, metrics, tmp_path_factory) -> Iterator[Runs]:
    """Both runs under way, on two devices each."""
    workdirs = [tmp_path_factory.mktemp(name) for name in ("ppo", "killed")]

    def finish(process, code: int = 0) -> None:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == code, output

    def straight(workdir) -> Path:
        finish(start(ppo_command(workdir)))
        return workdir

    def killed(workdir) -> tuple[Path, list[int]]:
        resumed_from = []
        for step in KILLS:
            process = start(ppo_command(workdir))
            while not (workdir / "metrics.jsonl").exists() or max(metrics(workdir), default=0) < step:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            finish(process, code=-signal.SIGKILL)
            resumed_from.append(checkpoints.read_manifest(workdir)["step"])
        return straight(workdir), resumed_from

    with ThreadPoolExecutor(2) as pool:
        yield Runs(*(pool.submit(run, workdir) for run, workdir in zip((straight, killed), workdirs, strict=True)))


@pytest.fixture(scope="session")
def ppo_run(ppo_runs) -> Path:
    """The directory of a finished run of PPO, from `tuned` against `reward_run` and a function."""
    return ppo_runs.straight.result()


@pytest.fixture(scope="session")
def killed_run(ppo_runs) -> tuple[Path, list[int]]:
    """That of the same run, killed three times at random steps, and the steps that it went on from."""
    return ppo_runs.killed.result()
