"""How the processes of a run find each other and their devices. `tests/train/test_processes.py` trains with them."""

import os
import socket
import subprocess
import sys

import jax
import pytest

from camelid.errors import UserError
from camelid.launch import distributed
from camelid.launch.cli import main
from camelid.launch.distributed import devices_of_task
from camelid.launch.launching.ports import free_port
from camelid.launch.launching.verdict import EXIT_FILE


@pytest.mark.parametrize(
    ("tasks", "number", "gpus", "found"),
    [
        ("1", 0, "0,1,2,3,4,5,6,7", []),  # one task on a node has all
        ("1(x2)", 0, "", []),
        ("1(x4)", 0, "0,1,2,3,4,5,6,7", []),  # one task on each of four nodes has all of its node
        ("2(x4)", 1, "0,1,2,3,4,5,6,7", [4, 5, 6, 7]),
        ("8(x2)", 3, "0,1,2,3,4,5,6,7", [3]),  # one each, as JAX divides them
        ("2", 1, "0,1,2,3,4,5,6,7", [4, 5, 6, 7]),
        ("8", 3, "0", []),  # Slurm has bound a GPU to each task
        ("2", 1, "", None),  # no GPUs, or all visible: JAX decides
    ],
)
def test_a_task_of_slurm_has_its_share_of_the_gpus(tasks, number, gpus, found):
    environment = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": str(number), "CUDA_VISIBLE_DEVICES": gpus}
    assert devices_of_task(environment) == found
    assert devices_of_task(environment | {"JAX_LOCAL_DEVICE_IDS": "0"}) is None
    assert devices_of_task({"CUDA_VISIBLE_DEVICES": gpus}) is None


BARRIER = (
    "the checkpoint of step 4 was not written to /runs/a/checkpoints: Timeout waiting at barrier '[op=4.state]'. "
    "INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 heartbeat timeout. "
    "[type.googleapis.com/tensorflow.CoordinationServiceError=''] (the last complete one is of step 3)"
)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (OSError(BARRIER), True),  # the other process died while both saved
        (RuntimeError("UNKNOWN: [gloo] Connection closed by peer"), True),
        (OSError("the checkpoint of step 4 was not written: gs://a: Connection reset by peer"), False),
        (OSError("No space left on device"), False),
    ],
)
def test_only_an_error_of_what_joins_the_processes_says_that_another_one_is_lost(error, lost, monkeypatch):
    said, written = [], []
    monkeypatch.setattr(distributed, "_one_line_instead_of_abort", lambda words: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **settings: None)
    monkeypatch.setattr(distributed, "write_exit", written.append)

    def end(words):
        said.append(words)
        raise SystemExit(1)

    monkeypatch.setattr(distributed, "_end", end)
    with pytest.raises(SystemExit), distributed.joined("127.0.0.1:1", 2, 1):
        raise error
    assert said == ([distributed.DIED] if lost else [str(error)])
    assert written == (["lost"] if lost else [])


def test_a_port_that_is_taken_is_one_line_and_no_crash(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of .* cannot be the coordinator's"):
            distributed._check_port(f"127.0.0.1:{port}", 0)
        distributed._check_port(f"127.0.0.1:{port}", 1)  # the port of another process's host
        monkeypatch.setenv("JAX_COORDINATOR_PORT", str(port))
        with pytest.raises(UserError, match=f"port {port}"):
            distributed._check_port(None, None)


ALONE = "import sys; from camelid.launch.distributed import joined\nwith joined(sys.argv[1], 2, 1, seconds=2): pass"


@pytest.mark.parametrize("command", [["doctor"], ["train", "--config=x", "--workdir=y"]])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--coordinator=nonsense"], "--coordinator=nonsense: give HOST:PORT"),
        (["--coordinator=:8476"], "--coordinator=:8476: give HOST:PORT"),
        (["--coordinator=host:99999"], "--coordinator=host:99999: give HOST:PORT"),
        (["--num_processes=0"], "--num_processes=0: give 1 or more"),
        (["--num_processes=2", "--process_id=2"], "--process_id=2: give 0 to 1"),
        (["--process_id=-1"], "--process_id=-1: give 0 or more"),
    ],
)
def test_a_wrong_option_of_several_processes_is_one_line(command, options, words, capsys):
    assert main([*command, "--distributed", *options]) == 2
    assert words in capsys.readouterr().err


def test_where_jax_finds_no_cluster_the_options_are_named(monkeypatch):
    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(distributed, "_one_line_instead_of_abort", lambda words: None)
    words = r"JAX finds no cluster here .*: give --coordinator=HOST:PORT"
    with pytest.raises(UserError, match=words), distributed.joined(None, None, None):
        pass


def test_a_process_that_finds_no_others_ends_with_one_line(tmp_path):
    address = f"127.0.0.1:{free_port(os.getpid())}"
    ended = subprocess.run(
        [sys.executable, "-c", ALONE, address],
        env=os.environ | {"XLA_FLAGS": "", EXIT_FILE: str(tmp_path / "1")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1, ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "did not find each other within 2 seconds" in ended.stderr
    assert (tmp_path / "1").read_text() == "lost"


STEPS = """
import os, signal, sys, time
from camelid.launch.distributed import joined
with joined(sys.argv[1], 2, int(sys.argv[2])):
    from camelid.train.loop import _should_stop
    if sys.argv[2] == "0":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2)  # as long as the step compiles
    for step in range(39, 69):
        if _should_stop([]):
            os.write(1, str(step).encode())
            break
        time.sleep(0.05)
"""


def test_a_signal_before_the_first_step_of_a_resumed_run_ends_all_processes_at_the_same_step():
    address = f"127.0.0.1:{free_port(os.getpid())}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STEPS, address, str(i)],
            env=os.environ | {"XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    found = [process.communicate(timeout=120) for process in processes]
    assert found[0][0] == found[1][0] and int(found[0][0]) < 42, found
