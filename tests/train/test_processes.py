"""Two processes of two devices each, joined by JAX's distributed runtime over gloo, against one process."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from camelid.checkpoints import language_model, reading
from camelid.launch.cli import main


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def start_two(start):
    """start_two(arguments): both processes of a run."""

    def popen(arguments):
        cluster = ["--distributed", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
        return [start([*arguments, *cluster, f"--process_id={i}"], devices=2) for i in range(2)]

    return popen


def finish(processes, codes=(0, 0)) -> list[str]:
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == list(codes), "\n".join(outputs)
    return outputs


def test_two_processes_train_as_one_and_one_takes_over(pretrained, arguments, start_two, metrics, tmp_path, one_device):
    outputs = finish(start_two(arguments("pretrain", tmp_path)))
    assert "step 24/24" in outputs[0] and "step 24/24" not in outputs[1]  # one of them reports
    together, alone = metrics(tmp_path), metrics(pretrained)
    assert together.keys() == alone.keys()
    for step, line in alone.items():
        for name in ("train/loss", "train/tokens", "eval/heldout/text/loss"):
            if name in line:
                assert together[step][name] == pytest.approx(line[name], abs=1e-5), (step, name)
    found, expected = language_model.load(tmp_path), language_model.load(pretrained)  # by a single process
    assert found.step == 24
    assert found.tokenizer.fingerprint == expected.tokenizer.fingerprint
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)

    shutil.rmtree(tmp_path / "checkpoints" / "24")
    assert main(arguments("pretrain", tmp_path)) == 0
    resumed = metrics(tmp_path)
    for step, line in together.items():
        if "train/loss" in line:
            limit = 0 if step <= 12 else 1e-5
            assert resumed[step]["train/loss"] == pytest.approx(line["train/loss"], abs=limit), step
    for a, b in zip(jax.tree.leaves(language_model.load(tmp_path).params), jax.tree.leaves(found.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("recipe", ["ppo", "reward"])
def test_evaluations_of_two_processes_are_those_of_one(
    recipe, rl_arguments, tuned, start_two, metrics, tmp_path, one_device
):
    def line(name):
        answers = ["--config.evals.primer.per_group=1", "--config.evals.primer.max_tokens=4"] if recipe == "ppo" else []
        return [*rl_arguments(recipe, tmp_path / name, init_from=tuned), "--config.total_steps=1", *answers]

    processes = start_two(line("two"))
    assert main(line("one")) == 0
    finish(processes)
    together, alone = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert len([name for name in alone[1] if name.startswith("eval/")]) > 3
    for step, found in alone.items():
        for name, value in found.items():
            if name.startswith("eval/"):
                assert together[step][name] == pytest.approx(value, abs=1e-4), (step, name)


def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(arguments, start_two, metrics, tmp_path):
    processes = start_two(arguments("pretrain", tmp_path))
    while not (tmp_path / "metrics.jsonl").exists() or max(metrics(tmp_path), default=0) < 3:
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    outputs = finish(processes, (143, 143))
    stopped = reading.read_manifest(tmp_path)["step"]
    assert 3 <= stopped < 24
    assert f"SIGTERM ended the run at step {stopped} of 24; it is saved" in outputs[0]


TOGETHER = """
import os, sys, time
import numpy as np
from camelid.launch.distributed import joined
with joined(sys.argv[1], 2, int(sys.argv[2])):
    from jax.experimental import multihost_utils
    while True:
        multihost_utils.process_allgather(np.ones(3))
        os.write(1, b".")
        time.sleep(0.05 if sys.argv[3] == "talking" else 1000)
"""


@pytest.mark.parametrize(("victim", "doing"), [(0, "talking"), (1, "talking"), (1, "silent")])
def test_when_one_of_two_processes_dies_the_other_ends_in_time_with_one_line_and_exit_code_1(victim, doing):
    """Whether a collective operation notices it, or the heartbeats alone."""
    address, flags = f"127.0.0.1:{free_port()}", os.environ | {"XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, address, str(i), doing],
            env=flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout.read(1), process.communicate()
        processes[victim].send_signal(signal.SIGKILL)
        died = time.monotonic()
        said = processes[1 - victim].communicate(timeout=60)[1]
        assert time.monotonic() - died < 30
        assert processes[1 - victim].returncode == 1, said
        lines = [line for line in said.splitlines() if not line.startswith("[Gloo]")]
        assert len(lines) == 1 and lines[0].startswith("camelid: another process of this run died"), said
    finally:
        for process in processes:
            process.kill()
